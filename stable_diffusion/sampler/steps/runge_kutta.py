"""Steps of one or two calls of the network: Euler's method, Heun's, and the midpoint's.

A step of two calls is two steps of a schedule, of order 1 and 2. Both begin at the latents of the
first one. Ratios are sigma / alpha, the noise levels of Karras et al. 2022 (arXiv:2206.00364).
"""

import mlx.core as mx

from ..schedule import CLEAN
from .step_input import StepInput


def euler_step(at: StepInput) -> mx.array:
    """Mix the same x_0 and noise at the next level.

    On latents of constant variance that is DDIM (Song et al. 2020, arXiv:2010.02502, equation 12
    with σ = 0); on x / alpha, Euler's method (Karras et al. 2022, algorithm 2 without churn).
    """
    return at.step.end.mix(at.x_0, at.noise)


def heun_step(at: StepInput) -> mx.array:
    """Step by Heun's method (Karras et al. 2022, algorithm 1).

    The first call steps by Euler's method. The second one, at the end of that step, repeats it with
    the mean of the noise at both ends.
    """
    if at.step.order == 1:
        return euler_step(at)
    first, end = at.require_first(), at.step.end
    change = (end.ratio - first.level.ratio) / 2
    return end.alpha * (first.x / first.level.alpha + change * (first.noise + at.noise))


def dpm_2_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1).

    The first call steps to the middle of log(sigma / alpha), and the second one repeats the whole
    step with the noise there.
    """
    if at.step.order == 1:
        return euler_step(at)
    first, end = at.require_first(), at.step.end
    change = end.ratio - first.level.ratio
    return end.alpha * (first.x / first.level.alpha + change * at.noise)


def compute_ancestral_ratios(ratio: float, next_ratio: float) -> tuple[float, float]:
    """Return the ratio to step down to, and the ratio of noise that leads up to `next_ratio`."""
    up = (next_ratio**2 * (ratio**2 - next_ratio**2) / ratio**2) ** 0.5
    return (next_ratio**2 - up**2) ** 0.5, up


def euler_ancestral_step(at: StepInput) -> mx.array:
    """Step by Euler's method below the next level, and add fresh noise to come back up to it."""
    start, end = at.step.start, at.step.end
    down, up = compute_ancestral_ratios(start.ratio, end.ratio)
    return end.alpha * (at.x_0 + down * at.noise + up * at.require_fresh())


def dpm_2_ancestral_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver-2 below the next level, and add fresh noise to come back up to it."""
    if at.step.order == 1:
        return euler_step(at)
    first, end = at.require_first(), at.step.end
    down, up = compute_ancestral_ratios(first.level.ratio, end.ratio)
    change = down - first.level.ratio
    x = first.x / first.level.alpha + change * at.noise
    return end.alpha * (x + up * at.require_fresh())


def dpm_sde_step(at: StepInput) -> mx.array:
    """Step by DPM-Solver++ on the stochastic equation, of the second order, with two calls.

    Both calls step from the latents of the first one, and add fresh noise: the first to the middle
    of log(sigma / alpha), and the second all the way, with x_0 as estimated in the middle. See
    arXiv:2211.01095, section 5. The last step has one call, and adds none.
    """
    if at.step.end == CLEAN:
        return at.x_0
    if at.step.order == 1:
        return euler_ancestral_step(at)
    first, end = at.require_first(), at.step.end
    down, up = compute_ancestral_ratios(first.level.ratio, end.ratio)
    kept = down / first.level.ratio  # of the noise in x / alpha
    x = kept * first.x / first.level.alpha + (1 - kept) * at.x_0
    return end.alpha * (x + up * at.require_fresh())
