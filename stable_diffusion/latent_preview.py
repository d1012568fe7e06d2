"""Previews of unfinished pictures: latents → RGB by a cheap linear map, or by a tiny VAE.

The pixels of a latent are, to a first approximation, a linear function of that latent and its eight
neighbours. The function is fitted to the model's own decoder by least squares, so that it suits any
VAE and needs no numbers in this file. To fit it some small pictures are decoded, once; a preview
then takes one matrix product.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from numpy import fft
from numpy.random import default_rng

from .images.arrays import to_uint8
from .vae_strips import Vae, decode

SIDE = 16  # of the squares of latents that are decoded for the fit, one per two channels
RIDGE = 1e-3  # penalty of the fit, relative to the variance of a latent, which is 1

Decode = Callable[[mx.array], mx.array]  # [B, h, w, C] → [B, f·h, f·w, 3] in [0, 1]


class LinearDecoder:
    """A linear function from latents to pictures, fitted to a decoder.

    Args:
        decode: the decoder, `StableDiffusion.decode`.
        channels: the channels C of the latents.
        factor: the width and height f, in pixels, of the patch that a latent stands for.
    """

    def __init__(self, decode: Decode, channels: int, factor: int):
        self._factor = factor
        inputs, targets = [], []
        n_fields = max(1, channels // 2)
        for field in np.split(make_pink_noise((n_fields, SIDE, SIDE, channels)), n_fields):
            inputs.append(_stack_neighbours(field))
            targets.append(_split_into_patches(np.array(decode(mx.array(field))), factor))
        a, b = (np.concatenate(rows).astype(np.float64) for rows in (inputs, targets))
        penalty = RIDGE * len(a) * np.eye(a.shape[1])
        penalty[-1, -1] = 0  # the mean colour is free
        self._weights = np.linalg.solve(a.T @ a + penalty, a.T @ b).astype(np.float32)

    def __call__(self, latents: mx.array) -> np.ndarray:
        """Return pictures, uint8 [B, f·h, f·w, 3], of latents [B, h, w, C]."""
        b, h, w, _ = latents.shape
        f = self._factor
        patches = _stack_neighbours(np.array(latents)) @ self._weights  # [B·h·w, f·f·3]
        patches = patches.reshape(b, h, w, f, f, 3).swapaxes(2, 3)
        return to_uint8(np.nan_to_num(patches.reshape(b, h * f, w * f, 3)))


def decode_by_vae(autoencoder: Vae, latents: mx.array) -> np.ndarray:
    """Return pictures, uint8 [B, f·h, f·w, 3], of latents [B, h, w, C], decoded one by one."""
    pictures = [np.array(decode(autoencoder, each[None])) for each in latents]
    return to_uint8(np.nan_to_num(np.concatenate(pictures) / 2 + 0.5))


def make_pink_noise(shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return noise [B, h, w, C] of unit variance, the same in every call.

    Its amplitude falls with the frequency, as it does in pictures (Field 1987,
    doi:10.1364/JOSAA.4.002379), so that large shapes count as much as small ones.
    """
    b, h, w, c = shape
    frequency = np.hypot(fft.fftfreq(h)[:, None], fft.fftfreq(w)[None])
    frequency[0, 0] = 1 / max(h, w)  # the constant counts as much as the slowest wave
    white = default_rng(0).standard_normal((b, c, h, w))
    pink = fft.ifft2(fft.fft2(white) / frequency).real.transpose(0, 2, 3, 1)
    return (pink / pink.std()).astype(np.float32)


def _stack_neighbours(latents: np.ndarray) -> np.ndarray:
    """Return each latent of [B, h, w, C] with its eight neighbours and a 1: [B·h·w, 9·C + 1]."""
    b, h, w, c = latents.shape
    padded = np.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    rows = np.concatenate([*shifted, np.ones((b, h, w, 1), latents.dtype)], axis=-1)
    return rows.reshape(-1, 9 * c + 1)


def _split_into_patches(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Split pictures [B, f·h, f·w, 3] into patches of f×f pixels: [B·h·w, f·f·3]."""
    b, height, width, _ = pictures.shape
    shape = (b, height // factor, factor, width // factor, factor, 3)
    return pictures.reshape(shape).swapaxes(2, 3).reshape(-1, factor * factor * 3)
