"""The samplers and schedules: a row each in `SAMPLERS` and `SCHEDULES`.

To add a sampler, write its step function in `steps.py` and its row here; if none of the makers in
`schedule.py` has its noise levels, write another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx

from ..config.diffusion import (
    LEVEL_OPTIONS,
    OWN_SCHEDULES,
    PREDICTION_TYPES,
    SPACINGS,
    DiffusionConfig,
)
from ..utils.wording import abbreviate, did_you_mean
from .schedule import (
    Schedule,
    Step,
    make_ddim_schedule,
    make_dpm_schedule,
    make_euler_schedule,
    make_lcm_schedule,
)
from .steps import (
    Estimate,
    StepInput,
    ddim_step,
    dpm_2m_step,
    euler_ancestral_step,
    euler_step,
    lcm_step,
    split_into_x_0_and_noise,
)


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule: how the timesteps or noise levels of the steps are spaced."""

    name: str
    webui_name: str | None  # in AUTOMATIC1111's web UI, if it has this schedule


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its schedules, and how it steps down them."""

    name: str
    webui_name: str | None  # in AUTOMATIC1111's web UI, if it has this sampler
    schedules: tuple[str, ...]  # keys of SCHEDULES; () if it has only its own
    # Of a config and a number of steps; and of timesteps, if the sampler takes them.
    make_schedule: Callable[..., Schedule]
    step: Callable[[StepInput], mx.array]
    max_steps: Callable[[DiffusionConfig], int]
    needs_noise: bool = False  # whether it adds fresh noise in every step
    prediction_types: tuple[str, ...] = PREDICTION_TYPES
    takes_timesteps: bool = False  # whether the caller may choose them
    takes_eta: bool = False  # whether the caller may choose how much noise a step adds
    default_eta: float = 0.0  # of a sampler that takes eta

    def find_spacing(self, config: DiffusionConfig) -> str:
        """Return the schedule for a model whose own schedule this sampler lacks."""
        spacing = config.timestep_spacing
        return spacing if spacing in self.schedules else self.schedules[0]


SCHEDULES = {
    spec.name: spec
    for spec in (
        ScheduleSpec("trailing", None),
        ScheduleSpec("leading", None),
        ScheduleSpec("linspace", "Uniform"),
        ScheduleSpec("karras", "Karras"),
        ScheduleSpec("exponential", "Exponential"),
        ScheduleSpec("beta", "Beta"),
        ScheduleSpec("sgm-uniform", "SGM Uniform"),
        ScheduleSpec("simple", "Simple"),
        ScheduleSpec("ays", "Align Your Steps"),
    )
}
# The schedules of the samplers that step on noise levels: those that diffusers has for them, and
# those that it lacks.
NOISE_LEVELS = (*SPACINGS, *LEVEL_OPTIONS, *OWN_SCHEDULES)

SAMPLERS = {
    spec.name: spec
    for spec in (
        SamplerSpec(
            name="euler",
            webui_name="Euler",
            schedules=NOISE_LEVELS,
            make_schedule=make_euler_schedule,
            step=euler_step,
            max_steps=lambda config: config.num_train_timesteps,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="euler-a",
            webui_name="Euler a",
            schedules=(*SPACINGS, *OWN_SCHEDULES),
            make_schedule=make_euler_schedule,
            step=euler_ancestral_step,
            max_steps=lambda config: config.num_train_timesteps,
            needs_noise=True,
            prediction_types=("epsilon", "v_prediction"),
        ),
        SamplerSpec(
            name="ddim",
            webui_name="DDIM",
            schedules=SPACINGS,
            make_schedule=make_ddim_schedule,
            step=ddim_step,
            max_steps=lambda config: config.num_train_timesteps,
            takes_eta=True,
        ),
        SamplerSpec(
            name="dpm++2m",
            webui_name="DPM++ 2M",
            schedules=NOISE_LEVELS,
            make_schedule=make_dpm_schedule,
            step=dpm_2m_step,
            max_steps=lambda config: config.num_train_timesteps - 1,  # one may be the end
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="lcm",
            webui_name="LCM",
            schedules=(),
            make_schedule=make_lcm_schedule,
            step=lcm_step,
            max_steps=lambda config: min(
                config.num_train_timesteps, config.original_inference_steps
            ),
            needs_noise=True,
            takes_timesteps=True,
        ),
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
        previous: Estimate | None = None,
        fresh: mx.array | None = None,
    ) -> tuple[mx.array, Estimate]:
        """Return the latents at `step.end`, and the estimate of x_0 at `step.start`.

        Args:
            x: latents [B, h, w, C] at `step.start`.
            prediction: what the network predicts for them, shaped as `x`.
            previous: the estimate that the step before returned; None in the first step.
            fresh: standard normal noise, shaped as `x`, if `needs_noise`.

        Raises:
            ValueError: if the sampler needs fresh noise and gets none.
        """
        x_0, noise = split_into_x_0_and_noise(
            x, prediction, step.start, self.config.prediction_type
        )
        given = StepInput(x, x_0, noise, step, self.config, previous, fresh, self.used_eta)
        x = self.spec.step(given)
        return x, Estimate(x_0, step.start)


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
            f"timesteps must fall from one to the next, in {last} to 0; got "
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
