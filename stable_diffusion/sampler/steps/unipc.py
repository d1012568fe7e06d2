"""Steps of UniPC, a multistep solver that corrects each step afterwards (arXiv:2302.04867)."""

import math
from collections.abc import Sequence

import mlx.core as mx

from ..schedule import CLEAN, Level
from .dpm_solver import step_with_x_0
from .step_input import Estimate, StepInput
from .weights import find_weights


def unipc_step(at: StepInput) -> mx.array:
    """Step by the predictor UniP (algorithm 2) from latents that `unipc_correct` has corrected."""
    start, end, order = at.step.start, at.step.end, at.order
    x = step_with_x_0(at.x, start, at.x_0, end)
    if order == 1 or end == CLEAN:
        return x
    before = at.estimates[: order - 1]
    h = end.log_snr - start.log_snr
    ratios, slopes = _find_slopes(at.x_0, start, before, h)
    b_h, sums = _compute_sums(h, order - 1, at.config.solver_type)
    weights = [0.5] if order == 2 else find_weights(ratios, sums)
    change = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return x - end.alpha * b_h * change


def unipc_correct(at: StepInput) -> mx.array:
    """Return latents corrected by UniC (algorithm 1): the last step again, with x_0 at its end."""
    if not at.estimates:
        return at.x
    previous, *before = at.estimates
    order = min(previous.step.order, at.n_calls)
    start, end = previous.level, at.step.start
    h = end.log_snr - start.log_snr
    ratios, slopes = _find_slopes(previous.x_0, start, before[: order - 1], h)
    b_h, sums = _compute_sums(h, order, at.config.solver_type)
    weights = [0.5] if order == 1 else find_weights([*ratios, 1.0], sums)
    slopes.append(at.x_0 - previous.x_0)
    change = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return step_with_x_0(previous.x, start, previous.x_0, end) - end.alpha * b_h * change


def _find_slopes(
    x_0: mx.array, level: Level, before: Sequence[Estimate], h: float
) -> tuple[list[float], list[mx.array]]:
    """Return where earlier estimates are, in steps of h in λ, and the slopes from x_0 to them."""
    ratios = [(estimate.level.log_snr - level.log_snr) / h for estimate in before]
    slopes = [(each.x_0 - x_0) / ratio for each, ratio in zip(before, ratios, strict=True)]
    return ratios, slopes


def _compute_sums(h: float, order: int, solver_type: str) -> tuple[float, list[float]]:
    """Return B(h), and what the weighted powers 0 to order - 1 of the ratios sum to (theorem 3.1).

    The solver type "bh1" has B(h) = -h, any other, as "bh2", e⁻ʰ - 1.
    """
    b_h = -h if solver_type == "bh1" else math.expm1(-h)
    sums = []
    phi, factorial = math.expm1(-h) / -h - 1, 1
    for power in range(1, order + 1):
        sums.append(phi * factorial / b_h)
        factorial *= power + 1
        phi = phi / -h - 1 / factorial
    return b_h, sums
