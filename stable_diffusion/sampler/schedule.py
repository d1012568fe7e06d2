"""Noise schedules: the timestep and the noise levels of each step.

Latents keep the variance that the network sees: x = alpha · x_0 + sigma · noise with
alpha² + sigma² = 1. The papers give a noise level as ᾱ = alpha² (DDPM, arXiv:2006.11239) or as the
ratio sigma / alpha (Karras et al. 2022, arXiv:2206.00364). Both are float32 numbers here, rounded
as in diffusers, because its schedules are the reference.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..config.diffusion import SPACINGS, DiffusionConfig
from .noise_levels import interpolate_timesteps, place_levels


@dataclass(frozen=True)
class Level:
    """A noise level: the amounts of picture and noise in x = alpha · x_0 + sigma · noise."""

    alpha: float
    sigma: float

    @classmethod
    def from_alpha_bar(cls, alpha_bar: float) -> "Level":
        """Return the level with alpha² = `alpha_bar`."""
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @classmethod
    def from_ratio(cls, ratio: float) -> "Level":
        """Return the level with sigma / alpha = `ratio`."""
        alpha = 1 / math.sqrt(ratio**2 + 1)
        return cls(alpha, ratio * alpha)

    @property
    def ratio(self) -> float:
        """Return sigma / alpha."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """Return log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return math.log(self.alpha / self.sigma)

    def mix(self, x_0: mx.array, noise: mx.array) -> mx.array:
        """Return latents at this level."""
        return self.alpha * x_0 + self.sigma * noise


CLEAN = Level(alpha=1.0, sigma=0.0)


@dataclass(frozen=True)
class Step:
    """One step of a schedule: one call of the network."""

    timestep: float  # the network's input
    start: Level  # of the latents that the network sees
    end: Level  # of the latents that the step returns
    # What only some samplers use:
    order: int = 1  # of the solver; a step of two calls is one of order 1 and one of order 2
    adds_noise: bool = True  # if the sampler does
    next_timestep: int | None = None  # tcd: of the next step; None in the last one
    before: Level = CLEAN  # pndm: the level one step before `start`
    weights: tuple[float, ...] = ()  # lms: of this noise, the one before, …


@dataclass(frozen=True)
class Schedule:
    """The steps of one picture, noisiest first."""

    steps: tuple[Step, ...]
    initial_sigma: float = 1.0  # standard deviation of the first latents, which are noise alone
    # Steps that the caller asked for, and how many of `steps` each of them is. The last one may
    # need fewer.
    num_steps: int | None = None  # None: as many as there are
    calls_per_step: int = 1

    def __len__(self) -> int:
        """Return the number of steps, which is the number of calls of the network."""
        return len(self.steps)

    def last(self, num_steps: int) -> "Schedule":
        """Return a schedule of the last steps, to start from a picture with noise added.

        Args:
            num_steps: how many of those that the caller asked for.
        """
        total = len(self.steps) if self.num_steps is None else self.num_steps
        skipped = max(total - num_steps, 0) * self.calls_per_step
        return replace(self, steps=self.steps[skipped:], num_steps=min(num_steps, total))


def compute_alphas_bar(config: DiffusionConfig) -> np.ndarray:
    """Return ᾱ of every training timestep, [num_train_timesteps] float32."""
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":  # linear in the square root
        betas = _linspace(start**0.5, end**0.5, config.num_train_timesteps) ** 2
    else:
        betas = _linspace(start, end, config.num_train_timesteps)
    alphas = _cumulative_product(np.float32(1) - betas)
    if config.rescale_betas_zero_snr:
        # Shift and scale √ᾱ so that the last one is 0 (arXiv:2305.08891, algorithm 1).
        roots = np.sqrt(alphas)
        alphas = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        # As diffusers does, compute the betas from these and then ᾱ again: close to 1 the rounding
        # makes a difference.
        betas = np.float32(1) - np.append(alphas[:1], alphas[1:] / alphas[:-1])
        alphas = _cumulative_product(np.float32(1) - betas)
    return alphas


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """Return the same numbers as `torch.linspace` in float32.

    It counts each half from its own end, and rounds every number once.
    """
    first, last = np.float32(start), np.float32(end)
    step, i = np.float64((last - first) / np.float32(n - 1)), np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)


def _cumulative_product(alphas: np.ndarray) -> np.ndarray:
    """Return the cumulative products, float32.

    As in PyTorch they are computed in float64 and rounded at the end: the first ones are so close
    to 1 that other rounding would change the noise levels.
    """
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def compute_ratios(config: DiffusionConfig) -> np.ndarray:
    """Return sigma / alpha of every training timestep, [num_train_timesteps] float32, rising."""
    alphas = compute_alphas_bar(config)
    if config.rescale_betas_zero_snr:
        alphas[-1] = 2**-24  # instead of 0, so that the last ratio is finite: 4096
    return np.sqrt((np.float32(1) - alphas) / alphas)


def space_timesteps(config: DiffusionConfig, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling timesteps, by the spacings of arXiv:2305.08891, table 2."""
    n = config.num_train_timesteps
    if config.timestep_spacing == "trailing":
        # From the end in equal steps; the slice drops an extra one that rounding may add.
        return np.arange(n, 0, -n / num_steps)[:num_steps].round() - 1
    if config.timestep_spacing == "leading":
        return np.arange(num_steps)[::-1] * (n // num_steps) + config.steps_offset
    return np.linspace(0, n - 1, num_steps)[::-1]


def make_euler_schedule(
    config: DiffusionConfig, num_steps: int, timesteps: Sequence[int] | None = None
) -> Schedule:
    """Return a schedule at the spaced timesteps, or of levels between the first and last of them.

    Args:
        timesteps: those of the steps, in place of the config's schedule.
    """
    all_ratios = compute_ratios(config)
    times = space_timesteps(config, num_steps) if timesteps is None else np.array(timesteps)
    times = times.astype(np.float32)
    ratios = np.interp(times, np.arange(len(all_ratios)), all_ratios)
    if timesteps is None and config.schedule not in SPACINGS:
        ratios = place_levels(config, num_steps, all_ratios, ratios[0], ratios[-1])
        times = interpolate_timesteps(ratios, all_ratios)
    steps = chain_levels(times, map(Level.from_ratio, ratios.astype(np.float32).tolist()))
    # With leading spacing the first level is well below the noisiest of training. The first latents
    # are noise alone even so, of standard deviation 1.
    initial_sigma = 1.0 if config.timestep_spacing == "leading" else steps[0].start.sigma
    return Schedule(steps, initial_sigma)


def make_dpm_schedule(
    config: DiffusionConfig, num_steps: int, timesteps: Sequence[int] | None = None
) -> Schedule:
    """Return a schedule at whole timesteps, or of levels between all those of the training.

    Args:
        timesteps: those of the steps, in place of the config's schedule.
    """
    all_ratios = compute_ratios(config)
    if timesteps is None and config.schedule not in SPACINGS:
        highest, lowest = float(all_ratios[-1]), float(all_ratios[0])
        ratios = place_levels(config, num_steps, all_ratios, highest, lowest)
        times = interpolate_timesteps(ratios, all_ratios)
        # As in diffusers, which rounds only those of Karras' levels.
        is_cut = config.schedule in ("exponential", "beta")
        times = np.floor(times) if is_cut else times.round()
    else:
        times = space_dpm_timesteps(config, num_steps) if timesteps is None else np.array(timesteps)
        ratios = np.interp(times, np.arange(len(all_ratios)), all_ratios)
    return Schedule(chain_levels(times, map(Level.from_ratio, ratios.astype(np.float32).tolist())))


def space_dpm_timesteps(config: DiffusionConfig, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling whole timesteps.

    The end is one of the spaced timesteps, unless the spacing is trailing.
    """
    n_spaced = num_steps + (config.timestep_spacing != "trailing")
    return space_timesteps(config, n_spaced).round()[:num_steps]


def make_ddim_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return a schedule of steps of the same length in time, from whole timesteps.

    A step does not always end where the next one starts.

    Raises:
        ValueError: if the first timestep is beyond the training's last one.
    """
    n = config.num_train_timesteps
    timesteps = space_timesteps(config, num_steps).round().astype(int)
    if timesteps[0] >= n:
        raise ValueError(
            f"{num_steps} steps begin at timestep {timesteps[0]}, the training ends at {n - 1}: "
            "use fewer steps"
        )
    levels = [Level.from_alpha_bar(alpha_bar) for alpha_bar in compute_alphas_bar(config).tolist()]
    last = levels[0] if config.set_alpha_to_one is False else CLEAN
    length = n // num_steps
    return Schedule(
        tuple(
            Step(float(t), levels[t], levels[t - length] if t >= length else last)
            for t in timesteps.tolist()
        )
    )


def make_lcm_schedule(
    config: DiffusionConfig, num_steps: int, timesteps: Sequence[int] | None = None
) -> Schedule:
    """Return a schedule at timesteps of the distillation (arXiv:2310.04378, section 4.3).

    Args:
        timesteps: those of the steps, in place of the distillation's.
    """
    original = min(config.original_inference_steps, config.num_train_timesteps)
    times = np.arange(original, 0, -1) * (config.num_train_timesteps // original) - 1
    times = times[np.linspace(0, original, num_steps, endpoint=False).astype(int)]
    if timesteps is not None:
        times = np.array(timesteps)
    levels = map(Level.from_alpha_bar, compute_alphas_bar(config)[times].tolist())
    *steps, last = chain_levels(times, levels)
    # It draws no noise, as in diffusers: a second pass draws the next from the same stream.
    return Schedule((*steps, replace(last, adds_noise=False)))


def chain_levels(timesteps: np.ndarray, levels: Iterable[Level]) -> tuple[Step, ...]:
    """Return steps that end where the next one starts; the last one ends without noise."""
    starts = tuple(levels)
    times = timesteps.astype(np.float32).tolist()
    return tuple(map(Step, times, starts, (*starts[1:], CLEAN)))


def ensure_one_step(num_steps: int, strength: float) -> int:
    """Return `num_steps`, or more with a warning, so that `strength` of them is at least one."""
    if int(num_steps * strength) > 0:
        return num_steps
    raised = math.ceil(1 / strength)
    raised += int(raised * strength) == 0  # 1 / strength was rounded down
    warnings.warn(
        f"{num_steps} steps at strength {strength} are less than one: 1 step is run, the last of "
        f"{raised}",
        stacklevel=4,
    )
    return raised
