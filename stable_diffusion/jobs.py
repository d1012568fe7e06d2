"""What is to be made: one `Job` a picture, and which of them are made at once."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .config import ModelConfig
from .sampler import Sampler


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

    @property
    def settings(self) -> "Job":
        """What pictures that are made at once have in common."""
        alone = {} if not self.long_prompt else {"prompt": self.prompt}  # windows differ in number
        return replace(self, **{"prompt": "", "negative_prompt": "", "seed": 0, "index": 0} | alone)

    def suited_to(self, config: ModelConfig) -> "Job":
        """The job with the model's defaults where it does not say.

        Raises:
            UsageError: what it asks for, the model has not.
        """
        factor = config.autoencoder.factor
        for option in ("width", "height"):
            pixels = getattr(self, option)
            if pixels is not None and pixels % factor:
                raise UsageError(f"--{option} must be a multiple of {factor}, got {pixels}")
        most = config.most_clip_skip
        if self.clip_skip > most:
            raise UsageError(
                f"--clip_skip must be from 0 to {most} for this model, got {self.clip_skip}"
            )
        try:
            sampler = Sampler.for_model(config.diffusion, self.sampler, self.schedule)
            defaults = config.defaults_with(sampler.name)
            steps = defaults.steps if self.steps is None else self.steps
            sampler.schedule(steps)
        except ValueError as error:
            raise UsageError(error) from None
        height, width = defaults.size if self.width is None else (self.height, self.width)
        cfg = defaults.guidance if self.cfg is None else self.cfg
        return replace(self, sampler=sampler.name, steps=steps, cfg=cfg, width=width, height=height)


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
            "text": job.prompt,
            "n_images": len(self.jobs),
            "num_steps": job.steps,
            "cfg_weight": job.cfg,
            "negative_text": job.negative_prompt,
            "seed": job.seed,
            "guidance_rescale": job.guidance_rescale,
            "long_prompt": job.long_prompt,
            "prompt_weights": job.prompt_weights,
            "clip_skip": job.clip_skip,
        }


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """What the command line asks for."""
    names = Job.__dataclass_fields__.keys() - {"seed", "index"}
    options = {name: getattr(args, name) for name in names if name in args}
    if "image" in args:
        options["height"], options["width"], _ = args.image.shape
    return [Job(seed=args.seed + i, index=i + 1, **options) for i in range(args.n_images)]


def batches(jobs: Iterable[Job], size: int) -> list[Batch]:
    """The jobs in order, at most `size` at once, and only those of the same settings."""
    groups: list[list[Job]] = []
    for job in jobs:
        if not groups or len(groups[-1]) == size or groups[-1][0].settings != job.settings:
            groups.append([])
        groups[-1].append(job)
    return [Batch(group) for group in groups]
