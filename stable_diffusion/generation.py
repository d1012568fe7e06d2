"""The arguments of both generators of `StableDiffusion`: checked, with defaults filled in."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx
import numpy as np

from .check_arguments import (
    check_integer,
    check_number,
    check_option_names,
    check_prompts,
    check_range,
    check_sampler,
    check_seed,
)
from .check_task import check_image_cfg_weight
from .conditioning import TextOptions, Texts
from .config.model import ModelConfig
from .control import Control, LoadedControl, check_controls
from .prediction import Shortcuts
from .sampler.choose import choose_sampler
from .sampler.noise import NoiseStream, make_noise_streams
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule, ensure_one_step
from .utils.step_range import is_in_range
from .utils.wording import InputWarning

OptionalTexts = Texts | Sequence[str | None] | None


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments that both generators take.

    Attributes:
        sampler: one of `SAMPLERS`, or a `Sampler`; if None, `StableDiffusion.sampler`.
        schedule: one of the sampler's schedules: how the timesteps or noise levels are spaced, see
            `SCHEDULES`. If None, a sampler that is given by name has the model's own schedule.
        timesteps: the timesteps of the steps themselves, falling, in place of `num_steps` and
            `schedule`, for samplers that take them.
        eta: how much noise each step adds, in [0, 1], for samplers that take it: 0 by default in
            DDIM (arXiv:2010.02502, formula 16).
        guidance_rescale: how much of the contrast that guidance adds is removed, in [0, 1]
            (arXiv:2305.08891, section 3.4); 0 by default.
        long_prompt: read all of the prompts, in windows of 75 tokens, as many for each prompt as
            the longest one needs. False by default: tokens beyond 75 are dropped with a warning.
        prompt_weights: let brackets give weights to parts of the prompts, see `parse_weights`;
            False by default.
        clip_skip: how many of the last layers of the text encoders to leave out; 0 by default.
        controls: pictures that steer what is drawn, see `Control`; none by default.
        reuse: compute the whole UNet in every so many steps only, see `Shortcuts`; 1 by default,
            in each of them. Pictures are not those of all steps any more.
        cfg_range: the start and the end of the steps with guidance, in shares of all, (0, 1) by
            default (arXiv:2404.07724): step i of n has guidance if start ≤ i/n and (i + 1)/n ≤ end.
    """

    sampler: str | Sampler | None
    schedule: str | None
    timesteps: Sequence[int] | None
    eta: float | None
    guidance_rescale: float
    long_prompt: bool
    prompt_weights: bool
    clip_skip: int
    controls: Sequence[Control]
    reuse: int
    cfg_range: Sequence[float]


@dataclass(frozen=True)
class Arguments:
    """The arguments of both generators, in order, and of one of them; not checked yet."""

    text: Texts
    n_images: int
    num_steps: int | None
    cfg_weight: float | None
    negative_text: OptionalTexts
    seed: int | Sequence[int] | None
    options: GenerationOptions
    image_cfg_weight: float | None = None


@dataclass(frozen=True)
class Generation:
    """The checked arguments of a call of a generator, for B pictures."""

    texts: list[str]  # B prompts
    negative_texts: list[str] | None  # as many; None without guidance
    text_options: TextOptions
    sampler: Sampler
    num_steps: int
    cfg_weight: float
    image_cfg_weight: float | None  # None unless the model edits a picture
    guidance_rescale: float
    seed: int  # of the first picture
    streams: list[NoiseStream]  # of noise, one for each picture
    controls: tuple[Control, ...]
    reuse: int
    cfg_range: tuple[float, float]

    @property
    def image_guidance(self) -> float | None:
        """Return the weight of guidance by the picture to edit; None without guidance."""
        return None if self.negative_texts is None else self.image_cfg_weight

    def choose_shortcuts(self, n_steps: int) -> Shortcuts:
        """Return the computations that are skipped in which of so many steps.

        If none of them has guidance, a warning says so.
        """
        start, end = self.cfg_range
        guided = frozenset(i for i in range(n_steps) if is_in_range(i, n_steps, start, end))
        if not guided and self.negative_texts is not None:
            steps = "1 step" if n_steps == 1 else f"{n_steps} steps"
            message = (
                f"guidance has no effect: none of {steps} lies within its range, {start:g} to "
                f"{end:g}"
            )
            warnings.warn(InputWarning(message), stacklevel=4)
        return Shortcuts(self.reuse, guided)

    def cut_schedule(self, strength: float) -> Schedule:
        """Return the last `strength` of the schedule, at least one step.

        If it is less, the schedule gets more steps, unless the caller chose its timesteps. A
        warning says so.
        """
        num_steps = self.num_steps
        if self.sampler.timesteps is None:
            num_steps = ensure_one_step(num_steps, strength)
        n_left = int(num_steps * strength)
        if n_left == 0:
            warnings.warn(
                f"{num_steps} timesteps at strength {strength} are less than one: the last is run",
                stacklevel=3,
            )
        return self.sampler.schedule(num_steps).last(max(n_left, 1))


def check_generation(
    arguments: Arguments,
    config: ModelConfig,
    own_sampler: Sampler,
    loaded: Sequence[LoadedControl] = (),
) -> Generation:
    """Check the arguments that both generators share, and fill in defaults.

    Args:
        config: the model's config, which has the defaults of steps and guidance.
        own_sampler: the sampler to use if the caller gives neither a sampler nor a schedule.
        loaded: the control networks of the pipeline.

    Raises:
        TypeError: if an argument is of the wrong kind, or an option is unknown.
        ValueError: if an argument is out of its range.
    """
    options = arguments.options
    check_option_names(options, GenerationOptions.__annotations__)
    n_images = check_integer("n_images", arguments.n_images, low=1)
    texts, negative_texts = check_prompts(arguments.text, arguments.negative_text, n_images)
    steps = arguments.num_steps
    steps = None if steps is None else check_integer("num_steps", steps)
    sampler = find_sampler(config, own_sampler, options, steps)
    num_steps = _count_steps(config, sampler, steps)
    cfg_weight = config.defaults_with(sampler.name).guidance
    if arguments.cfg_weight is not None:
        cfg_weight = check_number("cfg_weight", arguments.cfg_weight)
    image_cfg_weight = check_image_cfg_weight(arguments.image_cfg_weight, config)
    needs_second_text = config.needs_second_text(cfg_weight, image_cfg_weight)
    rescale = check_number("guidance_rescale", options.get("guidance_rescale", 0.0), 0, 1)
    controls = check_controls(options.get("controls", ()), loaded)
    first_seed, streams = make_noise_streams(check_seed(arguments.seed), n_images)
    return Generation(
        texts=texts,
        negative_texts=negative_texts if needs_second_text else None,
        text_options=_read_text_options(options, config),
        sampler=sampler,
        num_steps=num_steps,
        cfg_weight=cfg_weight,
        image_cfg_weight=image_cfg_weight,
        guidance_rescale=rescale,
        seed=first_seed,
        streams=streams,
        controls=controls,
        reuse=check_integer("reuse", options.get("reuse", 1), low=1),
        cfg_range=check_range("cfg_range", options.get("cfg_range", (0.0, 1.0))),
    )


def _read_text_options(options: GenerationOptions, config: ModelConfig) -> TextOptions:
    """Return the options about the text.

    Raises:
        TypeError, ValueError: see `TextOptions.for_model`.
    """
    return TextOptions.for_model(
        config,
        options.get("long_prompt", False),
        options.get("prompt_weights", False),
        options.get("clip_skip", 0),
    )


def _count_steps(config: ModelConfig, sampler: Sampler, steps: int | None) -> int:
    """Return the number of steps: what the caller gives, or the number of timesteps, or a default.

    Raises:
        ValueError: if the caller gives both steps and timesteps.
    """
    if sampler.timesteps is None:
        return config.defaults_with(sampler.name).steps if steps is None else steps
    num_steps = len(sampler.timesteps)
    own = None if config.few_step is None else config.few_step.timesteps
    if steps is not None and (sampler.timesteps, steps) != (own, num_steps):
        raise ValueError("timesteps are the steps: leave num_steps out")
    return num_steps


def find_sampler(
    config: ModelConfig, own_sampler: Sampler, options: GenerationOptions, steps: int | None
) -> Sampler:
    """Return the sampler of a call: `own_sampler` if the options do not say anything about it.

    A sampler of the model that has timesteps of its own has them only in as many steps.

    Raises:
        TypeError: if one of the options is of the wrong kind.
        ValueError: if there is no such sampler, or it does not have this schedule, or does not
            take these timesteps or eta, or it cannot run this model.
    """
    sampler, schedule = options.get("sampler"), options.get("schedule")
    check_sampler(sampler, schedule)
    timesteps, eta = check_timesteps(options.get("timesteps")), options.get("eta")
    if eta is not None:
        eta = check_number("eta", eta)
    if sampler is None and own_sampler == choose_sampler(config, own_sampler.name):
        sampler = own_sampler.name  # only what the model itself chooses
    if isinstance(sampler, str):
        return choose_sampler(config, sampler, schedule, timesteps, eta, steps=steps)
    base = own_sampler if sampler is None else sampler
    if (schedule, timesteps, eta) == (None, None, None):
        return base
    if schedule is None and timesteps is None:
        timesteps = base.timesteps
    eta = base.eta if eta is None else eta
    # Another schedule for the object's own sampler begins from the spacing that the model says.
    is_of_model = sampler is None and schedule is not None
    diffusion = config.diffusion if is_of_model else base.config
    return Sampler.for_model(diffusion, base.name, schedule, timesteps, eta)


def check_timesteps(value: Any) -> tuple[int, ...] | None:
    """Return timesteps as Python's integers; whether they suit the model is checked later.

    Raises:
        TypeError: if they are neither a sequence of integers nor None.
    """
    if value is None:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list and (not isinstance(value, (np.ndarray, mx.array)) or value.ndim == 0):
        raise TypeError(f"timesteps must be a list of integers, got {type(value).__name__}")
    return tuple(check_integer("each timestep", timestep) for timestep in value)
