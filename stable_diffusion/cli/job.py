"""What is to be made: one `Job` a picture, and which of them are made at once."""

import argparse
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..conditioning import warn_of_syntax
from ..config.model import ModelConfig
from ..images.arrays import MAX_PIXELS, MULTIPLE, find_similar_size
from ..sampler.sampler import Sampler

# How many times as many pixels as a model is made for a picture to start from may have by itself:
# from the first on pictures get odd and take long, from the second on steps take minutes, unless
# there are few pixels in all, as with the embedded model.
LARGE, TOO_LARGE = 2, 8
FEW_PIXELS = 1024 * 1024


class UsageError(ValueError):
    """An argument that does not suit the model, or the others."""


@dataclass(frozen=True)
class Job:
    """One picture. What is None is as the model says; `suited_to` fills it in."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None  # pixels
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance_rescale: float = 0.0
    sampler: str | None = None
    schedule: str | None = None
    long_prompt: bool = False
    prompt_weights: bool = False
    clip_skip: int = 0
    strength: float | None = None  # of a picture that starts from another
    index: int = 1  # which of all the pictures that are asked for it is
    file: str | None = None  # its name in the folder of the output, where it has one of its own
    where: str = ""  # it is asked for: the line of a prompts file, as errors start

    @property
    def settings(self) -> "Job":
        """What pictures that are made at once have in common."""
        alone = replace(self, seed=0, index=0, file=None, where="")
        if self.long_prompt:  # a batch would give all texts the windows of the longest
            return alone
        return replace(alone, prompt="", negative_prompt="")

    def suited_to(self, config: ModelConfig) -> "Job":
        """The job with the model's defaults where it does not say.

        Raises:
            UsageError: what it asks for, the model has not.
        """
        factor = config.autoencoder.factor
        for option in ("width", "height"):
            pixels = getattr(self, option)
            if pixels is not None and pixels % factor:
                raise UsageError(
                    f"{self.where}--{option} must be a multiple of {factor}, got {pixels}"
                )
        most = config.most_clip_skip
        if self.clip_skip > most:
            raise UsageError(
                f"{self.where}--clip-skip must be from 0 to {most} for this model, "
                f"got {self.clip_skip}"
            )
        try:
            sampler = Sampler.for_model(config.diffusion, self.sampler, self.schedule)
            defaults = config.defaults_with(sampler.name)
            steps = defaults.steps if self.steps is None else self.steps
            sampler.schedule(steps)
        except ValueError as error:
            raise UsageError(f"{self.where}{error}") from None
        width, height = defaults.size if self.width is None else (self.width, self.height)
        cfg = defaults.guidance if self.cfg is None else self.cfg
        return replace(
            self,
            sampler=sampler.name,
            schedule=sampler.schedule_name,
            steps=steps,
            cfg=cfg,
            width=width,
            height=height,
        )


@dataclass(frozen=True)
class Batch:
    """Jobs that are made at once: they have the same settings."""

    jobs: Sequence[Job]

    @property
    def strength(self) -> float | None:
        """How far to go from the picture to start from, if there is one."""
        return self.jobs[0].strength

    def latent_size(self, factor: int) -> tuple[int, int]:
        """Height and width in latents, of a VAE with this factor."""
        job = self.jobs[0]
        return job.height // factor, job.width // factor

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that both of the library's generators take."""
        job = self.jobs[0]
        return {
            "text": [job.prompt for job in self.jobs],
            "n_images": len(self.jobs),
            "num_steps": job.steps,
            "cfg_weight": job.cfg,
            "negative_text": [job.negative_prompt for job in self.jobs],
            "seed": [job.seed for job in self.jobs],
            "guidance_rescale": job.guidance_rescale,
            "long_prompt": job.long_prompt,
            "prompt_weights": job.prompt_weights,
            "clip_skip": job.clip_skip,
        }


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """All pictures that the command line asks for, in order."""
    jobs: list[Job] = []
    for request in args.requests:
        names = Job.__dataclass_fields__.keys() - {"seed", "index"}
        options = {name: getattr(request, name) for name in names if name in request}
        if "image" in args:
            options["height"], options["width"], _ = args.image.shape
        jobs += [
            Job(seed=request.seed + i, index=len(jobs) + i + 1, **options)
            for i in range(request.n_images)
        ]
    return jobs


def check_start_size(args: argparse.Namespace, config: ModelConfig) -> None:
    """Warn of a picture to start from that is large for the model, and refuse what is too large.

    Nothing is said of a size that the user gives.

    Raises:
        UsageError: it is too large.
    """
    size = getattr(args, "image_size", None)
    if size is None:
        return
    width, height = config.defaults.size
    usual = width * height
    n_pixels = math.prod(side - side % MULTIPLE for side in size)  # that are drawn
    if n_pixels <= LARGE * usual:
        return
    # Proportions need steps much smaller than the sides.
    multiple = MULTIPLE if min(width, height) >= 4 * MULTIPLE else config.autoencoder.factor
    fitting = find_similar_size(size, usual, multiple)
    about = (
        f"{args.image_file} has {size[0]}x{size[1]} pixels, some {n_pixels / usual:.0f} times as "
        f"many as the model is made for ({width}x{height})"
    )
    options = "--width {} --height {}".format(*fitting)
    if n_pixels > MAX_PIXELS or n_pixels > max(TOO_LARGE * usual, FEW_PIXELS):
        raise UsageError(f"{about}: add {options}, or another --width and --height to bring it to")
    warnings.warn(
        f"{about}: it takes long, and things may come out twice; {options} suits the model",
        stacklevel=2,
    )


def warn_of_no_guidance(jobs: Iterable[Job]) -> None:
    """Tell of what has no effect on these jobs, suited to a model, as they have no guidance."""
    unguided = [job for job in jobs if job.cfg <= 1]
    options = {
        "--negative_prompt": any(job.negative_prompt for job in unguided),
        "--guidance-rescale": any(job.guidance_rescale for job in unguided),
    }
    if asked := [option for option, is_asked in options.items() if is_asked]:
        warnings.warn(
            f"there is no guidance for {' and '.join(asked)} to work through: give --cfg more "
            "than 1",
            stacklevel=2,
        )


def warn_of_prompts(jobs: Iterable[Job]) -> None:
    """Tell of what these jobs' prompts have in them that is only text here, and in which line."""
    for weigh in (False, True):
        texts: dict[str, str] = {}
        for job in jobs:
            if job.prompt_weights == weigh:
                texts.setdefault(job.prompt, f"{job.where}the prompt")
                if job.cfg > 1:
                    texts.setdefault(job.negative_prompt, f"{job.where}the negative prompt")
        warn_of_syntax(texts, weigh)
