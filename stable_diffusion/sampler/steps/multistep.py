"""Steps that combine the noise of several calls: linear multistep methods."""

import mlx.core as mx

from .runge_kutta import euler_step
from .step_input import StepInput, split_into_x_0_and_noise
from .weights import integrate_in_log

# Adams-Bashforth: the weights of the newest prediction, of the one before, …
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def lms_step(at: StepInput) -> mx.array:
    """Step by the linear multistep method of Katherine Crowson's k-diffusion.

    The schedule has the weights of each step, see `make_lms_schedule`. From a picture the first
    steps have fewer predictions than weights, and use as many, as diffusers does.
    """
    noises = [at.noise, *(estimate.noise for estimate in at.estimates)]
    x = at.x / at.step.start.alpha
    for weight, noise in zip(at.step.weights, noises, strict=False):
        x = x + weight * noise
    return at.step.end.alpha * x


def pndm_step(at: StepInput) -> mx.array:
    """Step by PLMS, which is PNDM without Runge-Kutta steps (Liu et al. 2022, arXiv:2202.09778).

    Formulas 9 and 12: predictions of up to four calls are combined, and x_0 and noise of the result
    mixed at the next level. The second call repeats the first step with the mean of both.
    """
    prediction_type, step = at.config.prediction_type, at.step
    if at.n_calls == 1:
        first, start, end = at.require_first(), step.before, step.start
        x, prediction = first.x, (first.prediction + at.prediction) / 2
    else:
        # The second call is left out, because it was at the same level as the third one.
        numbered = zip(range(at.n_calls - 1, -1, -1), at.estimates, strict=False)
        earlier = [estimate.prediction for number, estimate in numbered if number != 1][:3]
        first_weight, *weights = ADAMS_BASHFORTH[len(earlier)]
        x, start, end = at.x, step.start, step.end
        prediction = first_weight * at.prediction
        for weight, each in zip(weights, earlier, strict=True):
            prediction = prediction + weight * each
    return end.mix(*split_into_x_0_and_noise(x, prediction, start, prediction_type))


def deis_step(at: StepInput) -> mx.array:
    """Step by DEIS in log ρ (Zhang & Chen 2022, arXiv:2204.13902), with ρ = sigma / alpha.

    The noise is the polynomial in log ρ through the last estimates, and its integral over ρ the
    change of x / alpha (formula 15).
    """
    start, end = at.step.start, at.step.end
    if at.order == 1:
        return euler_step(at)
    estimates = at.estimates[: at.order - 1]
    nodes = [start.ratio, *(estimate.level.ratio for estimate in estimates)]
    noises = [at.noise, *(estimate.noise for estimate in estimates)]
    x = at.x / start.alpha
    for weight, noise in zip(integrate_in_log(nodes, end.ratio), noises, strict=True):
        x = x + weight * noise
    return end.alpha * x
