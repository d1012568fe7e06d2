"""What to make: one `Job` for each picture, and which pictures are made together."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..conditioning import warn_of_syntax
from ..config.autoencoder_tiny import require_encoder
from ..config.model import ModelConfig
from ..config.task import IMAGE_GUIDANCE
from ..images.arrays import MAX_PIXELS, MULTIPLE, find_similar_size
from ..sampler.choose import choose_sampler
from ..sampler.sampler import Sampler
from ..utils.size import Size
from .larger import SecondPass, complete_second_pass
from .settings import PictureOptions, Settings, StartPicture

# How many times the pixels that a model is made for a picture to start from may have if the user
# gives no size. Above the first factor things are drawn twice and steps are slow; above the second
# a step takes minutes, unless the picture has few pixels in all (the embedded model is small).
MAX_USUAL_FACTOR, MAX_FACTOR = 2, 8
FEW_PIXELS = 1024 * 1024
# How far to go from the picture if the user does not say. A part is repainted from noise alone, as
# diffusers' inpainting pipelines do.
STRENGTH, REPAINTING_STRENGTH = 0.9, 1.0
USUAL_CROP = 32  # pixels around the mask that are suggested for --mask-crop


class UsageError(ValueError):
    """An argument that does not suit the model or the other arguments."""


@dataclass(frozen=True)
class Job(PictureOptions):
    """One picture, as the user asks for it. `with_defaults` replaces the values that are None.

    Attributes:
        seed: its own.
        index: the number of the picture among all pictures of the run, from 1.
    """

    seed: int = field(kw_only=True)
    index: int = 1

    def with_defaults(
        self, config: ModelConfig, start: StartPicture | None = None
    ) -> "CompleteJob":
        """Return the job with the model's defaults in place of None.

        Args:
            start: the picture to start from.

        Raises:
            UsageError: if the model cannot do what the job asks for.
        """
        factor = config.autoencoder.factor
        is_padded = start is not None and start.is_padded
        for option, pixels in (("width", self.width), ("height", self.height)):
            if pixels is not None and pixels % factor and not is_padded:
                raise UsageError(
                    f"{self.where}--{option} must be a multiple of {factor}, got {pixels}"
                )
        max_clip_skip = config.max_clip_skip
        if self.clip_skip > max_clip_skip:
            raise UsageError(
                f"{self.where}--clip-skip must be from 0 to {max_clip_skip} for this model, "
                f"got {self.clip_skip}"
            )
        try:
            sampler = choose_sampler(
                config, self.sampler, self.schedule, self.timesteps, self.eta, steps=self.steps
            )
            defaults = config.defaults_with(sampler.name)
            steps = defaults.steps if self.steps is None else self.steps
            if sampler.timesteps is not None:
                steps = len(sampler.timesteps)
            sampler.schedule(steps)
        except ValueError as error:
            raise UsageError(f"{self.where}{error}") from None
        chosen = {
            "width": defaults.size.width if self.width is None else self.width,
            "height": defaults.size.height if self.height is None else self.height,
            "steps": steps,
            "cfg": defaults.guidance if self.cfg is None else self.cfg,
            **self._choose_start_options(config, start),
            "sampler": sampler.name,
            "schedule": sampler.schedule_name,
            "timesteps": sampler.timesteps,
            "eta": (sampler.used_eta or None) if self.eta is None else self.eta,
        }
        size = Size(chosen["width"], chosen["height"])
        return CompleteJob(**vars(self) | chosen | self._choose_second_pass(config, size, sampler))

    def _choose_second_pass(
        self, config: ModelConfig, size: Size, sampler: Sampler
    ) -> dict[str, Any]:
        """Return the options about a second pass over a picture of a size, with defaults."""
        try:
            return complete_second_pass(self, config, size, sampler)
        except ValueError as error:
            raise UsageError(f"{self.where}{error}") from None

    def _choose_start_options(
        self, config: ModelConfig, start: StartPicture | None
    ) -> dict[str, Any]:
        """Return the options about the picture to start from, with defaults."""
        if config.unet.task == "editing":
            return {"image_cfg": IMAGE_GUIDANCE if self.image_cfg is None else self.image_cfg}
        return {
            "strength": find_default_strength(start) if self.strength is None else self.strength
        }


@dataclass(frozen=True, kw_only=True)
class CompleteJob(Job):
    """One picture with everything that is needed to make it.

    Attributes:
        second_pass: draws it again, at a larger size; None without one.
    """

    width: int
    height: int
    steps: int
    cfg: float
    sampler: str
    second_pass: SecondPass | None = None

    @property
    def size(self) -> Size:
        """Return the size in which it is drawn in the end."""
        second = self.second_pass
        return Size(self.width, self.height) if second is None else second.size

    @property
    def batch_key(self) -> "CompleteJob":
        """Return the part of the job that is the same for all pictures of a batch."""
        key = replace(self, seed=0, index=0, file=None, where="")
        if self.long_prompt:  # in a batch every text would get as many windows as the longest
            return key
        return replace(key, prompt="", negative_prompt="")


@dataclass(frozen=True)
class Batch:
    """Jobs that are made together: they have the same `batch_key`."""

    jobs: Sequence[CompleteJob]

    @property
    def strength(self) -> float | None:
        """Return how far to go from the picture to start from, 0 to 1; None without one."""
        return self.jobs[0].strength

    def latent_size(self, factor: int) -> tuple[int, int]:
        """Return (height, width) of the latents, for a VAE that scales by `factor`."""
        job = self.jobs[0]
        return job.height // factor, job.width // factor

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments that both generators of the library take, by name."""
        job = self.jobs[0]
        return {
            "text": [job.prompt for job in self.jobs],
            "n_images": len(self.jobs),
            "num_steps": job.steps if job.timesteps is None else None,
            "cfg_weight": job.cfg,
            "negative_text": [job.negative_prompt for job in self.jobs],
            "seed": [job.seed for job in self.jobs],
            "guidance_rescale": job.guidance_rescale,
            "long_prompt": job.long_prompt,
            "prompt_weights": job.prompt_weights,
            "clip_skip": job.clip_skip,
            "sampler": job.sampler,
            "schedule": job.schedule,
            "timesteps": job.timesteps,
            "eta": job.eta,
            "reuse": job.reuse,
            "cfg_range": job.cfg_range or (0.0, 1.0),
        }


def make_jobs(settings: Settings, seed: int) -> list[Job]:
    """Return a job for each picture that is asked for, in order.

    Args:
        seed: the seed of the first picture of a request that gives none.
    """
    jobs: list[Job] = []
    for request in settings.requests:
        options = {option.name: getattr(request, option.name) for option in fields(PictureOptions)}
        if settings.start is not None and not settings.start.is_cropped:
            options["width"], options["height"] = settings.start.size
        first_seed = seed if request.seed is None else request.seed
        jobs += [
            Job(seed=first_seed + i, index=len(jobs) + i + 1, **options)
            for i in range(request.n_images)
        ]
    return jobs


def find_default_strength(start: StartPicture | None) -> float | None:
    """Return the strength if the user does not say it; None without a picture to start from."""
    if start is None:
        return None
    return STRENGTH if start.repainting is None else REPAINTING_STRENGTH


def check_start(start: StartPicture | None, config: ModelConfig) -> None:
    """Check that the model can start from the picture; warn if it is large for the model.

    A size that the user gives is not checked.

    Raises:
        UsageError: if the picture is too large.
        ValueError: if the VAE has no encoder.
    """
    if start is None:
        return
    require_encoder(config.autoencoder)
    if start.own_size is None or start.is_cropped:
        return
    own_size = start.own_size
    width, height = config.defaults.size
    usual = width * height
    n_pixels = math.prod(side - side % MULTIPLE for side in own_size)  # those that are drawn
    if n_pixels <= MAX_USUAL_FACTOR * usual:
        return
    # Sides of a small picture must be rounded more finely, or its proportions change.
    multiple = MULTIPLE if min(width, height) >= 4 * MULTIPLE else config.autoencoder.factor
    fitting = find_similar_size(own_size, usual, multiple)
    name = start.file
    if start.repainting is not None and any(start.repainting.margins):
        name += " with --outpaint"
    about = (
        f"{name} has {own_size.width}x{own_size.height} pixels, about "
        f"{n_pixels / usual:.0f} times as many as the model is made for ({width}x{height})"
    )
    options = "--width {} --height {}".format(*fitting)
    if start.repainting is not None:
        options = f"--mask-crop {USUAL_CROP}, or {options}"
    if n_pixels > MAX_PIXELS or n_pixels > max(MAX_FACTOR * usual, FEW_PIXELS):
        raise UsageError(f"{about}: add {options}, or another --width and --height")
    warnings.warn(
        f"{about}: it takes long, and objects may appear twice; {options} suits the model",
        stacklevel=2,
    )


def warn_of_no_guidance(jobs: Iterable[CompleteJob], config: ModelConfig) -> None:
    """Warn about options that have no effect because their jobs predict for one text only."""
    jobs = list(jobs)
    for job in jobs:
        if job.image_cfg is not None and job.image_cfg < 1 < job.cfg:
            warnings.warn(
                f"{job.where}--image-cfg {job.image_cfg:g} is less than 1, which means no guidance "
                "at all: neither by the prompt nor by the picture",
                stacklevel=2,
            )
            break
    unguided = [job for job in jobs if not config.needs_second_text(job.cfg, job.image_cfg)]
    options = {
        "--negative_prompt": any(job.negative_prompt for job in unguided),
        "--guidance-rescale": any(job.guidance_rescale for job in unguided),
        "--cfg-range": any(job.cfg_range for job in unguided),
        "--image-cfg": any(
            job.cfg <= 1 and job.image_cfg not in (None, IMAGE_GUIDANCE) for job in unguided
        ),
    }
    if given := [option for option, is_given in options.items() if is_given]:
        what = "no effect without guidance: give --cfg more than 1"
        if config.unet.task == "editing":
            what += ", and --image-cfg at least 1"
        if config.unet.embeds_guidance:
            what = "no effect with this model, whose UNet takes the guidance as a number"
        has = "have" if len(given) > 1 else "has"
        warnings.warn(f"{' and '.join(given)} {has} {what}", stacklevel=2)


def warn_of_prompts(jobs: Iterable[CompleteJob]) -> None:
    """Warn about syntax in the jobs' prompts that has no meaning here, and name the line."""
    for weigh in (False, True):
        texts: dict[str, str] = {}
        for job in jobs:
            if job.prompt_weights == weigh:
                texts.setdefault(job.prompt, f"{job.where}the prompt")
                if job.cfg > 1:
                    texts.setdefault(job.negative_prompt, f"{job.where}the negative prompt")
        warn_of_syntax(texts, weigh)
