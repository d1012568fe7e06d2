"""The arguments of both generators of `StableDiffusion`: checked, with defaults filled in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from .check_arguments import (
    check_integer,
    check_number,
    check_option_names,
    check_prompts,
    check_sampler,
    check_seed,
)
from .conditioning import TextOptions, Texts
from .config.model import ModelConfig
from .sampler.choose import choose_sampler
from .sampler.noise import NoiseStream, make_noise_streams
from .sampler.sampler import Sampler

OptionalTexts = Texts | Sequence[str | None] | None


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments that both generators take.

    Attributes:
        sampler: one of `SAMPLERS`, or a `Sampler`; if None, `StableDiffusion.sampler`.
        schedule: one of the sampler's schedules: the spacing of the timesteps, or "karras". If
            None, a sampler that is given by name has the model's own schedule.
        guidance_rescale: how much of the contrast that guidance adds is removed, in [0, 1]
            (arXiv:2305.08891, section 3.4); 0 by default.
        long_prompt: read all of the prompts, in windows of 75 tokens, as many for each prompt as
            the longest one needs. False by default: tokens beyond 75 are dropped with a warning.
        prompt_weights: let brackets give weights to parts of the prompts, see `parse_weights`;
            False by default.
        clip_skip: how many of the last layers of the text encoders to leave out; 0 by default.
    """

    sampler: str | Sampler | None
    schedule: str | None
    guidance_rescale: float
    long_prompt: bool
    prompt_weights: bool
    clip_skip: int


@dataclass(frozen=True)
class Arguments:
    """The arguments that both generators share, in order, not checked yet."""

    text: Texts
    n_images: int
    num_steps: int | None
    cfg_weight: float | None
    negative_text: OptionalTexts
    seed: int | Sequence[int] | None
    options: GenerationOptions


@dataclass(frozen=True)
class Generation:
    """The checked arguments of a call of a generator, for B pictures."""

    texts: list[str]  # B prompts
    negative_texts: list[str] | None  # as many; None without guidance
    text_options: TextOptions
    sampler: Sampler
    num_steps: int
    cfg_weight: float
    guidance_rescale: float
    seed: int  # of the first picture
    streams: list[NoiseStream]  # of noise, one for each picture


def check_generation(arguments: Arguments, config: ModelConfig, own_sampler: Sampler) -> Generation:
    """Check the arguments that both generators share, and fill in defaults.

    Args:
        config: the model's config, which has the defaults of steps and guidance.
        own_sampler: the sampler to use if the caller gives neither a sampler nor a schedule.

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
    sampler = find_sampler(
        config, own_sampler, options.get("sampler"), options.get("schedule"), steps
    )
    defaults = config.defaults_with(sampler.name)
    num_steps = defaults.steps if steps is None else steps
    cfg_weight = defaults.guidance
    if arguments.cfg_weight is not None:
        cfg_weight = check_number("cfg_weight", arguments.cfg_weight)
    rescale = check_number("guidance_rescale", options.get("guidance_rescale", 0.0), 0, 1)
    text_options = TextOptions.for_model(
        config,
        options.get("long_prompt", False),
        options.get("prompt_weights", False),
        options.get("clip_skip", 0),
    )
    first_seed, streams = make_noise_streams(check_seed(arguments.seed), n_images)
    return Generation(
        texts=texts,
        negative_texts=negative_texts if config.needs_second_text(cfg_weight) else None,
        text_options=text_options,
        sampler=sampler,
        num_steps=num_steps,
        cfg_weight=cfg_weight,
        guidance_rescale=rescale,
        seed=first_seed,
        streams=streams,
    )


def find_sampler(
    config: ModelConfig,
    own_sampler: Sampler,
    sampler: str | Sampler | None,
    schedule: str | None,
    steps: int | None,
) -> Sampler:
    """Return the sampler of a call: `own_sampler` if neither a sampler nor a schedule is given.

    A sampler of the model that has timesteps of its own has them only in as many steps.

    Raises:
        TypeError: if one of them is of the wrong kind.
        ValueError: if there is no such sampler, or it does not have this schedule, or it cannot
            run this model.
    """
    check_sampler(sampler, schedule)
    if sampler is None and schedule is None:
        is_of_model = own_sampler == choose_sampler(config)
        return choose_sampler(config, steps=steps) if is_of_model else own_sampler
    if isinstance(sampler, Sampler):
        if schedule is None:
            return sampler
        return Sampler.for_model(sampler.config, sampler.name, schedule)
    name = own_sampler.name if sampler is None else sampler
    return choose_sampler(config, name, schedule, steps=steps)
