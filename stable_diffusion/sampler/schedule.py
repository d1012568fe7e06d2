"""Noise schedules: the times and noise levels that a picture goes through.

Latents keep the variance that the network sees: x = alpha · x_0 + sigma · noise, where
alpha² + sigma² = 1. What the papers call the noise level of a schedule is then ᾱ = alpha²
(DDPM, arXiv:2006.11239) or the ratio sigma / alpha (Karras et al. 2022, arXiv:2206.00364).
Both are float32 numbers with the roundings of diffusers, whose schedules these are.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..config.diffusion import DiffusionConfig


@dataclass(frozen=True)
class Level:
    """A noise level: how much of the picture and of the noise there is in x."""

    alpha: float
    sigma: float

    @classmethod
    def of_alpha_bar(cls, alpha_bar: float) -> "Level":
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @classmethod
    def of_ratio(cls, ratio: float) -> "Level":
        alpha = 1 / math.sqrt(ratio**2 + 1)
        return cls(alpha, ratio * alpha)

    @property
    def ratio(self) -> float:
        """Noise to one of picture."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return math.log(self.alpha / self.sigma)

    def mix(self, x_0: mx.array, noise: mx.array) -> mx.array:
        """Latents at this level."""
        return self.alpha * x_0 + self.sigma * noise


CLEAN = Level(alpha=1.0, sigma=0.0)


@dataclass(frozen=True)
class Step:
    """One step of a schedule."""

    timestep: float  # what the network is told
    start: Level  # of the latents that it sees
    end: Level  # of those that the step makes


@dataclass(frozen=True)
class Schedule:
    """The steps of one picture, noisiest first."""

    steps: tuple[Step, ...]
    initial_sigma: float = 1.0  # the standard deviation of the first latents, made of noise alone

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.steps)

    def last(self, num_steps: int) -> "Schedule":
        """The last steps only, which begin with a picture and noise at their first level."""
        return replace(self, steps=self.steps[-num_steps:])


def alphas_bar(config: DiffusionConfig) -> np.ndarray:
    """ᾱ of every training timestep, [num_train_timesteps] float32."""
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":  # linear in the square root
        betas = _linspace(start**0.5, end**0.5, config.num_train_timesteps) ** 2
    else:
        betas = _linspace(start, end, config.num_train_timesteps)
    alphas = _cumulative_product(np.float32(1) - betas)
    if config.rescale_betas_zero_snr:
        # Shift and stretch until the last one is 0 (arXiv:2305.08891, algorithm 1).
        roots = np.sqrt(alphas)
        alphas = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        # diffusers goes back to betas and forth again, and the rounding shows near to 1.
        betas = np.float32(1) - np.append(alphas[:1], alphas[1:] / alphas[:-1])
        alphas = _cumulative_product(np.float32(1) - betas)
    return alphas


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """`torch.linspace` in float32: each half is counted from its own end, and rounded once."""
    first, last = np.float32(start), np.float32(end)
    step, i = np.float64((last - first) / np.float32(n - 1)), np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)


def _cumulative_product(alphas: np.ndarray) -> np.ndarray:
    """The first numbers are so near to 1 that their rounding shows in the noise levels.

    PyTorch keeps the running product in float64 and rounds what it stores.
    """
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def ratios(config: DiffusionConfig) -> np.ndarray:
    """sigma / alpha of every training timestep, [num_train_timesteps] float32, rising."""
    alphas = alphas_bar(config)
    if config.rescale_betas_zero_snr:
        alphas[-1] = 2**-24  # in place of 0, so that the last ratio is finite: 4096
    return np.sqrt((np.float32(1) - alphas) / alphas)


def spaced(config: DiffusionConfig, num_steps: int) -> np.ndarray:
    """[num_steps] timesteps, falling (spacings: arXiv:2305.08891, table 2)."""
    n = config.num_train_timesteps
    if config.timestep_spacing == "trailing":
        # One step at a time from the end; the slice drops the extra one that rounding may add.
        return np.arange(n, 0, -n / num_steps)[:num_steps].round() - 1
    if config.timestep_spacing == "leading":
        return np.arange(num_steps)[::-1] * (n // num_steps) + config.steps_offset
    return np.linspace(0, n - 1, num_steps)[::-1]


def karras(highest: float, lowest: float, num_steps: int, rho: float = 7.0) -> np.ndarray:
    """[num_steps] ratios, denser where they are low (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0, 1, num_steps)
    return (highest ** (1 / rho) * (1 - ramp) + lowest ** (1 / rho) * ramp) ** rho


def times_of(some: np.ndarray, all_ratios: np.ndarray) -> np.ndarray:
    """The timesteps where training had some ratios, between two of them too."""
    return np.interp(np.log(some), np.log(all_ratios), np.arange(len(all_ratios)))


def euler_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Levels at the spaced timesteps, or Karras' between the first and the last of them."""
    all_ratios = ratios(config)
    timesteps = spaced(config, num_steps).astype(np.float32)
    some = np.interp(timesteps, np.arange(len(all_ratios)), all_ratios)
    if config.use_karras_sigmas:
        some = karras(some[0], some[-1], num_steps)
        timesteps = times_of(some, all_ratios)
    steps = _chain(timesteps, map(Level.of_ratio, some.astype(np.float32).tolist()))
    # The first level of leading spacing is well below the training's last: noise stands for the
    # whole of x.
    initial_sigma = 1.0 if config.timestep_spacing == "leading" else steps[0].start.sigma
    return Schedule(steps, initial_sigma)


def dpm_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Levels at whole timesteps, or Karras' between the last and the first of the training."""
    all_ratios = ratios(config)
    if config.use_karras_sigmas:
        some = karras(float(all_ratios[-1]), float(all_ratios[0]), num_steps)
        timesteps = times_of(some, all_ratios).round()
    else:
        # The end counts as one of the spaced timesteps, but for trailing spacing.
        n_spaced = num_steps + (config.timestep_spacing != "trailing")
        timesteps = spaced(config, n_spaced).round()[:num_steps]
        some = np.interp(timesteps, np.arange(len(all_ratios)), all_ratios)
    return Schedule(_chain(timesteps, map(Level.of_ratio, some.astype(np.float32).tolist())))


def ddim_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Steps of equal length in time, from whole timesteps, wherever the next one starts.

    Raises:
        ValueError: the first timestep is beyond the training's last.
    """
    n, timesteps = config.num_train_timesteps, spaced(config, num_steps).round().astype(int)
    if timesteps[0] >= n:
        raise ValueError(
            f"{num_steps} steps begin at timestep {timesteps[0]}, the training ends at {n - 1}: "
            "take fewer"
        )
    levels = [Level.of_alpha_bar(alpha_bar) for alpha_bar in alphas_bar(config).tolist()]
    last = CLEAN if config.set_alpha_to_one else levels[0]
    length = n // num_steps
    return Schedule(
        tuple(
            Step(float(t), levels[t], levels[t - length] if t >= length else last)
            for t in timesteps.tolist()
        )
    )


def lcm_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Some of the timesteps that the model was distilled at (arXiv:2310.04378, section 4.3)."""
    original = min(config.original_inference_steps, config.num_train_timesteps)
    timesteps = np.arange(original, 0, -1) * (config.num_train_timesteps // original) - 1
    timesteps = timesteps[np.linspace(0, original, num_steps, endpoint=False).astype(int)]
    some = alphas_bar(config)[timesteps]
    return Schedule(_chain(timesteps, map(Level.of_alpha_bar, some.tolist())))


def _chain(timesteps: np.ndarray, levels: Iterable[Level]) -> tuple[Step, ...]:
    """Steps that each end where the next one starts, the last without noise."""
    starts = tuple(levels)
    times = timesteps.astype(np.float32).tolist()
    return tuple(map(Step, times, starts, (*starts[1:], CLEAN)))


MAKERS = {
    "euler": euler_schedule,
    "euler-a": euler_schedule,
    "ddim": ddim_schedule,
    "dpm++2m": dpm_schedule,
    "lcm": lcm_schedule,
}


def make_schedule(sampler: str, config: DiffusionConfig, num_steps: int) -> Schedule:
    """The schedule of exactly `num_steps` steps.

    Raises:
        ValueError: they are too few or too many, or cannot be done with this sampler.
    """
    most = config.num_train_timesteps
    if sampler == "dpm++2m":
        most -= 1  # the end may be one of them
    elif sampler == "lcm":
        most = min(most, config.original_inference_steps)
    if not 1 <= num_steps <= most:
        raise ValueError(f"steps must be from 1 to {most}, got {num_steps}")
    schedule = MAKERS[sampler](config, num_steps)
    if config.prediction_type == "epsilon" and schedule.steps[0].start.alpha == 0:
        raise ValueError(
            f"sampler {sampler} cannot begin with noise alone (rescale_betas_zero_snr) where the "
            "model predicts noise: take euler"
        )
    return schedule


def enough_steps(num_steps: int, strength: float) -> int:
    """`num_steps`, or, where `strength` of them come to none, so many that one is run."""
    if int(num_steps * strength) > 0:
        return num_steps
    raised = math.ceil(1 / strength)
    raised += int(raised * strength) == 0  # 1 / strength was rounded down
    warnings.warn(
        f"{num_steps} steps at strength {strength} come to none: 1 step is run, the last of "
        f"{raised}",
        stacklevel=3,
    )
    return raised
