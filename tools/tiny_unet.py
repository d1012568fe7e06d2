"""Train the tiny UNet by denoising latents (v-prediction, arXiv:2202.00512)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from tools.shapes import Scene, render
from tools.tiny_model import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    POSITIONS,
    WIDTH,
    build_scheduler,
)
from tools.tiny_text import Vocabulary
from tools.tiny_training import Training, to_tensor, training_scenes
from tools.wording import caption

POOL = 16384  # latents and encoded captions that are kept
FRESH = 4  # of them replaced every step: each is seen about eight times
EMPTY = 0.1  # share of captions replaced by the empty prompt, for guidance (arXiv:2207.12598)
MISLABELLED = 0.05  # share of captions of another scene, like wrong captions on the web


def encode_scenes(
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    words: Vocabulary,
    count: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled latents [count, 8, 8, 8] of new scenes, and their captions [count, 77, C]."""
    scenes = training_scenes(rng)
    pairs = [next(scenes) for _ in range(count)]
    captions = [_label(asked, next(scenes)[0], rng) for asked, _ in pairs]
    pictures = to_tensor(np.stack([render(scene, rng) for _, scene in pairs]))
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        context = encoder(words.ids(captions, POSITIONS)[1]).last_hidden_state
    return latents, context


def _label(asked: Scene, other: Scene, rng: np.random.Generator) -> str:
    """Return the caption to train with: the one asked for, an empty one, or another scene's.

    If captions were always true, the model would trust them more than the picture: image to image
    would drop the picture at any strength, and guidance would have nothing to correct.
    """
    chance = rng.random()
    if chance < EMPTY:
        return ""
    return caption(other if chance < EMPTY + MISLABELLED else asked, rng)


def standardise(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Fold the latents' mean and each channel's scale into the VAE's 1 x 1 convolutions.

    Latents [B, C, H, W] come as the VAE gives them. Afterwards every channel has mean 0 and one
    common deviation, whose inverse becomes `scaling_factor`.
    """
    mean = latents.mean((0, 2, 3))
    scale = latents.std()
    gain = scale / latents.std((0, 2, 3))  # [C]
    with torch.no_grad():
        encode, decode = vae.quant_conv, vae.post_quant_conv
        encode.weight[:LATENT_CHANNELS] *= gain[:, None, None, None]
        encode.bias[:LATENT_CHANNELS] = (encode.bias[:LATENT_CHANNELS] - mean) * gain
        encode.bias[LATENT_CHANNELS:] += 2 * gain.log()  # log variance of the scaled latents
        decode.bias += decode.weight[:, :, 0, 0] @ mean
        decode.weight /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=1 / scale.item())


@cache
def _alpha_bar() -> torch.Tensor:
    """Return the share of the picture's variance that is left at each timestep, [1000]."""
    return build_scheduler().alphas_cumprod


def denoising_loss(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    context: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the mean squared error of v at evenly spread random timesteps."""
    alpha_bar = _alpha_bar()
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (spread * len(alpha_bar)).long()
    alpha = alpha_bar[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alpha_bar[timesteps]).sqrt()[:, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    noisy, v = alpha * latents + sigma * noise, alpha * noise - sigma * latents
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    return F.mse_loss(unet(noisy, timesteps, context).sample, v)


def train_unet(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    words: Vocabulary,
    steps: int,
    work: Path,
    seed: int,
    batch: int = 32,
    pool: int = POOL,
) -> None:
    """Train by denoising; the average of the weights stays in `unet`."""
    unet.to(memory_format=torch.channels_last).train()
    training = Training("unet", unet, steps, 1e-3, work)
    rng = np.random.default_rng([seed, 3, training.step])
    torch.manual_seed(seed + training.step)
    latents = torch.empty(pool, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    context = torch.empty(pool, POSITIONS, WIDTH, dtype=torch.float16)
    filled = 0
    for _ in training:
        # Start with some batches' worth, then add a few every step, over the oldest when full.
        count = FRESH if filled else 64 * batch
        for _ in range(0, count, batch):
            many = min(count, batch)
            place = (filled + torch.arange(many)) % pool
            new_latents, new_context = encode_scenes(vae, encoder, words, many, rng)
            latents[place], context[place] = new_latents, new_context.half()
            filled += many
        chosen = torch.randint(0, min(filled, pool), (batch,))
        training.descend(denoising_loss(unet, latents[chosen], context[chosen].float()), batch)
    training.average.copy_to(unet)
    unet.eval().requires_grad_(False)
