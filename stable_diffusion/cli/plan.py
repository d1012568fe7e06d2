"""What a run is to make, before anything is loaded: the same on all ranks."""

import argparse
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..device import memory
from .job import Batch, Job, jobs_of
from .output.picture_writer import Output
from .ranks import Ranks
from .recipe.record import Asked
from .terminal.console import say

MAX_AT_ONCE = 8  # pictures, where the user does not say; more keep no GPU busier


@dataclass(frozen=True)
class Plan:
    """Pictures to make, and where they go.

    Attributes:
        jobs: the pictures that are not there yet.
        drawn_seed: the seed of the first picture, if it was drawn.
        output: the files; of the first rank only.
        batch_size: how many pictures to denoise at once; 0 where memory decides.
        pixels_at_once: see `memory`; of the rank that has the least.
    """

    jobs: Sequence[Job]
    drawn_seed: int | None
    output: Output | None
    batch_size: int
    pixels_at_once: int

    def at_once(self, job: Job) -> int:
        """How many pictures like this one, of a known size, to denoise at once."""
        if self.batch_size > 0:
            return self.batch_size
        return min(max(self.pixels_at_once // (job.width * job.height), 1), MAX_AT_ONCE)


def make_plan(args: argparse.Namespace, ranks: Ranks) -> Plan:
    """The plan for a command line; what depends on files is as the first rank finds them.

    A grid of few pictures is made at once, as the phases then need the least memory.

    Raises:
        UsageError: see `Output`.
        ValueError: the ranks were asked for different pictures.
    """
    drawn_seed = None
    if args.prompts_file is None:
        seed = secrets.randbits(32) if args.seed is None else args.seed
        drawn_seed = seed if args.seed is None else None
        high, low = ranks.share(divmod(seed, 2**32))  # a seed is larger than what ranks share
        args.seed = high * 2**32 + low
    jobs = jobs_of(args)
    ranks.require_same(jobs, "asked for other pictures: are the files the same there?")
    output = Output(args, jobs) if ranks.is_first else None
    if output is not None:
        output.remove_abandoned()

    is_missing = [output is None or not output.has(job) for job in jobs]
    batch_size = args.batch_size or 0
    if output is not None and output.is_grid and args.batch_size is None:
        batch_size = min(len(jobs), MAX_AT_ONCE)
    batch_size, *is_missing = ranks.share([batch_size, *is_missing])
    missing = [job for job, is_it in zip(jobs, is_missing, strict=True) if is_it]
    if len(missing) < len(jobs):
        say(f"Skipped {len(jobs) - len(missing)} of {len(jobs)} pictures, which exist")
    if output is not None:
        _warn_of_others([job for job in jobs if output.has(job)], output, args)
        if not missing:
            output.finish()
    return Plan(missing, drawn_seed, output, batch_size, ranks.least(memory.choose_batch_pixels()))


def _warn_of_others(jobs: Sequence[Job], output: Output, args: argparse.Namespace) -> None:
    """Tell of pictures that are skipped though something else is asked for now."""
    if not jobs:
        return
    asked = Asked(args)
    others = [output.path(job) for job in jobs if asked.is_other(output.path(job), job)]
    if others:
        n = len(others)
        which = f"{others[0]} was" if n == 1 else f"{others[0]} and {n - 1} more were"
        warnings.warn(
            f"{which} made of another prompt, or with another model or other options, than are "
            "asked for now: delete what should be made again, or use --force for all",
            stacklevel=2,
        )


def batches(jobs: Iterable[Job], size: Callable[[Job], int], n_shares: int = 1) -> list[Batch]:
    """Jobs of the same settings together.

    Args:
        size: how many of jobs like this one may be in a batch.
        n_shares: how many processes share the batches: all get some, where there are enough jobs.
    """
    groups: dict[Job, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.settings, []).append(job)
    found = []
    for group in groups.values():
        n = max(math.ceil(len(group) / size(group[0])), min(n_shares, len(group)))
        bounds = [len(group) * i // n for i in range(n + 1)]  # as even as can be
        found += [Batch(group[start:end]) for start, end in pairwise(bounds)]
    return found
