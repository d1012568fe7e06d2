"""Runs that name and write small pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from stable_diffusion.cli.job import Job
from stable_diffusion.cli.output.file_names import FileNames, name_files
from stable_diffusion.cli.output.picture_writer import PictureWriter
from stable_diffusion.cli.settings import Settings, StartPicture

PICTURE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def make_jobs(n: int, **options) -> list[Job]:
    """Return n jobs with seeds from 10 and indices from 1."""
    return [Job("a", seed=10 + i, index=i + 1, **options) for i in range(n)]


def make_settings(output: str | Path, **options) -> Settings:
    """Return the settings of a run that writes to `output`."""
    if (start := options.pop("start_file", None)) is not None:
        options["start"] = StartPicture(start, PICTURE)
    return Settings((), output=str(output), **{"model": "tiny"} | options)


def name_in_run(output: str | Path, jobs: list[Job], **options) -> FileNames:
    """Return the file names of a run."""
    return name_files(make_settings(output, **options), jobs)


def make_writer(output: str | Path, jobs: list[Job], **options) -> PictureWriter:
    """Return the writer of a run."""
    return PictureWriter(name_in_run(output, jobs, **options), options.get("n_rows", 1))


def write(output: str | Path, jobs: list[Job], **options) -> None:
    """Write the pictures that do not exist yet: all values of the one with index i are i."""
    names = name_in_run(output, jobs, **options)
    writer = PictureWriter(names, options.get("n_rows", 1))
    for job in jobs:
        if not names.exists(job):
            writer.add(job, np.full_like(PICTURE, job.index))
    writer.finish()


def list_files(folder: Path) -> list[str]:
    """Return the names of all files in a folder and those below it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_index(file: Path) -> int:
    """Return the index of the picture that `write` has written to a file."""
    return int(np.asarray(Image.open(file))[0, 0, 0])
