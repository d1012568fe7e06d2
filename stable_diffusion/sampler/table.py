"""The table of samplers. To add one, write its step function in `steps/`, and its row here.

If none of the makers in `schedule.py` and `solver_schedules.py` has its noise levels, write another
one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..config.diffusion import (
    LEVEL_OPTIONS,
    OWN_SCHEDULES,
    PREDICTION_TYPES,
    SPACINGS,
    DiffusionConfig,
)
from . import solver_schedules
from .schedule import (
    Schedule,
    make_ddim_schedule,
    make_dpm_schedule,
    make_euler_schedule,
    make_lcm_schedule,
)
from .steps import denoising_diffusion, dpm_solver, multistep, runge_kutta, unipc
from .steps.step_input import StepInput


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its schedules, and how it steps down them."""

    name: str
    webui_name: str | None  # in AUTOMATIC1111's web UI, or in those that are made from it
    schedules: tuple[str, ...]  # keys of SCHEDULES; () if it has only its own
    # Of a config and a number of steps; and of timesteps, if the sampler takes them.
    make_schedule: Callable[..., Schedule]
    step: Callable[[StepInput], mx.array]
    max_steps: Callable[[DiffusionConfig], int]
    history: int = 0  # how many earlier estimates `step` uses
    correct: Callable[[StepInput], mx.array] | None = None  # corrects latents before `step`
    needs_noise: bool = False  # whether it adds fresh noise whatever eta is
    prediction_types: tuple[str, ...] = PREDICTION_TYPES
    takes_timesteps: bool = False  # whether the caller may choose them
    takes_eta: bool = False  # whether the caller may choose how much noise a step adds
    default_eta: float = 0.0  # of a sampler that takes eta

    def find_spacing(self, config: DiffusionConfig) -> str:
        """Return the schedule for a model whose own schedule this sampler lacks."""
        spacing = config.timestep_spacing
        return spacing if spacing in self.schedules else self.schedules[0]


# The schedules of the samplers that step on noise levels: those that diffusers has for them, and
# those that it lacks.
NOISE_LEVELS = (*SPACINGS, *LEVEL_OPTIONS, *OWN_SCHEDULES)
NOT_X_0 = ("epsilon", "v_prediction")  # what diffusers lets models predict with some samplers


def _count_timesteps(config: DiffusionConfig) -> int:
    """Return the number of timesteps of the training."""
    return config.num_train_timesteps


def _count_timesteps_but_one(config: DiffusionConfig) -> int:
    """Return one fewer, because one of those that are spaced may be the end."""
    return config.num_train_timesteps - 1


def _count_original_steps(config: DiffusionConfig) -> int:
    """Return the number of steps of the distillation."""
    return min(config.num_train_timesteps, config.original_inference_steps)


SAMPLERS = {
    spec.name: spec
    for spec in (
        SamplerSpec(
            name="euler",
            webui_name="Euler",
            schedules=NOISE_LEVELS,
            make_schedule=make_euler_schedule,
            step=runge_kutta.euler_step,
            max_steps=_count_timesteps,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="euler-a",
            webui_name="Euler a",
            schedules=(*SPACINGS, *OWN_SCHEDULES),
            make_schedule=make_euler_schedule,
            step=runge_kutta.euler_ancestral_step,
            max_steps=_count_timesteps,
            needs_noise=True,
            prediction_types=NOT_X_0,
        ),
        SamplerSpec(
            name="ddim",
            webui_name="DDIM",
            schedules=SPACINGS,
            make_schedule=make_ddim_schedule,
            step=denoising_diffusion.ddim_step,
            max_steps=_count_timesteps,
            takes_eta=True,
        ),
        SamplerSpec(
            name="dpm++2m",
            webui_name="DPM++ 2M",
            schedules=NOISE_LEVELS,
            make_schedule=make_dpm_schedule,
            step=dpm_solver.dpm_2m_step,
            max_steps=_count_timesteps_but_one,
            history=1,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="lcm",
            webui_name="LCM",
            schedules=(),
            make_schedule=make_lcm_schedule,
            step=denoising_diffusion.lcm_step,
            max_steps=_count_original_steps,
            needs_noise=True,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="heun",
            webui_name="Heun",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_heun_schedule,
            step=runge_kutta.heun_step,
            max_steps=_count_timesteps,
            history=1,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="lms",
            webui_name="LMS",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_lms_schedule,
            step=multistep.lms_step,
            max_steps=_count_timesteps,
            history=3,
        ),
        SamplerSpec(
            name="dpm2",
            webui_name="DPM2",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_dpm_2_schedule,
            step=runge_kutta.dpm_2_step,
            max_steps=_count_timesteps,
            history=1,
            prediction_types=NOT_X_0,
        ),
        SamplerSpec(
            name="dpm2-a",
            webui_name="DPM2 a",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_dpm_2_ancestral_schedule,
            step=runge_kutta.dpm_2_ancestral_step,
            max_steps=_count_timesteps,
            history=1,
            needs_noise=True,
            prediction_types=NOT_X_0,
        ),
        SamplerSpec(
            name="dpm++2s",
            webui_name=None,  # "DPM++ 2S a" adds noise, and calls the network twice a step
            schedules=("linspace", *LEVEL_OPTIONS, *OWN_SCHEDULES),
            make_schedule=solver_schedules.make_dpm_2s_schedule,
            step=dpm_solver.dpm_2s_step,
            max_steps=_count_timesteps_but_one,
            history=1,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="dpm++2m-sde",
            webui_name="DPM++ 2M SDE",
            schedules=NOISE_LEVELS,
            make_schedule=make_dpm_schedule,
            step=dpm_solver.dpm_2m_sde_step,
            max_steps=_count_timesteps_but_one,
            history=1,
            needs_noise=True,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="dpm++3m",
            webui_name=None,  # "DPM++ 3M SDE" adds noise
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_dpm_3m_schedule,
            step=dpm_solver.dpm_3m_step,
            max_steps=_count_timesteps_but_one,
            history=2,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="dpm++sde",
            webui_name="DPM++ SDE",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_dpm_sde_schedule,
            step=runge_kutta.dpm_sde_step,
            max_steps=_count_timesteps,
            history=1,
            needs_noise=True,
            prediction_types=NOT_X_0,
        ),
        SamplerSpec(
            name="unipc",
            webui_name="UniPC",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_unipc_schedule,
            step=unipc.unipc_step,
            max_steps=_count_timesteps_but_one,
            history=3,
            correct=unipc.unipc_correct,
        ),
        SamplerSpec(
            name="deis",
            webui_name="DEIS",
            schedules=NOISE_LEVELS,
            make_schedule=solver_schedules.make_deis_schedule,
            step=multistep.deis_step,
            max_steps=_count_timesteps_but_one,
            history=2,
        ),
        SamplerSpec(
            name="pndm",
            webui_name="PLMS",
            schedules=SPACINGS,
            make_schedule=solver_schedules.make_pndm_schedule,
            step=multistep.pndm_step,
            max_steps=_count_timesteps,
            history=4,
            prediction_types=NOT_X_0,
        ),
        SamplerSpec(
            name="ddpm",
            webui_name="DDPM",
            schedules=SPACINGS,
            make_schedule=solver_schedules.make_ddpm_schedule,
            step=denoising_diffusion.ddpm_step,
            max_steps=_count_timesteps,
            needs_noise=True,
            takes_timesteps=True,
        ),
        SamplerSpec(
            name="tcd",
            webui_name="TCD",
            schedules=(),
            make_schedule=solver_schedules.make_tcd_schedule,
            step=denoising_diffusion.tcd_step,
            max_steps=_count_original_steps,
            takes_timesteps=True,
            takes_eta=True,
            default_eta=0.3,  # of diffusers, and of the authors' LoRAs
        ),
    )
}
