"""Noise schedules and the integrators that walk down them.

Everything is told in sigmas, the standard deviation of the noise on latents of unit variance
(Karras et al. 2022, arXiv:2206.00364): x = x_0 + sigma · noise. Schedules are float32 numbers,
computed with the roundings of diffusers, whose steps these functions equal.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .config import SAMPLERS, DiffusionConfig


@dataclass(frozen=True)
class Schedule:
    """The times and noise levels that one picture goes through, noisiest first."""

    timesteps: np.ndarray  # [steps] float32, what the network is told
    sigmas: np.ndarray  # [steps + 1] float32, the last one 0
    initial_sigma: float  # the standard deviation of the first latents, made of noise alone

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.timesteps)

    def last(self, num_steps: int) -> "Schedule":
        """The last steps only, from an image and noise of their first sigma."""
        timesteps, sigmas = self.timesteps[-num_steps:], self.sigmas[-num_steps - 1 :]
        return Schedule(timesteps, sigmas, initial_sigma=float(sigmas[0]))


def training_sigmas(config: DiffusionConfig) -> np.ndarray:
    """The noise level of every training timestep, [num_train_timesteps] float32."""
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":  # linear in the square root
        betas = _linspace(start**0.5, end**0.5, config.num_train_timesteps) ** 2
    else:
        betas = _linspace(start, end, config.num_train_timesteps)
    alphas = np.float32(1) - betas
    # The first alphas are so near to 1 that their rounding shows in the sigmas. PyTorch keeps
    # the running product in float64 and rounds what it stores.
    alphas_cumprod = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
    return np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod)


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """`torch.linspace` in float32: each half is counted from its own end."""
    start, end = np.float32(start), np.float32(end)
    step = (end - start) / np.float32(n - 1)
    i = np.arange(n, dtype=np.float32)
    return np.where(i < n // 2, start + step * i, end - step * (n - 1 - i)).astype(np.float32)


def make_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """The schedule of exactly `num_steps` steps (spacings: arXiv:2305.08891, table 2).

    Raises:
        ValueError: `num_steps` is not in 1 to num_train_timesteps.
    """
    n = config.num_train_timesteps
    if not 1 <= num_steps <= n:
        raise ValueError(f"steps must be from 1 to {n}, got {num_steps}")
    if config.timestep_spacing == "trailing":
        # One step at a time from the end; the slice drops the extra one that rounding may add.
        timesteps = np.arange(n, 0, -n / num_steps)[:num_steps].round() - 1
    elif config.timestep_spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (n // num_steps) + config.steps_offset
    else:
        timesteps = np.linspace(0, n - 1, num_steps, dtype=np.float32)[::-1]
    timesteps = timesteps.astype(np.float32)

    sigmas = np.interp(timesteps, np.arange(n), training_sigmas(config))
    sigmas = np.append(sigmas, 0.0).astype(np.float32)
    initial_sigma = float(sigmas[0])
    if config.timestep_spacing == "leading":
        # Its first sigma is well below the training's last: noise stands for the whole of x.
        initial_sigma = (initial_sigma**2 + 1) ** 0.5
    return Schedule(timesteps, sigmas, initial_sigma)


def derivative(x: mx.array, prediction: mx.array, sigma: float, prediction_type: str) -> mx.array:
    """dx/dsigma where the network, seeing x / √(sigma² + 1), predicts `prediction`.

    That is the noise itself; or it follows from the velocity (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D).
    """
    if prediction_type == "epsilon":
        return prediction
    return x * (sigma / (sigma**2 + 1)) + prediction * (sigma**2 + 1) ** -0.5


def euler_step(x: mx.array, d: mx.array, sigma: float, sigma_next: float) -> mx.array:
    """Euler's method (Karras et al. 2022, algorithm 2 without churn)."""
    return x + d * (sigma_next - sigma)


def ancestral_sigmas(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(down, up): step to `down`, then add noise of `up`, to be at `sigma_next`."""
    up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    return (sigma_next**2 - up**2) ** 0.5, up


def euler_ancestral_step(
    x: mx.array, d: mx.array, sigma: float, sigma_next: float, noise: mx.array
) -> mx.array:
    """Euler's method below the next level, and fresh unit `noise` back up to it."""
    down, up = ancestral_sigmas(sigma, sigma_next)
    return x + d * (down - sigma) + noise * up


@dataclass(frozen=True)
class Sampler:
    """A noise schedule and a way to walk down it: what `sd.sampler` is."""

    config: DiffusionConfig
    name: str  # one of config.SAMPLERS

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.name!r}")

    @classmethod
    def for_model(cls, config: DiffusionConfig, name: str | None = None) -> "Sampler":
        """The sampler `name`, or the one that the model was published with."""
        if name is None:
            name = "euler-a" if config.is_ancestral else "euler"
        return cls(config, name)

    @property
    def is_ancestral(self) -> bool:
        """Whether `step` needs noise."""
        return self.name == "euler-a"

    def schedule(self, num_steps: int) -> Schedule:
        """See `make_schedule`."""
        return make_schedule(self.config, num_steps)

    def step(
        self,
        x: mx.array,
        prediction: mx.array,
        sigma: float,
        sigma_next: float,
        noise: mx.array | None = None,
    ) -> mx.array:
        """From latents at `sigma` to latents at `sigma_next`."""
        d = derivative(x, prediction, sigma, self.config.prediction_type)
        if self.is_ancestral:
            return euler_ancestral_step(x, d, sigma, sigma_next, noise)
        return euler_step(x, d, sigma, sigma_next)
