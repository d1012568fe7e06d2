"""All the config files of one model together, and the settings that follow from them."""

from dataclasses import dataclass, replace
from typing import Any

from ..utils.size import Size
from .autoencoder_tiny import VaeConfig
from .diffusion import DiffusionConfig
from .few_step import FewStepSettings
from .known_models import ModelSpec
from .networks import CLIPTextConfig, UNetConfig
from .per_block import repeat_per_block
from .strict_config import Config

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")  # folders in a model; SD has only the first
TIME_IDS = 6  # numbers that SDXL's UNet takes: original size, corner of the crop, target size


@dataclass(frozen=True)
class Defaults:
    """The settings of a model that are used if the caller does not give them."""

    steps: int
    guidance: float
    size: Size  # of the picture, in pixels


@dataclass(frozen=True)
class PipelineConfig(Config):
    """`model_index.json`: the pipeline of diffusers that the model belongs to."""

    # SDXL: zeros stand for a missing negative prompt, not the embeddings of an empty text.
    force_zeros_for_empty_prompt: bool = True
    _converted_from: str | None = None  # the known model that this one was converted from

    # What the UNet takes decides what the model can do, not the class; see `UNetConfig.task`.
    CLASS_NAMES = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "LatentConsistencyModelPipeline",  # of UNets that embed the guidance
        "LatentConsistencyModelImg2ImgPipeline",
    )

    @classmethod
    def _has_no_effect(cls, key: str, value: Any) -> bool:
        return True  # the other keys list the components, which have configs of their own


@dataclass(frozen=True)
class ModelConfig:
    """All the config files of one model.

    Raises:
        ValueError: if UNet, text encoders and VAE do not fit together.
    """

    name: str  # the model's name in messages
    unet: UNetConfig
    autoencoder: VaeConfig
    text_encoders: tuple[CLIPTextConfig, ...]  # one for SD, two for SDXL
    diffusion: DiffusionConfig
    pipeline: PipelineConfig
    spec: ModelSpec | None = None  # if the model is a known one
    few_step: FewStepSettings | None = None  # of a file that distils the model to few steps

    def __post_init__(self) -> None:
        width = sum(text_encoder.hidden_size for text_encoder in self.text_encoders)
        if self.unet.cross_attention_dim != width:
            raise ValueError(
                f"{self.name}: the UNet takes text embeddings of {self.unet.cross_attention_dim}, "
                f"the text encoders give {width}: they do not fit together"
            )
        n_inputs = self.unet.projection_class_embeddings_input_dim
        if self.is_xl and n_inputs != self._n_added_inputs:
            raise ValueError(
                f"{self.name}: the UNet takes {n_inputs} numbers of pooled text and sizes, "
                f"these text encoders give {self._n_added_inputs}: they do not fit together"
            )
        latent_channels = self.autoencoder.latent_channels
        if self.unet.task is None or self.unet.out_channels != latent_channels:
            raise ValueError(
                f"{self.name}: the UNet takes {self.unet.in_channels} channels and gives "
                f"{self.unet.out_channels}, the VAE has {latent_channels}: they do not fit together"
            )

    @property
    def is_xl(self) -> bool:
        """Return whether this is an SDXL model, by how its UNet is conditioned."""
        return self.unet.addition_embed_type == "text_time"

    def needs_second_text(self, guidance: float, image_guidance: float | None = None) -> bool:
        """Return whether guidance takes a prediction for the negative text, too.

        Args:
            image_guidance: for editing models, the weight of guidance by the picture. Below 1 there
                is no guidance by the text either, as in diffusers.
        """
        is_on = guidance > 1 and (image_guidance is None or image_guidance >= 1)
        return is_on and not self.unet.embeds_guidance

    def require_vae_float16(self) -> None:
        """Check that the VAE can compute in half precision.

        Raises:
            ValueError: if it is a VAE of SDXL whose config does not rule out that it overflows.
        """
        if self.is_xl and self.autoencoder.force_upcast:
            raise ValueError(
                f"{self.name}: the VAE of this SDXL model is not made for half precision (its "
                "config.json does not say `force_upcast: false`): compute it in float32 (without "
                "--vae-float16), or give another VAE (--vae)"
            )

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """Return the folders of the text encoders in the model, in their order."""
        return TEXT_ENCODERS[: len(self.text_encoders)]

    @property
    def _n_added_inputs(self) -> int:
        """Return how many numbers the text encoders and sizes give SDXL's UNet in `text_time`."""
        last = self.text_encoders[-1]
        n_pooled = last.projection_dim if last.has_projection else last.hidden_size
        width = self.unet.addition_time_embed_dim
        return n_pooled + (0 if width is None else TIME_IDS * width)

    @property
    def max_clip_skip(self) -> int:
        """Return how many layers of the text encoders can be skipped.

        It is one less for SDXL, which always skips the last layer.
        """
        n_layers = min(text_encoder.num_hidden_layers for text_encoder in self.text_encoders)
        return max(0, n_layers - (2 if self.is_xl else 1))

    @property
    def sampler(self) -> str:
        """Return the sampler to use if the caller gives none."""
        return self.diffusion.sampler if self.few_step is None else self.few_step.sampler

    @property
    def defaults(self) -> Defaults:
        """Return the steps, guidance and size to use if the caller gives none of them."""
        return self.defaults_with(self.sampler)

    def defaults_with(self, sampler: str) -> Defaults:
        """Return the steps, guidance and size to use if the caller gives only the sampler."""
        size = self._find_size()
        if self.few_step is not None:
            return Defaults(self.few_step.steps, self.few_step.guidance, size)
        # A model or a LoRA that is distilled to few steps without guidance (arXiv:2311.05556).
        if {"lcm", "tcd"} & {sampler, self.diffusion.sampler}:
            return Defaults(steps=4, guidance=0.0, size=size)
        if self.spec is not None:
            return Defaults(self.spec.steps, self.spec.guidance, size)
        # The other distilled models are published with these two.
        if (self.diffusion.sampler, self.diffusion.timestep_spacing) == ("euler-a", "trailing"):
            return Defaults(steps=2, guidance=0.0, size=size)
        steps = 100 if self.unet.task == "editing" else 50
        return Defaults(steps=steps, guidance=5.0 if self.is_xl else 7.5, size=size)

    def with_few_step(self, few_step: FewStepSettings) -> "ModelConfig":
        """Return the config of this model distilled to few steps, with what that changes."""
        diffusion = self.diffusion
        if few_step.spacing is not None:
            diffusion = diffusion.with_schedule(few_step.spacing)
        if few_step.prediction_type is not None:
            diffusion = replace(diffusion, prediction_type=few_step.prediction_type)
        return replace(self, few_step=few_step, diffusion=diffusion)

    def _find_size(self) -> Size:
        """Return the size of picture that the model was trained for, in pixels."""
        if self.spec is not None:
            return Size(self.spec.size, self.spec.size)
        sample_size = 64 if self.unet.sample_size is None else self.unet.sample_size
        height, width = repeat_per_block("sample_size", sample_size, 2)
        return Size(width * self.autoencoder.factor, height * self.autoencoder.factor)
