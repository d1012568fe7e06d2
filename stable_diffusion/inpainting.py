"""Inpainting: paint the part of a picture that a mask covers again, and keep the rest.

A UNet that is trained for it takes the mask and the picture without the masked part as channels
beside the noisy latents (arXiv:2112.10752, section 4.5). Any other UNet paints the whole picture,
and after each step what is outside the mask is replaced by the picture with as much noise as the
next step begins with (RePaint, arXiv:2201.09865, equation 8, without resampling).
"""

import mlx.core as mx
import numpy as np

from .denoising import Restore
from .sampler.schedule import CLEAN, Step


def shrink_mask(mask: np.ndarray, factor: int) -> mx.array:
    """Return the mask of latents, booleans [1, h, w, 1], for a mask of pixels, booleans [H, W].

    As in diffusers, a latent has the value of one pixel, the first of its `factor` × `factor`.
    """
    return mx.array(mask[::factor, ::factor])[None, :, :, None]


def hide_masked(image: mx.array, mask: np.ndarray) -> mx.array:
    """Return a picture [H, W, 3] in [-1, 1] that is mid-grey, 0, where `mask` [H, W] is true."""
    return mx.where(mx.array(mask)[..., None], 0.0, image)


def join_channels(mask: mx.array, masked: mx.array) -> mx.array:
    """Return what an inpainting UNet takes after the noisy latents: [1, h, w, 1 + C].

    Args:
        mask: of latents, booleans [1, h, w, 1].
        masked: latents of the picture without the masked part, [1, h, w, C].
    """
    return mx.concatenate([mask.astype(masked.dtype), masked], axis=-1)


def restore_outside(mask: mx.array, latents: mx.array, noise: mx.array) -> Restore:
    """Return the function that puts the latents of the picture back outside the mask.

    They get the noise that the next step expects, always the same; after the last step none.

    Args:
        mask: of latents, booleans [1, h, w, 1].
        latents: of the picture, [1, h, w, C].
        noise: that the steps begin with, [B, h, w, C].
    """

    def restore(x: mx.array, next_step: Step | None) -> mx.array:
        level = CLEAN if next_step is None else next_step.start
        return mx.where(mask, x, level.mix(latents, noise))

    return restore
