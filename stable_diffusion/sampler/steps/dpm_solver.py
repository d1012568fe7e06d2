"""Steps of DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), which combine estimates of x_0.

h is the length of a step in λ = log(alpha / sigma), which rises.
"""

import math

import mlx.core as mx

from ..schedule import CLEAN, Level
from .runge_kutta import euler_step
from .step_input import StepInput


def step_with_x_0(x: mx.array, start: Level, x_0: mx.array, end: Level) -> mx.array:
    """Return the latents at `end` of the exact solution from x at `start` for a constant x_0."""
    return end.mix(x_0, (x - start.alpha * x_0) / start.sigma)


def dpm_2m_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver++ 2M (algorithm 2).

    x_0 is extrapolated to the middle of the step along the line through the previous estimate. The
    first step, which has no previous estimate, and the last one are of the first order.
    """
    return step_with_x_0(at.x, at.step.start, _extrapolate_to_middle(at), at.step.end)


def _extrapolate_to_middle(at: StepInput) -> mx.array:
    """Return x_0 in the middle of the step, on the line through the last two estimates."""
    start, end = at.step.start, at.step.end
    if not at.estimates or end == CLEAN:
        return at.x_0
    previous = at.estimates[0]
    length = end.log_snr - start.log_snr
    previous_length = start.log_snr - previous.level.log_snr
    return at.x_0 + (at.x_0 - previous.x_0) * (length / (2 * previous_length))


def dpm_2m_sde_step(at: StepInput) -> mx.array:
    """Step by SDE-DPM-Solver++ 2M: as `dpm_2m_step`, with fresh noise (appendix B.5).

    The noise that was in x is kept by e⁻ʰ less, and fresh noise fills it up to the next level.
    """
    start, end, x_0 = at.step.start, at.step.end, _extrapolate_to_middle(at)
    if end == CLEAN:
        return x_0
    kept = math.exp(start.log_snr - end.log_snr)  # e⁻ʰ
    noise = (at.x - start.alpha * x_0) / start.sigma
    mean = end.alpha * x_0 + end.sigma * kept * noise
    # Of x_0 the mean has a share of alpha · (1 - e⁻²ʰ) and that in x: together alpha.
    return mean + end.sigma * math.sqrt(1 - kept**2) * at.require_fresh()


def dpm_3m_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver++ 3M, the multistep solver of the third order.

    x_0 is the parabola in λ through the last three estimates: its derivatives at the start of the
    step are weighted by the integrals of the exact solution (arXiv:2206.00927, appendix B).
    """
    if at.order < 3:
        return dpm_2m_step(at) if at.order == 2 else euler_step(at)
    start, end = at.step.start, at.step.end
    previous, before = at.estimates[:2]
    h = end.log_snr - start.log_snr
    r_0 = (start.log_snr - previous.level.log_snr) / h
    r_1 = (previous.level.log_snr - before.level.log_snr) / h
    slope = (at.x_0 - previous.x_0) / r_0
    slope_before = (previous.x_0 - before.x_0) / r_1
    curvature = (slope - slope_before) / (r_0 + r_1)
    slope = slope + r_0 * curvature
    decay = math.expm1(-h)
    return (
        step_with_x_0(at.x, start, at.x_0, end)
        + end.alpha * (decay / h + 1) * slope
        - end.alpha * ((decay + h) / h**2 - 0.5) * curvature
    )


def dpm_2s_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver++ 2S, the singlestep solver of the second order (algorithm 1).

    Steps of order 1 and 2 alternate. One of order 2 repeats the step before and this one together,
    with x_0 extrapolated to the middle of both along the line through their estimates.
    """
    if at.order == 1:
        return euler_step(at)
    first, end = at.estimates[0], at.step.end
    length = end.log_snr - first.level.log_snr
    first_length = at.step.start.log_snr - first.level.log_snr
    x_0 = first.x_0 + (at.x_0 - first.x_0) * (length / (2 * first_length))
    return step_with_x_0(first.x, first.level, x_0, end)
