"""Where finished pictures go: the names of their files, and the grid of them.

One plain name is that of a grid, and is overwritten. A folder, or a pattern of fields, has a file
for each picture, and overwrites nothing unless told to.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...images.arrays import compute_grid_size, make_grid, to_uint8
from ...images.reading import read_picture
from ...images.writing import (
    FORMATS,
    check_folder,
    check_name,
    check_output,
    check_size,
    save_image,
)
from ...utils.atomic_files import remove_abandoned
from ...utils.wording import describe_error
from ..job import Job, UsageError
from ..recipe.record import Record
from ..terminal.console import say
from .file_names import (
    DIGITS,
    IN_A_FOLDER,
    _are_same,
    _fields,
    _file_name,
    _inside,
    _last_number,
    _Number,
)


class Output:
    """The files of a call: `add` takes each picture as it is finished.

    Nothing is created before there is a picture, and nothing deleted but by `remove_abandoned`.

    Args:
        args: the command line: `output`, `grid`, `n_rows`, `force`, `model`, and whether there is
            a `prompts_file`, of which the pictures that exist are left as they are; `preview`, and
            the `image_file` and `from_image` that are read, None where there are none.
        jobs: all pictures that are asked for.

    Raises:
        UsageError: a file cannot be written, or is there already; or names are not to be told from
            each other.
    """

    record: Record | None = None  # what files say of pictures, once the model is known

    def __init__(self, args: argparse.Namespace, jobs: Sequence[Job]):
        self._overwrites = args.force
        self._restarts = args.prompts_file is not None
        self._is_numbered = False  # on from what is in the folder
        self._is_free = False  # each name, for the pictures of another call
        self._added: dict[int, Job] = {}
        self._paths: dict[int, Path] = {}  # of pictures, by their index
        self._existing: set[int] = set()
        self._images: dict[int, np.ndarray] = {}
        self._n_rows = args.n_rows
        self._grid = args.grid
        try:
            is_folder = args.output.endswith(("/", os.sep)) or os.path.isdir(args.output)
            if is_folder or _fields(args.output):
                self._name_each(args, jobs, is_folder)
                self._find_existing()
            elif args.output and not Path(args.output).suffix:
                raise ValueError(
                    f"--output {args.output}: there is no such folder: {args.output}/ makes it; "
                    f"the name of a picture must end in one of {', '.join(FORMATS)}"
                )
            elif self._grid is not None:
                raise ValueError(
                    f"--output {args.output} is a grid already: with --grid give a folder, or a "
                    "name with {index}"
                )
            elif self._restarts and len(jobs) > 1:
                raise ValueError(
                    f"--output {args.output} is one file, for {len(jobs)} pictures: give a folder, "
                    "or a name with {index}"
                )
            else:
                self._grid = args.output
            if self._grid is not None:
                self._check_grid(jobs)
            self._check_others(args)
        except (ValueError, OSError) as error:
            raise UsageError(describe_error(error)) from None

    @property
    def is_grid(self) -> bool:
        """Whether a grid is all that is written."""
        return not self._paths

    @property
    def preview(self) -> Path:
        """The file for a look at what is being made."""
        if self._paths:
            return next(iter(self._paths.values())).with_name("now.preview.png")
        return Path(self._grid).with_suffix(".preview.png")

    def path(self, job: Job) -> Path:
        """The file of a picture that is not only in a grid."""
        return self._paths[job.index]

    def has(self, job: Job) -> bool:
        """Whether the picture is there already."""
        return job.index in self._existing

    def remove_abandoned(self) -> None:
        """Delete what programs that were killed left half written of these files."""
        remove_abandoned([*self._written, self.preview])

    def check_sizes(self, jobs: Sequence[Job]) -> None:
        """Raise UsageError where a file cannot hold these pictures, whose sizes are known."""
        try:
            for job in jobs if self._paths else ():
                check_size(self._paths[job.index], (job.width, job.height))
            if self._grid is not None and jobs:
                n, size = len(jobs) + len(self._existing), (jobs[0].width, jobs[0].height)
                check_size(self._grid, compute_grid_size(n, size, self._n_rows))
        except ValueError as error:
            raise UsageError(error) from None

    def add(self, job: Job, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], or keep it for the grid."""
        if self._paths:
            self._write(job, image)
        self._added[job.index] = job
        if self._grid is not None:
            self._images[job.index] = image

    def finish(self) -> None:
        """Write the grid, where there is one; pictures that were there before are in it, too.

        After an interruption it has the pictures that there are.
        """
        if self._grid is None or not (self._images or self._existing):
            return
        for index in self._existing:
            picture, _ = read_picture(self._paths[index])
            self._images[index] = to_uint8(picture / 2 + 0.5)
        images = [image for _, image in sorted(self._images.items())]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"{self._grid}: pictures of different sizes make no grid")
        n_rows = self._n_rows if len(images) % self._n_rows == 0 else 1
        texts = {}
        if self.record is not None and not self._existing:
            jobs = [job for _, job in sorted(self._added.items())]
            texts = self.record.of_grid(jobs, n_rows)
        save_image(self._grid, make_grid(np.stack(images), n_rows), texts)
        say(f"Wrote {self._grid}")

    def how_to_continue(self, jobs: Sequence[Job]) -> str:
        """What to tell who interrupts the making of `jobs`."""
        done = len(self._added)
        left = len(jobs) - done
        kept = (
            f"{done} of {len(jobs)} pictures are finished, and kept" if done else "none is finished"
        )
        if not left:
            return kept
        if self._restarts:
            return f"{kept}: the same command makes the others"
        seed = f"--seed {jobs[done].seed}"
        if not done:
            return f"{kept}: the same command with {seed} makes these pictures"
        where = "" if self._is_free else " and another --output"
        return f"{kept}: the same command with {seed} --n_images {left}{where} makes the others"

    def _name_each(self, args: argparse.Namespace, jobs: Sequence[Job], is_folder: bool) -> None:
        folder = args.output if is_folder else os.path.dirname(args.output)
        model = _file_name(args.model)
        start = 0
        if is_folder and not self._restarts and _fields(args.output) <= {"model"}:
            self._is_numbered = True
            start = _last_number(Path(folder.format(model=model)))
        self._is_free = self._is_numbered or "seed" in _fields(args.output)
        taken: dict[str, int] = {}  # index by name, as file systems that ignore case have it
        for job in jobs:
            pattern = os.path.join(args.output, IN_A_FOLDER) if is_folder else args.output
            if job.file is not None:
                pattern = os.path.join(folder, _inside(job))
            index, seed = _Number(start + job.index, DIGITS), _Number(job.seed)
            path = Path(pattern.format(index=index, seed=seed, model=model))
            other = taken.setdefault(str(path).casefold(), job.index)
            if other != job.index:
                raise ValueError(
                    f"{job.where}pictures {other} and {job.index} have one name, {path}: put "
                    "{index} in it"
                )
            self._paths[job.index] = path
        for parent in {path.parent for path in self._paths.values()}:
            check_folder(parent)
        for path in self._paths.values():
            check_name(path)

    def _find_existing(self) -> None:
        """Raise ValueError for files that are there and may be neither kept nor overwritten."""
        if self._overwrites or self._is_numbered:  # numbers that another program may take, too
            return
        self._existing = {index for index, path in self._paths.items() if os.path.lexists(path)}
        if self._existing and not self._restarts:
            first, n = self._paths[min(self._existing)], len(self._existing)
            if n == 1:
                raise ValueError(f"{first} exists: --force overwrites")
            raise ValueError(f"{first} and {n - 1} more exist: --force overwrites")

    def _check_grid(self, jobs: Sequence[Job]) -> None:
        check_output(self._grid)
        if len(jobs) % self._n_rows:
            raise ValueError(f"--n_rows {self._n_rows} does not divide {len(jobs)} pictures")
        if Path(self._grid) in self._paths.values():
            raise ValueError(f"--grid {self._grid} is the file of a picture, too")

    @property
    def _written(self) -> list[Path]:
        """The files of the pictures, and of the grid."""
        return [*self._paths.values(), *([] if self._grid is None else [Path(self._grid)])]

    def _check_others(self, args: argparse.Namespace) -> None:
        """Raise ValueError where a picture that is read, or made, would be written over."""
        read = {
            "the picture to start from": args.image_file,
            "what --from-image reads": args.from_image,
        }
        for what, file in read.items():
            if file is None:
                continue
            for path in () if self._overwrites else self._written:
                if _are_same(path, file):
                    raise ValueError(f"{path} is {what}: name another --output, or use --force")
            if args.preview is not None and _are_same(self.preview, file):
                raise ValueError(f"the --preview would be written over {file}, which is {what}")
        names = {str(path).casefold() for path in self._written}
        if args.preview is not None and str(self.preview).casefold() in names:
            raise ValueError(f"{self.preview} is the file of the --preview: name the picture else")

    def _write(self, job: Job, image: np.ndarray) -> None:
        """Write a picture to its file; where another program made that meanwhile, beside it."""
        path = self._paths[job.index]
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {} if self.record is None else self.record.of(job)
        overwrites = self._overwrites and not self._is_numbered
        attempt = 1
        while True:
            try:
                save_image(path, image, texts, overwrites=overwrites)
            except FileExistsError:
                if self._restarts:
                    say(f"{path} was made by another program meanwhile")
                    return
                attempt += 1
                path = self._another(self._paths[job.index], attempt)
            else:
                self._paths[job.index] = path
                say(f"Wrote {path}")
                return

    def _another(self, path: Path, attempt: int) -> Path:
        """A name for a picture whose own was taken."""
        if self._is_numbered:
            return path.with_name(f"{_last_number(path.parent) + 1:0{DIGITS}}{path.suffix}")
        return path.with_stem(f"{path.stem}-{attempt}")
