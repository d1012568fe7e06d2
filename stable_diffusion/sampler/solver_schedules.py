"""Schedules of samplers that call the network twice a step, or combine several calls.

Each is made from a schedule of `schedule.py`, whose steps are split, marked or weighted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..config.diffusion import LEVEL_OPTIONS, DiffusionConfig
from .noise_levels import interpolate_timesteps
from .schedule import (
    CLEAN,
    Level,
    Schedule,
    Step,
    chain_levels,
    compute_alphas_bar,
    compute_ratios,
    make_dpm_schedule,
    make_euler_schedule,
    make_lcm_schedule,
    space_timesteps,
)
from .steps.runge_kutta import compute_ancestral_ratios
from .steps.weights import integrate_polynomial

LMS_ORDER = 4
FEW_STEPS = 14  # with as many, or fewer, the last steps of diffusers' solvers are of a lower order


def make_heun_schedule(config: DiffusionConfig, num_steps: int, **given: Any) -> Schedule:
    """Return the schedule of `make_euler_schedule` with a second call at the end of each step."""
    schedule = make_euler_schedule(config, num_steps, **given)
    return _add_second_calls(
        schedule, lambda step, following: (following.timestep, following.start)
    )


def make_dpm_2_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_euler_schedule` with a second call in the middle of each step.

    The middle is that of log(sigma / alpha).
    """
    schedule = _make_schedule_of_whole_timesteps(config, num_steps)
    return _add_middles(config, schedule, lambda ratio, next_ratio: next_ratio)


def make_dpm_2_ancestral_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_dpm_2_schedule` for steps that add noise at their end.

    The middle is that of the way down, before noise is added; the first call adds none.
    """
    schedule = _make_schedule_of_whole_timesteps(config, num_steps)
    schedule = _add_middles(config, schedule, lambda *ratios: compute_ancestral_ratios(*ratios)[0])
    steps = (replace(step, adds_noise=step.order == 2) for step in schedule.steps)
    return replace(schedule, steps=tuple(steps))


def make_dpm_sde_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_dpm_2_schedule`, with Karras' timesteps as they are."""
    schedule = make_euler_schedule(config, num_steps)
    schedule = _add_middles(config, schedule, lambda ratio, next_ratio: next_ratio)
    *steps, last = schedule.steps
    return replace(schedule, steps=(*steps, replace(last, adds_noise=False)))


def _make_schedule_of_whole_timesteps(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_euler_schedule`, with Karras' timesteps rounded."""
    schedule = make_euler_schedule(config, num_steps)
    if config.schedule != "karras":
        return schedule
    steps = (replace(step, timestep=float(np.rint(step.timestep))) for step in schedule.steps)
    return replace(schedule, steps=tuple(steps))


def _add_middles(
    config: DiffusionConfig, schedule: Schedule, find_end: Callable[[float, float], float]
) -> Schedule:
    """Return a schedule whose steps have a second call in the middle of log(sigma / alpha).

    Args:
        find_end: returns the ratio to which the step goes down, from its first and last ratio.
    """
    all_ratios = compute_ratios(config)

    def find_middle(step: Step, following: Step) -> tuple[float, Level]:
        ratio = step.start.ratio
        middle = (ratio * find_end(ratio, step.end.ratio)) ** 0.5
        timestep = interpolate_timesteps(np.array([middle]), all_ratios)[0]
        return float(timestep), Level.from_ratio(middle)

    return _add_second_calls(schedule, find_middle, ends_there=True)


def _add_second_calls(
    schedule: Schedule,
    find_call: Callable[[Step, Step], tuple[float, Level]],
    ends_there: bool = False,
) -> Schedule:
    """Return a schedule with two calls of the network in each step but the last one.

    Args:
        find_call: returns the timestep and the level of the second call, from a step and the one
            that follows.
        ends_there: whether the first call ends at that level, and not at the end of the step.
    """
    steps: list[Step] = []
    for step, following in pairwise(schedule.steps):
        timestep, level = find_call(step, following)
        steps.append(replace(step, end=level if ends_there else step.end))
        steps.append(Step(timestep, level, step.end, order=2))
    steps.append(schedule.steps[-1])
    return replace(schedule, steps=tuple(steps), num_steps=len(schedule.steps), calls_per_step=2)


def make_lms_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_euler_schedule` with the weights of a multistep method.

    They integrate the polynomial through the noise of the last four steps, over sigma / alpha.
    """
    schedule = make_euler_schedule(config, num_steps)
    ratios = [step.start.ratio for step in schedule.steps]
    steps = []
    for i, step in enumerate(schedule.steps):
        nodes = ratios[max(i + 1 - LMS_ORDER, 0) : i + 1][::-1]
        steps.append(replace(step, weights=integrate_polynomial(nodes, step.end.ratio)))
    return replace(schedule, steps=tuple(steps))


def make_dpm_3m_schedule(config: DiffusionConfig, num_steps: int, **given: Any) -> Schedule:
    """Return the schedule of `make_dpm_schedule` for a solver of the third order."""
    schedule = make_dpm_schedule(config, num_steps, **given)
    return _with_orders(schedule, _lower_last_orders(config, 3, len(schedule), at_end=1))


def make_dpm_2s_schedule(config: DiffusionConfig, num_steps: int, **given: Any) -> Schedule:
    """Return the schedule of `make_dpm_schedule`, with steps of order 1 and 2 in turn.

    The last step is of order 1, as the one before it if their number is even.
    """
    schedule = make_dpm_schedule(config, num_steps, **given)
    n = len(schedule)
    orders = [1, 2] * ((n - 1) // 2) + [1] * (2 - n % 2)
    return _with_orders(schedule, orders)


def make_unipc_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_dpm_schedule` for a solver whose order falls to 1 at the end."""
    schedule = make_dpm_schedule(config, num_steps)
    left = range(len(schedule), 0, -1)
    return _with_orders(schedule, [min(config.solver_order, n) for n in left])


def make_deis_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return the schedule of `make_dpm_schedule`, which ends at the lowest level of training.

    If its own levels end there already, the last step changes nothing, as in diffusers.
    """
    schedule = make_dpm_schedule(config, num_steps)
    *steps, last = schedule.steps
    lowest = Level.from_ratio(float(compute_ratios(config)[0]))
    end = last.start if config.schedule in LEVEL_OPTIONS else lowest
    schedule = replace(schedule, steps=(*steps, replace(last, end=end)))
    order = config.solver_order
    return _with_orders(schedule, _lower_last_orders(config, order, len(schedule), at_end=order))


def _lower_last_orders(
    config: DiffusionConfig, order: int, num_steps: int, at_end: int
) -> list[int]:
    """Return the order of each step: lower at the end of a short run, if the config says so.

    Args:
        at_end: the order of the last step of a long run.
    """
    orders = [order] * (num_steps - 1) + [at_end]
    if config.lower_order_final and num_steps <= FEW_STEPS:
        orders[-2:] = [min(order, 2), 1][-num_steps:]
    return orders


def _with_orders(schedule: Schedule, orders: Sequence[int]) -> Schedule:
    """Return a schedule whose steps have these orders."""
    steps = (replace(step, order=n) for step, n in zip(schedule.steps, orders, strict=True))
    return replace(schedule, steps=tuple(steps))


def make_pndm_schedule(config: DiffusionConfig, num_steps: int) -> Schedule:
    """Return a schedule of steps of the same length in time; the second one is there twice.

    Raises:
        ValueError: if the first timestep is beyond the training's last one.
    """
    timesteps = _space_whole_timesteps(config, num_steps)
    timesteps = [*timesteps[:2], *timesteps[1:]]
    levels = [Level.from_alpha_bar(alpha_bar) for alpha_bar in compute_alphas_bar(config).tolist()]
    last = CLEAN if config.set_alpha_to_one else levels[0]
    length = config.num_train_timesteps // num_steps
    steps = (
        Step(
            float(t),
            start=levels[t],
            end=levels[t - length] if t >= length else last,
            before=levels[min(t + length, len(levels) - 1)],
        )
        for t in timesteps
    )
    return Schedule(tuple(steps), num_steps=num_steps)


def make_ddpm_schedule(
    config: DiffusionConfig, num_steps: int, timesteps: Sequence[int] | None = None
) -> Schedule:
    """Return a schedule at whole timesteps.

    Raises:
        ValueError: if the first timestep is beyond the training's last one.
    """
    chosen = _space_whole_timesteps(config, num_steps) if timesteps is None else timesteps
    whole = np.array(chosen)
    levels = map(Level.from_alpha_bar, compute_alphas_bar(config)[whole].tolist())
    return Schedule(chain_levels(whole, levels))


def make_tcd_schedule(config: DiffusionConfig, num_steps: int, **given: Any) -> Schedule:
    """Return the schedule of `make_lcm_schedule`, which ends at the lowest level of training."""
    *steps, last = make_lcm_schedule(config, num_steps, **given).steps
    lowest = Level.from_alpha_bar(float(compute_alphas_bar(config)[0]))
    marked = (
        replace(step, next_timestep=int(following.timestep))
        for step, following in pairwise((*steps, last))
    )
    return Schedule((*marked, replace(last, end=lowest)))


def _space_whole_timesteps(config: DiffusionConfig, num_steps: int) -> list[int]:
    """Return [num_steps] falling timesteps of the training.

    Raises:
        ValueError: if the first one is beyond the training's last one.
    """
    last = config.num_train_timesteps - 1
    timesteps = space_timesteps(config, num_steps).round().astype(int).tolist()
    if timesteps[0] > last:
        raise ValueError(
            f"{num_steps} steps begin at timestep {timesteps[0]}, the training ends at {last}: "
            "use fewer steps"
        )
    return timesteps
