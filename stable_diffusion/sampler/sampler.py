"""Samplers: from latents at one noise level, and what the network says, to latents at the next.

All of them first tell x_0 and the noise from the prediction, and differ in what they make of the
two. The steps are pure functions, equal to those of diffusers; `schedule.py` has the levels.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx

from ..config.diffusion import SPACINGS, DiffusionConfig
from ..utils.wording import did_you_mean
from .schedule import CLEAN, Level, Schedule, Step, make_schedule


class Estimate(NamedTuple):
    """What x_0 looked like from a noise level."""

    x_0: mx.array
    level: Level


def x_0_and_noise(
    x: mx.array, prediction: mx.array, level: Level, prediction_type: str
) -> tuple[mx.array, mx.array]:
    """What x = alpha · x_0 + sigma · noise is made of, given one of the two or the velocity.

    The velocity is alpha · noise - sigma · x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D).
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (x - alpha * prediction) / sigma
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def euler_step(x_0: mx.array, noise: mx.array, end: Level) -> mx.array:
    """The same x_0 and noise, mixed at another level.

    On latents of constant variance that is DDIM (Song et al. 2020, arXiv:2010.02502, equation 12
    with σ = 0); on x / alpha, Euler's method (Karras et al. 2022, algorithm 2 without churn).
    """
    return end.mix(x_0, noise)


def ancestral_ratios(ratio: float, next_ratio: float) -> tuple[float, float]:
    """(down, up): step to `down`, then add noise of `up`, to be at `next_ratio`."""
    up = (next_ratio**2 * (ratio**2 - next_ratio**2) / ratio**2) ** 0.5
    return (next_ratio**2 - up**2) ** 0.5, up


def euler_ancestral_step(
    x_0: mx.array, noise: mx.array, start: Level, end: Level, fresh: mx.array
) -> mx.array:
    """Euler's method below the next level, and fresh noise back up to it."""
    down, up = ancestral_ratios(start.ratio, end.ratio)
    return end.alpha * (x_0 + down * noise + up * fresh)


def dpm_2m_step(
    x: mx.array, x_0: mx.array, start: Level, end: Level, before: Estimate | None
) -> mx.array:
    """DPM-Solver++ of the second order, multistep (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    x_0 is drawn on to the middle of the step along the line from the estimate before. The first
    step, which has none, and the last are of the first order.
    """
    if before is not None and end != CLEAN:
        length = end.log_snr - start.log_snr
        length_before = start.log_snr - before.level.log_snr
        x_0 = x_0 + (x_0 - before.x_0) * (length / (2 * length_before))
    return end.mix(x_0, (x - start.alpha * x_0) / start.sigma)


def lcm_step(
    x: mx.array, x_0: mx.array, step: Step, fresh: mx.array, timestep_scaling: float
) -> mx.array:
    """Multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, algorithm 2)."""
    # The boundary condition of a consistency function, at time 0 x itself (appendix D).
    time, sigma_data = step.timestep * timestep_scaling, 0.5
    skip = sigma_data**2 / (time**2 + sigma_data**2)
    out = time / (time**2 + sigma_data**2) ** 0.5
    return step.end.mix(skip * x + out * x_0, fresh)


@dataclass(frozen=True)
class Sampler:
    """A way to walk down a noise schedule: what `sd.sampler` is."""

    config: DiffusionConfig
    name: str  # one of SAMPLERS

    @classmethod
    def for_model(
        cls, config: DiffusionConfig, name: str | None = None, schedule: str | None = None
    ) -> "Sampler":
        """The sampler `name` with the schedule `schedule`, or the model's own where None.

        Raises:
            ValueError: there is no such sampler, or not with this schedule or model.
        """
        name = config.sampler if name is None else name
        require_schedule(name, schedule)
        if name == "euler-a" and config.prediction_type == "sample":
            raise ValueError("sampler euler-a has no prediction type 'sample': take euler")
        if schedule in SPACINGS:
            config = replace(config, timestep_spacing=schedule, use_karras_sigmas=False)
        elif schedule == "karras":
            config = replace(config, use_karras_sigmas=True)
        elif "karras" not in SAMPLERS[name]:
            config = replace(config, use_karras_sigmas=False)  # the model's own
        return cls(config, name)

    @property
    def schedule_name(self) -> str | None:
        """The schedule as `for_model` takes it; None for a sampler that brings its own."""
        if not SAMPLERS[self.name]:
            return None
        return "karras" if self.config.use_karras_sigmas else self.config.timestep_spacing

    @property
    def needs_noise(self) -> bool:
        """Whether `step` takes fresh noise."""
        return self.name in ("euler-a", "lcm")

    def schedule(self, num_steps: int) -> Schedule:
        """See `make_schedule`."""
        return make_schedule(self.name, self.config, num_steps)

    def step(
        self,
        x: mx.array,
        prediction: mx.array,
        step: Step,
        before: Estimate | None = None,
        fresh: mx.array | None = None,
    ) -> tuple[mx.array, Estimate]:
        """From latents at `step.start` to latents at `step.end`, all of them like `x`.

        Args:
            x: latents [B, h, w, C].
            prediction: what the network says of them.
            before: what the last step returned beside its latents.
            fresh: standard normal noise, for samplers that need it.

        Returns:
            The latents, and the estimate of x_0 that they come from.
        """
        x_0, noise = x_0_and_noise(x, prediction, step.start, self.config.prediction_type)
        match self.name:
            case "euler-a":
                x = euler_ancestral_step(x_0, noise, step.start, step.end, fresh)
            case "dpm++2m":
                x = dpm_2m_step(x, x_0, step.start, step.end, before)
            case "lcm":
                x = lcm_step(x, x_0, step, fresh, self.config.timestep_scaling)
            case _:
                x = euler_step(x_0, noise, step.end)
        return x, Estimate(x_0, step.start)


# The samplers, each with the schedules that diffusers has for it.
SAMPLERS = {
    "euler": (*SPACINGS, "karras"),
    "euler-a": SPACINGS,
    "ddim": SPACINGS,
    "dpm++2m": (*SPACINGS, "karras"),
    "lcm": (),  # it brings its own
}
SCHEDULES = (*SPACINGS, "karras")


def require_schedule(sampler: str, schedule: str | None) -> None:
    """Refuse what is not in `SAMPLERS`; a schedule of None is the model's own."""
    if sampler not in SAMPLERS:
        raise ValueError(
            f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}"
            + did_you_mean(sampler, SAMPLERS)
        )
    known = SAMPLERS[sampler]
    if schedule is not None and schedule not in known:
        only = f"only {', '.join(known)}" if known else "only its own: leave the schedule out"
        raise ValueError(f"sampler {sampler} has no schedule {schedule!r}, {only}")
