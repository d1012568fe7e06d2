"""`StableDiffusion` and `StableDiffusionXL`: from text, or a picture and text, to latents.

Nothing is computed before the caller evaluates it (`cpu`: asks for it). So a script decides what is
in memory: evaluate `Denoising.inputs` and text encoders can go, the last latents and the UNet can.
"""

import os
import warnings
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import check_arguments
from .adapters.lora import load_lora, unload_lora
from .adapters.textual_inversion import load_embedding
from .conditioning import (
    LAST,
    PENULTIMATE,
    PLAIN,
    Reader,
    TextOptions,
    Texts,
    embed_pairs,
    require_fit,
    size_ids,
)
from .config.model import ModelConfig
from .denoising import Denoising, Steps, denoise, make_predict, resolve_defaults
from .device import cpu_kernels
from .model_io.loaders import (
    DEFAULT_MODEL,
    Key,
    load_autoencoder,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    open_model,
)
from .model_io.weights import read_weights
from .precision import in_float32
from .quantize import is_quantized, quantize_text_encoder, quantize_unet
from .sampler.noise import NoiseStream, draw_latents, picture_streams
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule, enough_steps
from .vae_strips import decode


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x.

    Args:
        model: a known name (`config.MODELS`), a folder in the layout of diffusers, a safetensors
            file in the original layout, or a Hub repository, `org/name` or `org/name@revision`.
        float16: compute text encoder and UNet in half precision (on a Linux CPU: only store their
            weights so). The VAE is always in float32.
        sampler: one of `diffusion_config.SAMPLERS`; the model's own where None.
        schedule: one that `SAMPLERS` lists for it: the spacing of the timesteps, or "karras"; the
            model's own where None.
        vae: where to take another VAE from: a model, a VAE's folder or repository, or a file.
        prediction_type: "epsilon", "v_prediction" or "sample", where the model's files do not say.

    Raises:
        OSError: the model, or a file of it, is not to be had.
        ValueError: it is not supported, broken, or of the other class.
    """

    # (attribute, component of the model)
    _TEXT_ENCODERS = (("text_encoder", "text_encoder"),)
    _TOKENIZERS = (("tokenizer", "tokenizer"),)

    def __init__(
        self,
        model: Key = DEFAULT_MODEL,
        float16: bool = False,
        sampler: str | None = None,
        *,
        schedule: str | None = None,
        vae: Key | None = None,
        prediction_type: str | None = None,
    ):
        check_arguments.check_model(model, vae, sampler, schedule, prediction_type)
        if cpu_kernels.is_used():
            cpu_kernels.keep_freed_memory()
        self.model = opened = open_model(model, vae=vae, prediction_type=prediction_type)
        self.float16 = float16
        self.config = opened.config
        if isinstance(self, StableDiffusionXL) is not self.config.is_xl:
            right = pipeline_class(self.config).__name__
            raise ValueError(f"{opened.name} is a {right} model: use the class {right}")
        self.dtype = cpu_kernels.compute_dtype(mx.float16 if float16 else mx.float32)
        self.diffusion_config = self.config.diffusion
        self.sampler = Sampler.for_model(self.diffusion_config, sampler, schedule)
        for attribute, name in self._TOKENIZERS:
            tokenizer = load_tokenizer(opened, f"{name}_vocab", f"{name}_merges")
            setattr(self, attribute, tokenizer)
        for attribute, name in self._TEXT_ENCODERS:
            setattr(self, attribute, load_text_encoder(opened, float16, name))
        for reader in self._readers():
            require_fit(*reader, opened.name)
        self.unet = load_unet(opened, float16)
        self.autoencoder = load_autoencoder(opened, float16)

    def ensure_models_are_loaded(self) -> None:
        """Read all weights now."""
        for network in (*self._text_encoders(), self.unet, self.autoencoder):
            read_weights(network)

    def quantize(self) -> None:
        """Keep linear layers in 4 bits (text encoders) and 8 (UNet), the UNet's rest in float16.

        A network that is quantized already stays as it is, with a warning.
        """
        networks = [(self.unet, quantize_unet)]
        networks += [(network, quantize_text_encoder) for network in self._text_encoders()]
        if any(is_quantized(network) for network, _ in networks):
            warnings.warn(
                f"{self.config.name} is quantized already, and stays as it is", stacklevel=2
            )
        for network, quantize in networks:
            if not is_quantized(network):
                quantize(network)

    def use_float32(self) -> None:
        """Load UNet and text encoders again, those that are still here, to compute in float32.

        For what half precision cannot hold. See `precision`; what has begun needs a `restart`.
        """
        self.float16, self.dtype = False, mx.float32
        for attribute, component in self._components():
            old = getattr(self, attribute)
            setattr(self, attribute, in_float32(self.model, component, old))

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> None:
        """Add a LoRA file to those that UNet and text encoders have; see `lora.load_lora`."""
        scale = check_arguments.check_lora(path, scale)
        load_lora(self._lora_networks(), path, scale, self.dtype)

    def unload_lora(self) -> None:
        """Take every LoRA off: the networks are, to the bit, what they were without."""
        unload_lora(self._lora_networks())

    def load_embedding(self, name: str, path: str | os.PathLike[str]) -> None:
        """Let `name` in prompts mean a textual inversion; see `load_embedding` there."""
        check_arguments.check_embedding(name, path)
        load_embedding(name, path, self._readers())

    def free_text_encoders(self) -> None:
        """Drop the text encoders. Evaluate what comes of them (`Denoising.inputs`) first."""
        for attribute, _ in self._TEXT_ENCODERS:
            delattr(self, attribute)

    def generate_latents(
        self,
        text: Texts,
        n_images: int = 1,
        num_steps: int | None = None,
        cfg_weight: float | None = None,
        negative_text: check_arguments.OptionalTexts = "",
        latent_size: tuple[int, int] | None = None,
        seed: int | Sequence[int] | None = None,
        guidance_rescale: float = 0.0,
        *,
        long_prompt: bool = False,
        prompt_weights: bool = False,
        clip_skip: int = 0,
    ) -> Denoising:
        """Latents of pictures of `text`.

        Args:
            text: the prompt, or one for each picture. What is beyond 77 tokens is dropped, with a
                warning, but for `long_prompt`.
            n_images: how many pictures; picture i has the seed `seed + i` and comes out the same
                whatever the others are.
            num_steps: steps of denoising.
            cfg_weight: classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598). At or
                below 1 there is none, and the negative text is not used.
            negative_text: what to steer away from; for each picture, too. None is no text.
            latent_size: height and width in latents.
            seed: drawn where it is None, see `Denoising.seed`; or one for each picture.
            guidance_rescale: how much of the contrast that guidance adds is taken back, in [0, 1]
                (arXiv:2305.08891, section 3.4).
            long_prompt: read all of the prompts, in windows of 75 tokens: as many for each as the
                longest needs.
            prompt_weights: let brackets in the prompts weigh, as `prompt.parse_weights` says.
            clip_skip: how many layers to leave out at the end of the text encoders.

        What is None is as the model's own defaults say.

        Raises:
            TypeError, ValueError: if an argument is of the wrong kind, or out of its range.
        """
        n_images = check_arguments.check_integer("n_images", n_images, low=1)
        texts = check_arguments.check_prompts(text, negative_text, n_images)
        num_steps, guidance = self._settled(num_steps, cfg_weight, guidance_rescale)
        latent_size = check_arguments.check_size(latent_size, self.config)
        options = TextOptions.of(self.config, long_prompt, prompt_weights, clip_skip)
        seed, streams = picture_streams(check_arguments.check_seed(seed), n_images)

        schedule = self.sampler.schedule(num_steps)
        shape = (*latent_size, self.config.autoencoder.latent_channels)
        x = mx.array(draw_latents(streams, shape)) * schedule.initial_sigma
        return self._denoise(x, schedule, texts, options, guidance, streams, seed)

    def generate_latents_from_image(
        self,
        image: mx.array | np.ndarray,
        text: Texts,
        n_images: int = 1,
        strength: float = 0.8,
        num_steps: int | None = None,
        cfg_weight: float | None = None,
        negative_text: check_arguments.OptionalTexts = "",
        seed: int | Sequence[int] | None = None,
        guidance_rescale: float = 0.0,
        *,
        long_prompt: bool = False,
        prompt_weights: bool = False,
        clip_skip: int = 0,
    ) -> Denoising:
        """Latents of pictures of `text` that start from `image` (SDEdit, arXiv:2108.01073).

        Args:
            image: [H, W, 3] floats in [-1, 1], evaluated now; sides are multiples of the factor.
            strength: how much of the schedule is run, in [0, 1]. 0 gives the picture as the VAE
                renders it. Where `int(num_steps * strength)` is 0 more steps are taken, so that
                one is run, with a warning.

        The others are as in `generate_latents`.

        Raises:
            TypeError, ValueError: if an argument is of the wrong kind, or out of its range.
        """
        image = check_arguments.check_image(image, self.config.autoencoder.factor)
        n_images = check_arguments.check_integer("n_images", n_images, low=1)
        texts = check_arguments.check_prompts(text, negative_text, n_images)
        num_steps, guidance = self._settled(num_steps, cfg_weight, guidance_rescale)
        strength = check_arguments.check_number("strength", strength, 0, 1)
        options = TextOptions.of(self.config, long_prompt, prompt_weights, clip_skip)
        seed, streams = picture_streams(check_arguments.check_seed(seed), n_images)

        mean, _ = self.autoencoder.encode(image[None])  # the most likely latents, without noise
        x = mx.repeat(mean, n_images, axis=0)
        if strength == 0:
            return Denoising(lambda: (step for step in [(x, x)]), 1, [x], seed)
        num_steps = enough_steps(num_steps, strength)
        schedule = self.sampler.schedule(num_steps).last(int(num_steps * strength))
        noise = mx.array(draw_latents(streams, mean.shape[1:]))
        x = schedule.steps[0].start.mix(x, noise)
        latents = self._denoise(x, schedule, texts, options, guidance, streams, seed)
        latents.inputs.append(mean)
        return latents

    def decode(self, x_t: mx.array, tiled: bool | None = None) -> mx.array:
        """Pictures [B, f·h, f·w, 3] in [0, 1] of latents [B, h, w, C]; f is the VAE's factor.

        `tiled` decodes in strips: the same in less memory, but computed now, not lazily. None
        does so above 768×768 pixels.
        """
        x = self.decode_unclipped(x_t, tiled)
        # What is infinite must not end up as white or black.
        return mx.where(mx.isfinite(x), mx.clip(x, 0, 1), mx.nan)

    def decode_unclipped(self, x_t: mx.array, tiled: bool | None = None) -> mx.array:
        """Return what `decode` does, before what is below 0 or above 1 is cut off."""
        x_t = check_arguments.check_latents(x_t, self.config.autoencoder.latent_channels)
        return decode(self.autoencoder, x_t, tiled) / 2 + 0.5

    def _text_encoders(self) -> list[nn.Module]:
        if not all(hasattr(self, attribute) for attribute, _ in self._TEXT_ENCODERS):
            raise ValueError("the text encoders have been freed: make a new object for more text")
        return [getattr(self, attribute) for attribute, _ in self._TEXT_ENCODERS]

    def _lora_networks(self) -> dict[str, nn.Module]:
        return {component: getattr(self, attribute) for attribute, component in self._components()}

    def _components(self) -> list[tuple[str, str]]:
        """UNet and text encoders, those that are still here: attribute and component."""
        components = (*self._TEXT_ENCODERS, ("unet", "unet"))
        return [(attribute, name) for attribute, name in components if hasattr(self, attribute)]

    def _settled(self, *given) -> tuple[int, tuple[float, float]]:
        return resolve_defaults(self.config.defaults_with(self.sampler.name), *given)

    def _readers(self) -> list[Reader]:
        """Each tokenizer with its text encoder."""
        tokenizers = (getattr(self, attribute) for attribute, _ in self._TOKENIZERS)
        return list(zip(tokenizers, self._text_encoders(), strict=True))

    def _embed_text(
        self, text: Texts, negative_text: Texts | None, options: TextOptions = PLAIN
    ) -> tuple[mx.array, mx.array | None]:
        """Embeddings [B, N, D], and the pooled ones [B, P] if the UNet takes any.

        [2B, …] where there are negative texts, whose rows come second. N is 77, or a multiple of
        it where there are more windows.
        """
        return embed_pairs(text, negative_text, self._readers(), LAST, options)[0], None

    def _denoise(
        self,
        x: mx.array,
        schedule: Schedule,
        texts: tuple[Sequence[str], Sequence[str]],
        options: TextOptions,
        guidance: tuple[float, float],
        streams: Sequence[NoiseStream],
        seed: int,
    ) -> Denoising:
        """The steps of `schedule` from latents `x` [B, h, w, C] at its first level."""
        text, negative_text = texts
        is_guided = guidance[0] > 1
        embeddings, pooled = self._embed_text(text, negative_text if is_guided else None, options)
        inputs = [x, embeddings]
        text_time = None
        if pooled is not None:
            size = tuple(latents * self.config.autoencoder.factor for latents in x.shape[1:3])
            text_time = (pooled, size_ids(size, len(pooled)))
            inputs.append(pooled)

        sampler = self.sampler

        def start() -> Steps:
            predict = make_predict(self.unet, embeddings, text_time, *guidance, self.dtype)
            return denoise(x, schedule, sampler, predict, streams)

        return Denoising(start, len(schedule), inputs, seed)


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL and its distilled kin, SDXL-turbo. Arguments as `StableDiffusion`."""

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
        prediction_type: str | None = None,
    ):
        super().__init__(
            model, float16, sampler, schedule=schedule, vae=vae, prediction_type=prediction_type
        )

    def _embed_text(
        self, text: Texts, negative_text: Texts | None, options: TextOptions = PLAIN
    ) -> tuple[mx.array, mx.array | None]:
        has_zeros = self.config.pipeline.force_zeros_for_empty_prompt
        return embed_pairs(text, negative_text, self._readers(), PENULTIMATE, options, has_zeros)


def pipeline_class(config: ModelConfig) -> type[StableDiffusion]:
    """The class that runs a model."""
    return StableDiffusionXL if config.is_xl else StableDiffusion
