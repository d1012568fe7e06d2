"""A sampler of a model, and the table of schedules. The table of samplers is in `table.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import mlx.core as mx

from ..config.diffusion import DiffusionConfig
from ..utils.wording import abbreviate, did_you_mean
from .schedule import Schedule, Step
from .steps.step_input import Estimate, History, StepInput, split_into_x_0_and_noise
from .table import SAMPLERS, SamplerSpec


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule: how the timesteps or noise levels of the steps are spaced."""

    name: str
    webui_name: str | None  # in AUTOMATIC1111's web UI, if it has this schedule


SCHEDULES = {
    spec.name: spec
    for spec in (
        ScheduleSpec("trailing", None),
        ScheduleSpec("leading", "DDIM"),
        ScheduleSpec("linspace", "Uniform"),
        ScheduleSpec("karras", "Karras"),
        ScheduleSpec("exponential", "Exponential"),
        ScheduleSpec("beta", "Beta"),
        ScheduleSpec("sgm-uniform", "SGM Uniform"),
        ScheduleSpec("simple", "Simple"),
        ScheduleSpec("ays", "Align Your Steps"),
    )
}


@dataclass(frozen=True)
class Sampler:
    """A sampler with the noise schedule of a model. `StableDiffusion.sampler` is one.

    Attributes:
        config: the noise schedule and the prediction type of the model.
        name: a key of `SAMPLERS`.
        timesteps: the timesteps of the steps, falling; None for those of the config's schedule.
        eta: how much noise a step adds, in [0, 1]; None for the sampler's default.
    """

    config: DiffusionConfig
    name: str
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None

    @classmethod
    def for_model(
        cls,
        config: DiffusionConfig,
        name: str | None = None,
        schedule: str | None = None,
        timesteps: Sequence[int] | None = None,
        eta: float | None = None,
    ) -> "Sampler":
        """Return the sampler `name` with the schedule `schedule`.

        Args:
            config: the noise schedule and the prediction type that the model was trained with.
            name: a key of `SAMPLERS`; the model's own sampler if None.
            schedule: one of the sampler's schedules; the model's own schedule if None.
            timesteps: of the training, falling, one for each step, in place of a schedule.
            eta: how much noise each step adds, in [0, 1]; the sampler's default if None.

        Raises:
            ValueError: if there is no such sampler, or it does not have this schedule, or it
                cannot run this model, or does not take these timesteps or eta.
        """
        name = config.sampler if name is None else name
        require_schedule(name, schedule)
        spec = SAMPLERS[name]
        if config.prediction_type not in spec.prediction_types:
            raise ValueError(
                f"sampler {name} cannot run a model that predicts {config.prediction_type!r}: "
                "use euler"
            )
        if (fault := config.find_fault(name)) is not None:
            raise ValueError(
                f"sampler {name} does not support what the model's scheduler config says, "
                f"{fault}: use euler"
            )
        if schedule is not None:
            config = config.with_schedule(schedule)
        elif spec.schedules and config.schedule not in spec.schedules:
            config = config.with_schedule(spec.find_spacing(config))
        if timesteps is not None:
            require_timesteps(name)
            if schedule is not None:
                raise ValueError(f"timesteps and schedule {schedule}: leave one out")
            timesteps = tuple(timesteps)
            check_timesteps(timesteps, config.num_train_timesteps)
            config = config.with_schedule(config.timestep_spacing)
        if eta is not None:
            require_eta(name)
            if not 0 <= eta <= 1:
                raise ValueError(f"eta must be in [0, 1], got {eta}")
        return cls(config, name, timesteps, eta)

    @property
    def spec(self) -> SamplerSpec:
        """Return the sampler's row in `SAMPLERS`."""
        return SAMPLERS[self.name]

    @property
    def schedule_name(self) -> str | None:
        """Return the schedule's name, as in `for_model`.

        It is None if the sampler has only its own schedule, or timesteps in place of one.
        """
        has_schedule = self.spec.schedules and self.timesteps is None
        return self.config.schedule if has_schedule else None

    @property
    def needs_noise(self) -> bool:
        """Return whether `step` needs fresh noise."""
        return self.spec.needs_noise or bool(self.used_eta)

    @property
    def used_eta(self) -> float | None:
        """Return eta, or its default; None for a sampler that does not take it."""
        default = self.spec.default_eta if self.spec.takes_eta else None
        return default if self.eta is None else self.eta

    def schedule(self, num_steps: int) -> Schedule:
        """Return the schedule of exactly `num_steps` steps.

        Raises:
            ValueError: if that is too few or too many, or not the number of `timesteps`, or this
                sampler cannot begin at the first noise level.
        """
        if self.timesteps is not None:
            if num_steps != len(self.timesteps):
                raise ValueError(f"{len(self.timesteps)} timesteps are not {num_steps} steps")
            schedule = self.spec.make_schedule(self.config, num_steps, timesteps=self.timesteps)
        else:
            max_steps = self.spec.max_steps(self.config)
            if not 1 <= num_steps <= max_steps:
                raise ValueError(f"steps must be from 1 to {max_steps}, got {num_steps}")
            schedule = self.spec.make_schedule(self.config, num_steps)
        if self.config.prediction_type == "epsilon" and schedule.steps[0].start.alpha == 0:
            raise ValueError(
                f"sampler {self.name} cannot begin with noise alone (rescale_betas_zero_snr) if "
                "the model predicts noise: use euler"
            )
        return schedule

    def step(
        self,
        x: mx.array,
        prediction: mx.array,
        step: Step,
        previous: History | None = None,
        fresh: mx.array | None = None,
    ) -> tuple[mx.array, History]:
        """Return the latents at `step.end`, and what the next step needs of this one.

        Its `x_0` is the estimate at `step.start`.

        Args:
            x: latents [B, h, w, C] at `step.start`.
            prediction: what the network predicts for them, shaped as `x`.
            previous: what the step before returned; None in the first step.
            fresh: standard normal noise, shaped as `x`, if `needs_noise` and `step.adds_noise`.

        Raises:
            ValueError: if the sampler needs fresh noise or the step before, and does not get it.
        """
        x_0, noise = split_into_x_0_and_noise(
            x, prediction, step.start, self.config.prediction_type
        )
        at = StepInput(x, x_0, noise, prediction, step, self.config, previous, fresh, self.used_eta)
        if self.spec.correct is not None:
            at = replace(at, x=self.spec.correct(at))
        estimates = (Estimate(at.x, x_0, noise, prediction, step), *at.estimates)
        history = History(x_0, at.n_calls + 1, estimates[: self.spec.history])
        return self.spec.step(at), history


def require_schedule(sampler: str, schedule: str | None) -> None:
    """Check that there is a sampler of this name, with this schedule if it is not None.

    Raises:
        ValueError: if there is none.
    """
    if sampler not in SAMPLERS:
        raise ValueError(
            f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}"
            + did_you_mean(sampler, SAMPLERS)
        )
    known = SAMPLERS[sampler].schedules
    if schedule is not None and schedule not in known:
        only = f"only {', '.join(known)}" if known else "only its own: leave the schedule out"
        raise ValueError(f"sampler {sampler} has no schedule {schedule!r}, {only}")


def require_timesteps(sampler: str) -> None:
    """Check that a sampler takes timesteps.

    Raises:
        ValueError: if it does not take any.
    """
    if not SAMPLERS[sampler].takes_timesteps:
        takers = ", ".join(spec.name for spec in SAMPLERS.values() if spec.takes_timesteps)
        raise ValueError(f"sampler {sampler} does not take timesteps: use one of {takers}")


def check_timesteps(timesteps: Sequence[int], num_train_timesteps: int) -> None:
    """Check that these are falling timesteps of the training.

    Raises:
        ValueError: if they are not.
    """
    last = num_train_timesteps - 1
    are_falling = all(t > t_next for t, t_next in pairwise(timesteps))
    if not timesteps or not are_falling or not 0 <= timesteps[-1] <= timesteps[0] <= last:
        raise ValueError(
            f"timesteps must fall from one to the next, from {last} at most to 0 at least; got "
            f"{abbreviate(', '.join(map(str, timesteps)) or 'none')}"
        )


def require_eta(sampler: str) -> None:
    """Check that a sampler takes eta.

    Raises:
        ValueError: if it does not take it.
    """
    if not SAMPLERS[sampler].takes_eta:
        takers = ", ".join(spec.name for spec in SAMPLERS.values() if spec.takes_eta)
        raise ValueError(f"sampler {sampler} does not take eta: use one of {takers}")
