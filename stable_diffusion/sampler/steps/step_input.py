"""The input of the step functions: latents, what the network estimates, and the calls before."""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from ...config.diffusion import DiffusionConfig
from ..schedule import Level, Step


class Estimate(NamedTuple):
    """One call of the network: its latents, and what it estimated. Arrays are shaped as latents."""

    x: mx.array  # at the level `step.start`; corrected, if the sampler corrects them
    x_0: mx.array
    noise: mx.array
    prediction: mx.array  # of the network: x_0, the noise or the velocity
    step: Step

    @property
    def level(self) -> Level:
        """Return the noise level that it was made at."""
        return self.step.start


class History(NamedTuple):
    """What a sampler keeps of the calls before, for the next one."""

    x_0: mx.array  # the last estimate
    n_calls: int  # of the network, since the first latents
    estimates: tuple[Estimate, ...]  # the newest first, as many as the sampler uses


@dataclass(frozen=True)
class StepInput:
    """The input of a step function. All arrays have the shape of latents, [B, h, w, C]."""

    x: mx.array  # at the level `step.start`
    x_0: mx.array  # the network's estimate of the picture in x
    noise: mx.array  # the network's estimate of the noise in x
    prediction: mx.array  # of the network: x_0, the noise or the velocity
    step: Step
    config: DiffusionConfig
    history: History | None = None  # None in the first step
    fresh: mx.array | None = None  # standard normal noise, for samplers that add some
    eta: float | None = None  # how much of it, for samplers that take that

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Return the estimates of the calls before, the newest first."""
        return () if self.history is None else self.history.estimates

    @property
    def n_calls(self) -> int:
        """Return how many calls of the network came before."""
        return 0 if self.history is None else self.history.n_calls

    @property
    def order(self) -> int:
        """Return the order of the solver in this step: of a short history it is lower."""
        return min(self.step.order, len(self.estimates) + 1)

    def require_first(self) -> Estimate:
        """Return the estimate of a step's first call, which the second call needs.

        Raises:
            ValueError: if there is none.
        """
        if not self.estimates:
            raise ValueError("this call goes on from the one before: give what it returned")
        return self.estimates[0]

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
