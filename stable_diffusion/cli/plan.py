"""Plan what a run makes, before anything is loaded. The plan is the same on all ranks."""

import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..config.model import ModelConfig
from ..device import backend
from .job import (
    Batch,
    CompleteJob,
    Job,
    UsageError,
    check_start,
    make_jobs,
    warn_of_no_guidance,
    warn_of_prompts,
)
from .larger import open_upscale
from .model_task import GivenPictures, require_inputs
from .output.file_names import FileNames, check_sizes, name_files
from .ranks import Ranks
from .recipe.record import RecipeComparison
from .settings import Settings
from .terminal.console import say

MAX_AT_ONCE = 8  # pictures, if the user does not say; more do not keep a GPU busier


@dataclass(frozen=True)
class Plan:
    """The pictures to make, and their files.

    Attributes:
        jobs: the pictures that do not exist yet.
        drawn_seed: the seed of the first picture; None if the user gave it.
        names: the files of all pictures; only the first rank has them.
        batch_size: how many pictures to denoise at once; None if memory decides.
    """

    jobs: Sequence[Job]
    drawn_seed: int | None
    names: FileNames | None
    batch_size: int | None

    def count_at_once(self, n_fitting: int) -> int:
        """Return how many pictures of one kind to denoise at once.

        Args:
            n_fitting: how many fit into the memory of every rank.
        """
        if self.batch_size is not None:
            return self.batch_size
        return min(max(n_fitting, 1), MAX_AT_ONCE)

    def complete_jobs(self, settings: Settings, config: ModelConfig) -> list[CompleteJob]:
        """Return the jobs with the model's defaults; check that they suit the model and the files.

        Raises:
            UsageError: if something does not.
        """
        start = settings.start
        given = GivenPictures(
            has_image=start is not None,
            has_mask=start is not None and start.repainting is not None,
            has_control=bool(settings.controls),
        )
        try:
            require_inputs(config.name, config.unet.task, self.jobs, given)
        except ValueError as error:
            raise UsageError(str(error)) from None
        jobs = [job.with_defaults(config, start) for job in self.jobs]
        if self.drawn_seed is not None:
            say(f"Seed: {self.drawn_seed}")
        warn_of_no_guidance(jobs, config)
        warn_of_prompts(jobs)
        check_start(start, config)
        if self.names is not None:
            size = None if start is None else start.size
            check_sizes(self.names, jobs, settings.n_rows, size, open_upscale(settings))
        return jobs


def make_plan(settings: Settings, ranks: Ranks) -> Plan:
    """Return the plan for a command line. All ranks skip the files that the first one finds.

    On a CPU the pictures of a small grid are made in one batch, so that the UNet is freed before
    any is decoded. On a GPU, where each picture of a batch takes much memory, memory decides.

    Raises:
        UsageError: see `name_files`.
        ValueError: if the ranks were asked for different pictures.
    """
    (seed,) = ranks.share([secrets.randbits(32)])
    is_drawn = any(request.seed is None for request in settings.requests)
    jobs = make_jobs(settings, seed)
    ranks.require_same(jobs, "asked for other pictures: are the files the same there?")
    names = name_files(settings, jobs) if ranks.is_first else None

    are_missing = [names is None or not names.exists(job) for job in jobs]
    batch_size = settings.batch_size or 0  # 0 for None: ranks can share only integers
    is_grid_alone = names is not None and not names.pictures
    if is_grid_alone and settings.batch_size is None and not backend.is_gpu():
        batch_size = min(len(jobs), MAX_AT_ONCE)
    batch_size, *shared = ranks.share([batch_size, *are_missing])
    missing = [job for job, is_missing in zip(jobs, shared, strict=True) if is_missing]
    if len(missing) < len(jobs):
        say(f"Skipped {len(jobs) - len(missing)} of {len(jobs)} pictures, which exist")
    if names is not None:
        _warn_of_changes([job for job in jobs if names.exists(job)], names, settings)
    return Plan(
        jobs=missing,
        drawn_seed=seed if is_drawn else None,
        names=names,
        batch_size=batch_size or None,
    )


def _warn_of_changes(existing: Sequence[Job], names: FileNames, settings: Settings) -> None:
    """Warn about pictures that are kept, but were not made as the settings ask."""
    if not existing:
        return
    comparison = RecipeComparison(settings)
    paths = [(names.pictures[job.index], job) for job in existing]
    different = [path for path, job in paths if comparison.differs(path, job)]
    if different:
        n = len(different)
        which = f"{different[0]} was" if n == 1 else f"{different[0]} and {n - 1} more were"
        warnings.warn(
            f"{which} made from another prompt, or with another model or other options, than you "
            "ask for now: delete the pictures to make again, or use --force for all",
            stacklevel=2,
        )


def make_batches(
    jobs: Iterable[CompleteJob], count_at_once: Callable[[CompleteJob], int], n_shares: int = 1
) -> list[Batch]:
    """Return the jobs in batches of the same settings, as even as possible.

    Args:
        count_at_once: returns how many jobs like this one may be in a batch.
        n_shares: how many processes share the batches. There are at least as many batches of the
            same settings, if there are enough jobs.
    """
    groups: dict[CompleteJob, list[CompleteJob]] = {}
    for job in jobs:
        groups.setdefault(job.batch_key, []).append(job)
    batches = []
    for group in groups.values():
        n = max(math.ceil(len(group) / count_at_once(group[0])), min(n_shares, len(group)))
        bounds = [len(group) * i // n for i in range(n + 1)]
        batches += [Batch(group[start:end]) for start, end in pairwise(bounds)]
    return batches
