from dataclasses import dataclass
from typing import Any

from ..utils.size import Size
from .diffusion import DiffusionConfig
from .known_models import MODELS as MODELS  # the public place of the table
from .known_models import ModelSpec
from .networks import AutoencoderConfig, CLIPTextConfig, UNetConfig, _per_block
from .strict_config import Config


@dataclass(frozen=True)
class Defaults:
    """How a model is run where the caller does not say."""

    steps: int
    guidance: float
    size: Size


@dataclass(frozen=True)
class PipelineConfig(Config):
    """`model_index.json`: which pipeline of diffusers the model belongs to."""

    # SDXL: no negative prompt means embeddings of zeros, not those of an empty text.
    force_zeros_for_empty_prompt: bool = True
    _converted_from: str | None = None  # the known model that a converted one was

    # Image to image runs on the same weights; inpainting and others do not.
    CLASS_NAMES = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
    )

    @classmethod
    def _is_without_effect(cls, key: str, value: Any) -> bool:
        return True  # the rest lists components, whose own configs are read


@dataclass(frozen=True)
class ModelConfig:
    """All that the config files of one model say."""

    name: str  # as messages call the model
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text_encoders: tuple[CLIPTextConfig, ...]  # one for SD, two for SDXL
    diffusion: DiffusionConfig
    pipeline: PipelineConfig
    spec: ModelSpec | None = None  # where the model is a known one

    def __post_init__(self) -> None:
        width = sum(text_encoder.hidden_size for text_encoder in self.text_encoders)
        if self.unet.cross_attention_dim != width:
            raise ValueError(
                f"{self.name}: the UNet takes text embeddings of {self.unet.cross_attention_dim}, "
                f"the text encoders give {width}: they do not fit together"
            )
        n_inputs = self.unet.projection_class_embeddings_input_dim
        if self.is_xl and n_inputs != self._n_added:
            raise ValueError(
                f"{self.name}: the UNet takes {n_inputs} numbers beside the text embeddings, text "
                f"and sizes make {self._n_added}: they do not fit together"
            )
        latent_channels = self.autoencoder.latent_channels
        if (self.unet.in_channels, self.unet.out_channels) != (latent_channels, latent_channels):
            raise ValueError(
                f"{self.name}: the UNet takes {self.unet.in_channels} channels and gives "
                f"{self.unet.out_channels}, the VAE has {latent_channels}: they do not fit together"
            )

    @property
    def is_xl(self) -> bool:
        """Whether this is an SDXL model, told by how its UNet is conditioned."""
        return self.unet.addition_embed_type == "text_time"

    @property
    def _n_added(self) -> int:
        """What SDXL's UNet takes beside the embeddings: the pooled text, and six sizes."""
        last = self.text_encoders[-1]
        pooled = last.projection_dim if last.has_projection else last.hidden_size
        return pooled + 6 * self.unet.addition_time_embed_dim

    @property
    def most_clip_skip(self) -> int:
        """How many layers of the text encoders can be left out: SDXL skips one in any case."""
        layers = min(text_encoder.num_hidden_layers for text_encoder in self.text_encoders)
        return max(0, layers - (2 if self.is_xl else 1))

    @property
    def defaults(self) -> Defaults:
        """Steps, guidance and size where the caller gives none."""
        return self.defaults_with(self.diffusion.sampler)

    def defaults_with(self, sampler: str) -> Defaults:
        """The same where the caller gives a sampler only."""
        size = self._size()
        # A model, or a LoRA, distilled to few steps, guidance included (arXiv:2311.05556).
        if "lcm" in (sampler, self.diffusion.sampler):
            return Defaults(steps=4, guidance=0.0, size=size)
        if self.spec is not None:
            return Defaults(self.spec.steps, self.spec.guidance, size)
        # The other distilled models are published with this pair.
        if (self.diffusion.sampler, self.diffusion.timestep_spacing) == ("euler-a", "trailing"):
            return Defaults(steps=2, guidance=0.0, size=size)
        return Defaults(steps=50, guidance=5.0 if self.is_xl else 7.5, size=size)

    def _size(self) -> Size:
        if self.spec is not None:
            return Size(self.spec.size, self.spec.size)
        sample_size = 64 if self.unet.sample_size is None else self.unet.sample_size
        height, width = _per_block("sample_size", sample_size, 2)
        return Size(width * self.autoencoder.factor, height * self.autoencoder.factor)
