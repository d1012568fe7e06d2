"""The step functions of the samplers: latents at one noise level → latents at the next.

All of them get x_0 and the noise, as the network estimates them, and differ in how they combine the
two. They are pure functions, and equal the steps of diffusers' schedulers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from ..config.diffusion import DiffusionConfig
from .schedule import CLEAN, Level, Step


class Estimate(NamedTuple):
    """The network's estimate of x_0, and the noise level that it was made at."""

    x_0: mx.array
    level: Level


@dataclass(frozen=True)
class StepInput:
    """The input of a step function. All arrays have the shape of latents, [B, h, w, C]."""

    x: mx.array  # at the level `step.start`
    x_0: mx.array  # the network's estimate of the picture in x
    noise: mx.array  # the network's estimate of the noise in x
    step: Step
    config: DiffusionConfig
    previous: Estimate | None = None  # of the step before; None in the first step
    fresh: mx.array | None = None  # standard normal noise, for samplers that add some
    eta: float | None = None  # how much noise a step adds, for samplers that take it

    def require_fresh(self) -> mx.array:
        """Return the fresh noise.

        Raises:
            ValueError: if there is none.
        """
        if self.fresh is None:
            raise ValueError("this sampler adds noise in every step: give `fresh`")
        return self.fresh


def split_into_x_0_and_noise(
    x: mx.array, prediction: mx.array, level: Level, prediction_type: str
) -> tuple[mx.array, mx.array]:
    """Return x_0 and noise of x = alpha · x_0 + sigma · noise.

    The prediction is one of the two or the velocity alpha · noise - sigma · x_0 (Salimans & Ho
    2022, arXiv:2202.00512, appendix D).
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (x - alpha * prediction) / sigma
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def euler_step(at: StepInput) -> mx.array:
    """Mix the same x_0 and noise at the next level.

    On latents of constant variance that is DDIM (Song et al. 2020, arXiv:2010.02502, equation 12
    with σ = 0); on x / alpha, Euler's method (Karras et al. 2022, algorithm 2 without churn).
    """
    return at.step.end.mix(at.x_0, at.noise)


def ddim_step(at: StepInput) -> mx.array:
    """Mix x_0 and noise at the next level, a part of the noise fresh (DDIM, equations 12 and 16).

    With eta 0 none of it is, and with eta 1 as much as in DDPM.
    """
    if not at.eta:
        return euler_step(at)
    start, end = at.step.start, at.step.end
    added = at.eta * end.sigma / start.sigma * (1 - (start.alpha / end.alpha) ** 2) ** 0.5
    kept = (end.sigma**2 - added**2) ** 0.5
    return end.alpha * at.x_0 + kept * at.noise + added * at.require_fresh()


def compute_ancestral_ratios(ratio: float, next_ratio: float) -> tuple[float, float]:
    """Return the ratio to step down to, and the ratio of noise that leads up to `next_ratio`."""
    up = (next_ratio**2 * (ratio**2 - next_ratio**2) / ratio**2) ** 0.5
    return (next_ratio**2 - up**2) ** 0.5, up


def euler_ancestral_step(at: StepInput) -> mx.array:
    """Step by Euler's method below the next level, and add fresh noise to come back up to it."""
    start, end = at.step.start, at.step.end
    down, up = compute_ancestral_ratios(start.ratio, end.ratio)
    return end.alpha * (at.x_0 + down * at.noise + up * at.require_fresh())


def dpm_2m_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    x_0 is extrapolated to the middle of the step along the line through the previous estimate. The
    first step, which has no previous estimate, and the last one are of the first order.
    """
    x_0, previous, start, end = at.x_0, at.previous, at.step.start, at.step.end
    if previous is not None and end != CLEAN:
        length = end.log_snr - start.log_snr
        previous_length = start.log_snr - previous.level.log_snr
        x_0 = x_0 + (x_0 - previous.x_0) * (length / (2 * previous_length))
    return end.mix(x_0, (at.x - start.alpha * x_0) / start.sigma)


def lcm_step(at: StepInput) -> mx.array:
    """Step by multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, algorithm 2)."""
    # The boundary condition of a consistency function: it is x itself at time 0 (appendix D).
    time, sigma_data = at.step.timestep * at.config.timestep_scaling, 0.5
    skip = sigma_data**2 / (time**2 + sigma_data**2)
    out = time / (time**2 + sigma_data**2) ** 0.5
    return at.step.end.mix(skip * at.x + out * at.x_0, at.require_fresh())
