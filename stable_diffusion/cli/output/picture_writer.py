"""Write finished pictures, and the grid of them."""

from pathlib import Path

import numpy as np

from ...images.arrays import choose_rows, make_grid, to_uint8
from ...images.reading import read_picture
from ...images.writing import save_image
from ..job import Job
from ..recipe.record import Record
from ..terminal.console import say
from .file_names import FileNames, IfTaken
from .name_pattern import DIGITS, find_last_number


class PictureWriter:
    """Writes each picture as it is finished, and in the end the grid.

    Folders are created when there is a picture to write in them.

    Args:
        names: the files.
        n_rows: how many rows the grid has.

    Attributes:
        record: makes the texts that say in a file how its pictures were made; None until the
            model is known.
    """

    def __init__(self, names: FileNames, n_rows: int):
        self.record: Record | None = None
        self._names = names
        self._n_rows = n_rows
        self._finished: dict[int, Job] = {}  # by index
        self._grid_pictures: dict[int, np.ndarray] = {}

    @property
    def n_finished(self) -> int:
        """Return how many pictures were added."""
        return len(self._finished)

    def add(self, job: Job, picture: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], or keep it for the grid.

        Raises:
            OSError: if it cannot be written.
        """
        if self._names.pictures:
            self._write(job, picture)
        self._finished[job.index] = job
        if self._names.grid is not None:
            self._grid_pictures[job.index] = picture

    def finish(self) -> None:
        """Write the grid, if there is one, of all finished pictures and those that existed before.

        Raises:
            OSError: if it cannot be written, or a picture that existed cannot be read.
            ValueError: if the pictures have different sizes.
        """
        names = self._names
        if names.grid is None or not (self._grid_pictures or names.existing):
            return
        for index in names.existing:
            values, _ = read_picture(names.pictures[index])  # in [-1, 1]
            self._grid_pictures[index] = to_uint8(values / 2 + 0.5)
        pictures = [picture for _, picture in sorted(self._grid_pictures.items())]
        if len({picture.shape for picture in pictures}) > 1:
            raise ValueError(f"{names.grid}: pictures of different sizes cannot make a grid")
        n_rows = choose_rows(len(pictures), self._n_rows)
        texts = {}
        if self.record is not None and not names.existing:
            jobs = [job for _, job in sorted(self._finished.items())]
            texts = self.record.describe_grid(jobs, n_rows)
        save_image(names.grid, make_grid(np.stack(pictures), n_rows), texts)
        say(f"Wrote {names.grid}")

    def _write(self, job: Job, picture: np.ndarray) -> None:
        """Write a picture to its file; if that is taken, do what the names say."""
        texts = {} if self.record is None else self.record.describe(job)
        own_path = path = self._names.pictures[job.index]
        path.parent.mkdir(parents=True, exist_ok=True)
        if_taken = self._names.if_taken
        attempt = 1
        while True:
            try:
                save_image(path, picture, texts, overwrites=if_taken is IfTaken.OVERWRITE)
            except FileExistsError:
                if if_taken is IfTaken.SKIP:
                    say(f"Another program has made {path} meanwhile: it is kept")
                    return
                attempt += 1
                path = _find_another_name(own_path, if_taken, attempt)
            else:
                say(f"Wrote {path}")
                return


def _find_another_name(path: Path, if_taken: IfTaken, attempt: int) -> Path:
    """Return a name for a picture whose own is taken; `attempt` counts from 2."""
    if if_taken is IfTaken.TAKE_NEXT_NUMBER:
        return path.with_name(f"{find_last_number(path.parent) + 1:0{DIGITS}}{path.suffix}")
    return path.with_stem(f"{path.stem}-{attempt}")
