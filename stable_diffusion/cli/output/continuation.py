"""Say how to make the rest of the pictures after an interruption."""

from collections.abc import Sequence

from ..job import Job
from ..settings import Settings
from .file_names import FileNames


def explain_continuation(
    settings: Settings, names: FileNames, jobs: Sequence[Job], n_finished: int
) -> str:
    """Return what to tell a user who interrupts a run.

    Args:
        jobs: the pictures to make, in order.
        n_finished: how many of them are finished.
    """
    n_left = len(jobs) - n_finished
    kept = "no picture is finished"
    if n_finished:
        kept = f"{n_finished} of {len(jobs)} pictures are finished, and kept"
    if not n_left:
        return kept
    if settings.prompts_file is not None:
        return f"{kept}: the same command makes the others"
    seed = f"--seed {jobs[n_finished].seed}"
    if not n_finished:
        return f"{kept}: the same command with {seed} makes these pictures"
    output = "" if names.has_new_names else " and another --output"
    return f"{kept}: the same command with {seed} --n_images {n_left}{output} makes the others"
