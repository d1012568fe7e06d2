"""Embeddings of the numbers that condition the UNet: time, sizes, and for LCM the guidance."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .activations import ACTIVATIONS
from .layers import Linear


def sinusoidal_embedding(
    values: mx.array, dims: int, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> mx.array:
    """Return sines and cosines of numbers [...] at falling frequencies: [..., dims] in float32.

    Ho et al. 2020 (arXiv:2006.11239); the frequencies are those of diffusers.
    """
    half = dims // 2
    exponents = np.arange(half) / (half - freq_shift)
    # In float64: at time 999, the error of the phase is 999 times the error of the frequency.
    frequencies = mx.array(np.exp(-math.log(10_000) * exponents).astype(np.float32))
    phases = values.astype(mx.float32)[..., None] * frequencies
    sin, cos = mx.sin(phases), mx.cos(phases)
    return mx.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


def embed_guidance(weight: float, dims: int) -> mx.array:
    """Return sines, then cosines, of a weight of guidance, less 1 and times 1000: [1, dims].

    It is in float32; the last number is 0 if `dims` is odd. Luo et al. 2023 (arXiv:2310.04378),
    as diffusers' pipelines compute it.
    """
    half = dims // 2
    frequencies = np.exp(-math.log(10_000) * np.arange(half) / (half - 1))
    # In float64: the error of a phase is some thousand times the error of its frequency.
    phases = (weight - 1) * 1000 * frequencies
    embedding = np.concatenate([np.sin(phases), np.cos(phases), np.zeros(dims % 2)])
    return mx.array(embedding.astype(np.float32))[None]


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron that follows a sinusoidal embedding."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: str, condition: int | None = None
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        if condition is not None:  # so many numbers of another condition are added to the input
            self.cond_proj = Linear(condition, in_channels, bias=False)
        self.linear_1 = Linear(in_channels, out_channels)
        self.linear_2 = Linear(out_channels, out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self.activation(self.linear_1(x)))
