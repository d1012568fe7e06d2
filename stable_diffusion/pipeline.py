"""`StableDiffusion` and `StableDiffusionXL`: from text, or a picture and text, to latents.

Nothing is computed before the caller evaluates it, so the caller decides what is in memory. The
text encoders can be freed once `Denoising.inputs` are evaluated, and the UNet after the last step.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

import mlx.core as mx
import numpy as np

from . import check_arguments, check_pictures
from .adapted import split_few_step_model
from .check_task import check_no_controls, check_strength, check_task
from .conditioning import (
    LAST,
    PENULTIMATE,
    PLAIN,
    TextOptions,
    Texts,
    embed_pairs,
    make_time_ids,
)
from .config.model import ModelConfig
from .control import activate, warn_of_no_steps
from .denoising import Denoising, Steps, denoise, yield_unchanged
from .device import cpu_kernels
from .editing import start_editing
from .generation import Arguments, Generation, GenerationOptions, OptionalTexts, check_generation
from .half_weights import prepare_half_weights
from .image_start import ImageStart, encode_image, start_from_image
from .loaded_networks import LoadedNetworks
from .model_io.loaders import (
    DEFAULT_MODEL,
    Key,
    load_autoencoder,
    load_unet,
    open_model,
)
from .prediction import EMPTY, make_predict
from .sampler.choose import choose_sampler
from .sampler.noise import draw_latents
from .sampler.schedule import Schedule
from .utils.size import Size
from .vae_strips import decode


class StableDiffusion(LoadedNetworks):
    """Stable Diffusion 1.x and 2.x.

    Args:
        model: a known name (`config.MODELS`, `config.FEW_STEP_MODELS`), a folder in the layout of
            diffusers, a safetensors file in the original layout, or a Hub repository, `org/name`
            or `org/name@revision`.
        float16: compute the text encoders and the UNet in half precision. On a Linux CPU their
            weights are stored in it, and multiplied in bfloat16 if the processor can.
        sampler: one of `sampler.sampler.SAMPLERS`; the model's own if None.
        schedule: one of the sampler's schedules: the spacing of the timesteps, or "karras"; the
            model's own if None.
        vae: where to take another VAE from: a model, a VAE's folder or repository, or a file.
        unet: where to take another UNet from; see `open_model`.
        prediction_type: "epsilon", "v_prediction" or "sample", if the model's files do not say.
        vae_float16: compute the VAE in half precision, too. The VAE of an SDXL model must be made
            for it. Pictures may differ visibly from those in float32.

    Raises:
        OSError: if the model or one of its files cannot be found.
        ValueError: if the model is not supported or is broken, or if it needs the other class; if
            its VAE is not made for half precision and `vae_float16` is set.
    """

    def __init__(
        self,
        model: Key = DEFAULT_MODEL,
        float16: bool = False,
        sampler: str | None = None,
        *,
        schedule: str | None = None,
        vae: Key | None = None,
        unet: Key | None = None,
        prediction_type: str | None = None,
        vae_float16: bool = False,
    ):
        words = {"sampler": sampler, "schedule": schedule, "prediction_type": prediction_type}
        check_arguments.check_model(model, {"vae": vae, "unet": unet}, words)
        model, lora = split_few_step_model(model)
        if cpu_kernels.is_used():
            cpu_kernels.keep_freed_memory()
        self.model = opened = open_model(model, vae=vae, unet=unet, prediction_type=prediction_type)
        self.float16, self.vae_float16 = float16, vae_float16
        self.config = opened.config
        _require_suitable(self)
        self.dtype = cpu_kernels.compute_dtype(mx.float16 if float16 else mx.float32)
        self.diffusion_config = self.config.diffusion
        self._chosen = sampler, schedule
        self.sampler = choose_sampler(self.config, sampler, schedule)
        self._load_readers()
        self.unet = load_unet(opened, float16)
        self.autoencoder = load_autoencoder(opened, float16, vae_float16=vae_float16)
        if float16:
            prepare_half_weights(self.unet)
        if vae_float16:
            prepare_half_weights(self.autoencoder)
        if lora is not None:
            self.load_lora(lora)

    def generate_latents(
        self,
        text: Texts,
        n_images: int = 1,
        num_steps: int | None = None,
        cfg_weight: float | None = None,
        negative_text: OptionalTexts = "",
        latent_size: tuple[int, int] | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Denoising:
        """Return the latents of pictures of `text`, step by step.

        Args:
            text: the prompt, or one for each picture.
            n_images: pictures to make; picture i has the seed `seed + i` and depends on no other.
            num_steps: steps of denoising; the model's default if None.
            cfg_weight: weight of classifier-free guidance (arXiv:2207.12598); the model's default
                if None. At or below 1 there is no guidance, and the negative text has no effect.
            negative_text: what to avoid, or one for each picture; None stands for no text.
            latent_size: (height, width) in latents; the model's default if None.
            seed: of the first picture, or one for each; a random one if None, see `Denoising.seed`.
            options: sampler, schedule, timesteps, eta, guidance_rescale, long_prompt,
                prompt_weights, clip_skip, controls, reuse and cfg_range, see `GenerationOptions`.

        Raises:
            TypeError: if an argument is of the wrong kind or has an unknown name.
            ValueError: if an argument is out of its range.
        """
        check_task(self.config)
        latent_size = check_arguments.check_size(latent_size, self.config)
        arguments = Arguments(text, n_images, num_steps, cfg_weight, negative_text, seed, options)
        generation = check_generation(arguments, self.config, self.sampler, self.controls)
        schedule = generation.sampler.schedule(generation.num_steps)
        shape = (*latent_size, self.config.autoencoder.latent_channels)
        noise = mx.array(draw_latents(generation.streams, shape))
        start = ImageStart(noise * schedule.initial_sigma, [])
        return _denoise(self, start, schedule, generation)

    def generate_latents_from_image(
        self,
        image: mx.array | np.ndarray,
        text: Texts,
        n_images: int = 1,
        strength: float | None = None,
        num_steps: int | None = None,
        cfg_weight: float | None = None,
        negative_text: OptionalTexts = "",
        seed: int | Sequence[int] | None = None,
        *,
        mask: mx.array | np.ndarray | None = None,
        image_cfg_weight: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Denoising:
        """Return the latents of pictures of `text` that start from `image`.

        The method is SDEdit (arXiv:2108.01073), or with a mask that of `inpainting`. A model for
        editing changes the image as the text says, see `editing`. The image and the mask are
        evaluated now. The other arguments and the errors are those of
        `generate_latents`.

        Args:
            image: [H, W, 3] floats in [-1, 1], whose sides are multiples of the VAE's factor.
            strength: how much of the schedule is run, in [0, 1]; 0.8 if None. 0 gives the picture
                as the VAE renders it; with a mask 1 begins with noise alone. If
                `int(num_steps * strength)` is 0 the schedule gets more steps, so that one is run,
                with a warning.
                Models for editing have none.
            mask: [H, W] floats in [0, 1] or booleans, of the image's size: what is 0.5 or more is
                painted, and the latents of the rest become those of the image. Decoded pictures
                differ a little from the image there, too, because the VAE is not exact.
            image_cfg_weight: for models for editing, the weight of guidance by the image, 1.5 if
                None. Below 1 there is no guidance at all, by the text neither.
        """
        check_task(self.config, has_image=True, has_mask=mask is not None)
        factor = self.config.autoencoder.factor
        image = check_pictures.check_image(image, factor)
        painted = None if mask is None else check_pictures.check_mask(mask, image.shape[:2], factor)
        arguments = Arguments(
            text, n_images, num_steps, cfg_weight, negative_text, seed, options, image_cfg_weight
        )
        generation = check_generation(arguments, self.config, self.sampler, self.controls)
        check_no_controls(self.config, options)
        strength = check_strength(strength, self.config)
        if strength == 0:
            x = mx.repeat(encode_image(self.autoencoder, image), len(generation.texts), axis=0)
            return Denoising(lambda: yield_unchanged(x), 1, [x], generation.seed)
        schedule = generation.cut_schedule(strength)
        height, width, _ = image.shape
        shape = (height // factor, width // factor, self.config.autoencoder.latent_channels)
        noise = mx.array(draw_latents(generation.streams, shape))
        task, vae = self.config.unet.task, self.autoencoder
        if task == "editing":
            scale, image_cfg = self.config.latent_scale, generation.image_guidance
            start = start_editing(vae, image, noise, schedule, scale, image_cfg)
        else:
            start = start_from_image(vae, task, image, painted, noise, schedule, strength)
        return _denoise(self, start, schedule, generation)

    def decode(self, x_t: mx.array, tiled: bool | None = None) -> mx.array:
        """Return pictures [B, f·h, f·w, 3] in [0, 1] of latents [B, h, w, C].

        f is the VAE's factor. If `tiled`, they are decoded in strips, which takes less memory, and
        computed now, not lazily. If it is None, pictures that are large for the memory are.
        """
        x = self.decode_unclipped(x_t, tiled)
        # An infinite number must not become white or black.
        return mx.where(mx.isfinite(x), mx.clip(x, 0, 1), mx.nan)

    def decode_unclipped(self, x_t: mx.array, tiled: bool | None = None) -> mx.array:
        """Return the pictures that `decode` returns, before they are clipped to [0, 1]."""
        x_t = check_pictures.check_latents(x_t, self.config.autoencoder.latent_channels)
        return decode(self.autoencoder, x_t, tiled) / 2 + 0.5

    def _embed_text(
        self, text: Texts, negative_text: Texts | None, options: TextOptions = PLAIN
    ) -> tuple[mx.array, mx.array | None]:
        """Return text embeddings, and pooled ones if the UNet takes any; see `embed_pairs`."""
        return embed_pairs(text, negative_text, self._readers, LAST, options)[0], None


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL and models distilled from it, such as SDXL-turbo.

    It has two text encoders and tokenizers: `text_encoder_1`, `text_encoder_2`, `tokenizer_1` and
    `tokenizer_2`. The arguments are those of `StableDiffusion`.
    """

    _TEXT_ENCODERS = (("text_encoder_1", "text_encoder"), ("text_encoder_2", "text_encoder_2"))
    _TOKENIZERS = (("tokenizer_1", "tokenizer"), ("tokenizer_2", "tokenizer_2"))

    def __init__(
        self,
        model: Key = "sdxl",
        float16: bool = False,
        sampler: str | None = None,
        *,
        schedule: str | None = None,
        vae: Key | None = None,
        unet: Key | None = None,
        prediction_type: str | None = None,
        vae_float16: bool = False,
    ):
        super().__init__(
            model,
            float16,
            sampler,
            schedule=schedule,
            vae=vae,
            unet=unet,
            prediction_type=prediction_type,
            vae_float16=vae_float16,
        )

    def _embed_text(
        self, text: Texts, negative_text: Texts | None, options: TextOptions = PLAIN
    ) -> tuple[mx.array, mx.array | None]:
        has_zeros = self.config.pipeline.force_zeros_for_empty_prompt
        return embed_pairs(text, negative_text, self._readers, PENULTIMATE, options, has_zeros)


def pipeline_class(config: ModelConfig) -> type[StableDiffusion]:
    """Return the class that runs a model."""
    return StableDiffusionXL if config.is_xl else StableDiffusion


def _require_suitable(sd: StableDiffusion) -> None:
    """Check that a model needs the class of `sd`, and that its VAE can compute as `sd` is asked to.

    Raises:
        ValueError: if one of these is wrong.
    """
    if isinstance(sd, StableDiffusionXL) is not sd.config.is_xl:
        needed = pipeline_class(sd.config).__name__
        raise ValueError(f"{sd.config.name} is a {needed} model: use the class {needed}")
    if sd.vae_float16:
        sd.config.require_vae_float16()


def _denoise(
    sd: StableDiffusion, start: ImageStart, schedule: Schedule, generation: Generation
) -> Denoising:
    """Return the steps of `schedule` from latents at its first level."""
    texts = generation.texts, generation.negative_texts
    embeddings, pooled = sd._embed_text(*texts, generation.text_options)
    origin = Origin(generation, schedule, embeddings, pooled)
    return start_steps(sd, start, origin)


class Origin(NamedTuple):
    """What the steps of a call are made from, beside latents; a second pass needs it again."""

    generation: Generation
    schedule: Schedule
    embeddings: mx.array  # of the texts
    pooled: mx.array | None  # the same, for SDXL's UNet


def start_steps(sd: StableDiffusion, start: ImageStart, origin: Origin) -> Denoising:
    """Return the steps of a schedule from latents at its first level."""
    generation, schedule, embeddings, pooled = origin
    inputs = [start.x, embeddings]
    text_time = None
    height, width = (side * sd.config.autoencoder.factor for side in start.x.shape[1:3])
    if pooled is not None:
        text_time = (pooled, make_time_ids(height, width, len(pooled)))
        inputs.append(pooled)
    guidance = generation.cfg_weight, generation.guidance_rescale
    warn_of_no_steps(generation.controls, len(schedule))
    shortcuts = generation.choose_shortcuts(len(schedule))

    def begin() -> Steps:
        # Not bound earlier: `use_float32` may have replaced the networks and the type.
        active = activate(generation.controls, Size(width, height), len(schedule))
        inputs = replace(start.network_inputs, controls=active)
        arguments = sd.unet, embeddings, text_time, *guidance, sd.dtype, inputs, shortcuts
        predict = make_predict(*arguments)
        sampler, streams = generation.sampler, generation.streams
        return denoise(start.x, schedule, sampler, predict, streams, start.restore)

    inputs += start.encoded
    latents = Denoising(begin, len(schedule), inputs, generation.seed, start.flat)
    if start.network_inputs is EMPTY and start.restore is None:
        latents.origin = origin
    return latents
