"""The samplers of the example that this is a port of, for programs that step by hand.

A time t counts noise levels: 0 is the picture without noise, t the training timestep t - 1, and
times between two of them are interpolated. The models must predict noise. Latents have the
variance that the network sees, x / sqrt(sigma² + 1), as in `Sampler`, which has more samplers and
schedules, and noise that depends on a seed alone.
"""

import mlx.core as mx
import numpy as np

from ..config.diffusion import DiffusionConfig
from .schedule import compute_ratios


class SimpleEulerSampler:
    """Euler's method at times that are evenly spaced (Karras et al. 2022, arXiv:2206.00364).

    Args:
        config: the model's noise schedule, see `model_io.load_diffusion_config`.
    """

    def __init__(self, config: DiffusionConfig):
        ratios = compute_ratios(config)
        self._sigmas = mx.array(np.concatenate([np.zeros(1, ratios.dtype), ratios]))

    @property
    def max_time(self) -> int:
        """Return the time of the highest noise level."""
        return len(self._sigmas) - 1

    def sigmas(self, t: mx.array | float) -> mx.array:
        """Return the noise levels sigma / alpha at times t, shaped as t."""
        t = mx.array(t, dtype=mx.float32)
        below = mx.floor(t).astype(mx.int32)
        above = mx.minimum(below + 1, self.max_time)
        weight = t - below
        return self._sigmas[below] * (1 - weight) + self._sigmas[above] * weight

    def sample_prior(
        self, shape: tuple[int, ...], dtype: mx.Dtype = mx.float32, key: mx.array | None = None
    ) -> mx.array:
        """Return latents of the highest noise level, which are noise alone.

        Args:
            key: for MLX's random numbers; its global state is used if None.
        """
        sigma = self._sigmas[-1]
        noise = mx.random.normal(shape, key=key)
        return (noise * sigma * mx.rsqrt(sigma.square() + 1)).astype(dtype)

    def add_noise(self, x: mx.array, t: mx.array | float, key: mx.array | None = None) -> mx.array:
        """Return latents x with the noise of time t added."""
        sigma = self.sigmas(t)
        noise = mx.random.normal(x.shape, key=key)
        return (x + noise * sigma) * mx.rsqrt(sigma.square() + 1)

    def timesteps(
        self, num_steps: int, start_time: float | None = None, dtype: mx.Dtype = mx.float32
    ) -> list[tuple[mx.array, mx.array]]:
        """Return the times (t, t_prev) at which each step starts and ends.

        Args:
            start_time: of the first step; `max_time` if None.

        Raises:
            ValueError: if it is not above 0 and at most `max_time`.
        """
        start = self.max_time if start_time is None else start_time
        if not 0 < start <= self.max_time:
            raise ValueError(f"start_time must be above 0, at most {self.max_time}, got {start}")
        times = mx.linspace(start, 0, num_steps + 1).astype(dtype)
        return [(times[i], times[i + 1]) for i in range(num_steps)]

    def step(
        self, eps_pred: mx.array, x_t: mx.array, t: mx.array | float, t_prev: mx.array | float
    ) -> mx.array:
        """Return the latents at time t_prev, from x_t at time t and the noise predicted in it."""
        sigma, sigma_prev = self._sigmas_like(eps_pred, t, t_prev)
        x = x_t * mx.sqrt(sigma.square() + 1) + eps_pred * (sigma_prev - sigma)
        return x * mx.rsqrt(sigma_prev.square() + 1)

    def _sigmas_like(
        self, x: mx.array, t: mx.array | float, t_prev: mx.array | float
    ) -> tuple[mx.array, mx.array]:
        """Return the noise levels of both times in the type of x."""
        return self.sigmas(t).astype(x.dtype), self.sigmas(t_prev).astype(x.dtype)


class SimpleEulerAncestralSampler(SimpleEulerSampler):
    """Euler's method with fresh noise in every step; otherwise as `SimpleEulerSampler`."""

    def step(
        self,
        eps_pred: mx.array,
        x_t: mx.array,
        t: mx.array | float,
        t_prev: mx.array | float,
        key: mx.array | None = None,
    ) -> mx.array:
        """Return the latents at time t_prev: step to a lower level, and add noise up to it.

        Args:
            key: for MLX's random numbers; its global state is used if None.
        """
        sigma, sigma_prev = self._sigmas_like(eps_pred, t, t_prev)
        variance, variance_prev = sigma.square(), sigma_prev.square()
        variance_up = variance_prev * (variance - variance_prev) / variance
        sigma_down = mx.sqrt(variance_prev - variance_up)
        x = x_t * mx.sqrt(variance + 1) + eps_pred * (sigma_down - sigma)
        noise = mx.random.normal(x.shape, key=key).astype(x.dtype)
        return (x + noise * mx.sqrt(variance_up)) * mx.rsqrt(variance_prev + 1)
