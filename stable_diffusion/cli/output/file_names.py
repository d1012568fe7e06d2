"""Name the files of a run before anything is loaded: pictures, their grid, and the preview.

`--output` with one plain name is a grid of all pictures, and is overwritten. With a folder or a
pattern each picture has a file, and nothing is overwritten without `--force`. Nothing is created
or deleted here.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ...images.arrays import compute_grid_size
from ...images.writing import FORMATS, check_folder, check_name, check_output, check_size
from ...utils.fold_name import fold_name
from ...utils.size import Size
from ...utils.wording import describe_error
from ..job import CompleteJob, Job, UsageError
from ..settings import Settings
from .name_pattern import fill_pattern, find_last_number, format_model, parse_fields

NAME_IN_FOLDER = "{index}.png"
PREVIEW_IN_FOLDER = "now.preview.png"


class IfTaken(Enum):
    """What to do with a picture if another program has made a file of its name meanwhile."""

    OVERWRITE = auto()
    SKIP = auto()  # two programs make the pictures of one prompts file
    TAKE_NEXT_NUMBER = auto()
    ADD_SUFFIX = auto()


@dataclass(frozen=True)
class FileNames:
    """The files of a run.

    Attributes:
        pictures: the file of each picture, by the index of its job; empty if there is only a grid.
        grid: the file of the grid, if there is one.
        existing: the indices of pictures whose files exist, and are kept.
        if_taken: what to do if the name of a picture is taken later.
        has_new_names: whether another run with the same --output uses other names.
    """

    pictures: Mapping[int, Path]
    grid: Path | None
    existing: frozenset[int] = frozenset()
    if_taken: IfTaken = IfTaken.OVERWRITE
    has_new_names: bool = False

    @property
    def all_files(self) -> list[Path]:
        """Return the files of the pictures and of the grid."""
        return [*self.pictures.values(), *([] if self.grid is None else [self.grid])]

    @property
    def preview(self) -> Path:
        """Return the file of the preview, beside the grid or the first picture."""
        if self.pictures:
            return next(iter(self.pictures.values())).with_name(PREVIEW_IN_FOLDER)
        return self.all_files[0].with_suffix(".preview.png")

    def exists(self, job: Job) -> bool:
        """Return whether the picture exists already, and is kept."""
        return job.index in self.existing


def name_files(settings: Settings, jobs: Sequence[Job]) -> FileNames:
    """Return the names of the files of a run.

    Args:
        jobs: all pictures that are asked for.

    Raises:
        UsageError: if a file cannot be written or exists already, or if two have the same name.
    """
    output = settings.output
    is_folder = output.endswith(("/", os.sep)) or os.path.isdir(output)
    try:
        if is_folder or parse_fields(output):
            names = _name_pictures(settings, jobs, is_folder)
        else:
            names = FileNames({}, _name_only_grid(settings, len(jobs)))
        _check_grid(names, len(jobs), settings.n_rows)
        _check_inputs(names, settings)
        _check_preview(names, settings)
    except (ValueError, OSError) as error:
        raise UsageError(describe_error(error)) from None
    return names


def check_sizes(
    names: FileNames, jobs: Sequence[CompleteJob], n_rows: int, size: Size | None = None
) -> None:
    """Check that the files can hold these pictures and their grid.

    Args:
        size: of all pictures, if it is not the one in which they are drawn.

    Raises:
        UsageError: if a picture or the grid is too large for its format.
    """
    try:
        for job in jobs if names.pictures else ():
            check_size(names.pictures[job.index], size or Size(job.width, job.height))
        if names.grid is not None and jobs:
            n_pictures = len(jobs) + len(names.existing)
            each = size or Size(jobs[0].width, jobs[0].height)
            check_size(names.grid, compute_grid_size(n_pictures, each, n_rows))
    except ValueError as error:
        raise UsageError(error) from None


def _name_pictures(settings: Settings, jobs: Sequence[Job], is_folder: bool) -> FileNames:
    """Return the names if each picture has a file."""
    output, is_restartable = settings.output, settings.prompts_file is not None
    folder = output if is_folder else os.path.dirname(output)
    pattern = os.path.join(output, NAME_IN_FOLDER) if is_folder else output
    model = format_model(settings.model_name or settings.model)
    fields = parse_fields(output)
    is_numbered = is_folder and not is_restartable and fields <= {"model"}
    last = find_last_number(Path(folder.format(model=model))) if is_numbered else 0
    paths = {}
    for job in jobs:
        own = pattern if job.file is None else os.path.join(folder, _check_inside(job, job.file))
        paths[job.index] = fill_pattern(own, last + job.index, job.seed, model)
    _check_distinct(jobs, paths)
    _check_writable(paths.values())

    if is_numbered:
        existing, if_taken = frozenset[int](), IfTaken.TAKE_NEXT_NUMBER
    elif settings.force:
        existing, if_taken = frozenset[int](), IfTaken.OVERWRITE
    else:
        existing = _find_existing(paths, is_restartable)
        if_taken = IfTaken.SKIP if is_restartable else IfTaken.ADD_SUFFIX
    grid = None if settings.grid is None else Path(settings.grid)
    return FileNames(paths, grid, existing, if_taken, is_numbered or "seed" in fields)


def _name_only_grid(settings: Settings, n_pictures: int) -> Path:
    """Return the name of the grid, which is the only file that is written.

    Raises:
        ValueError: if the options ask for something else.
    """
    output = settings.output
    if output and not Path(output).suffix:
        raise ValueError(
            f"--output {output}: there is no such folder: {output}/ makes it; "
            f"the name of a picture must end in one of {', '.join(FORMATS)}"
        )
    if settings.grid is not None:
        raise ValueError(
            f"--output {output} is a grid already: with --grid give a folder, or a name with "
            "{index}"
        )
    if settings.prompts_file is not None and n_pictures > 1:
        raise ValueError(
            f"--output {output} is one file, for {n_pictures} pictures: give a folder, or a name "
            "with {index}"
        )
    return Path(output)


def _check_inside(job: Job, file: str) -> str:
    """Check that a job's own pattern stays in the output folder, and return it.

    Raises:
        ValueError: if it leads out of the folder, or is not a pattern.
    """
    if Path(file).is_absolute() or ".." in Path(file).parts or "\0" in file:
        raise ValueError(f"{job.where}output {file!r} is not a name inside the folder")
    parse_fields(file, f"{job.where}output")
    return file


def _check_distinct(jobs: Sequence[Job], paths: Mapping[int, Path]) -> None:
    """Check that no two pictures have the same name.

    Raises:
        ValueError: if two have.
    """
    taken: dict[str, int] = {}  # index by the key of the name
    for job, key in zip(jobs, _make_keys(paths[job.index] for job in jobs), strict=True):
        other, path = taken.setdefault(key, job.index), paths[job.index]
        if other != job.index:
            raise ValueError(
                f"{job.where}pictures {other} and {job.index} have the same name, {path}: put "
                "{index} in it"
            )


def _check_writable(paths: Iterable[Path]) -> None:
    """Check that pictures can have these names and be written in their folders.

    Raises:
        ValueError: if one cannot.
    """
    paths = list(paths)
    for folder in {path.parent for path in paths}:
        check_folder(folder)
    for path in paths:
        check_name(path)


def _find_existing(paths: Mapping[int, Path], is_restartable: bool) -> frozenset[int]:
    """Return the indices of pictures whose files exist, if they may be kept.

    Raises:
        ValueError: if some exist, and may be neither kept nor overwritten.
    """
    existing = frozenset(index for index, path in paths.items() if os.path.lexists(path))
    if existing and not is_restartable:
        first, n = paths[min(existing)], len(existing)
        if n == 1:
            raise ValueError(f"{first} exists: --force overwrites")
        raise ValueError(f"{first} and {n - 1} more exist: --force overwrites")
    return existing


def _check_grid(names: FileNames, n_pictures: int, n_rows: int) -> None:
    """Check that the grid, if there is one, can be written and has full rows.

    Raises:
        ValueError: if it cannot, or if it is also the file of a picture.
    """
    if names.grid is None:
        return
    check_output(names.grid)
    if n_pictures % n_rows:
        raise ValueError(f"--n_rows {n_rows} does not divide {n_pictures} pictures")
    grid, *pictures = _make_keys([names.grid, *names.pictures.values()])
    if grid in pictures:
        raise ValueError(f"--grid {names.grid} is also the file of a picture")


def _check_inputs(names: FileNames, settings: Settings) -> None:
    """Check that files that are read are not overwritten without --force.

    Raises:
        ValueError: if one would be. The preview may not overwrite one even with --force.
    """
    for what, file in _list_inputs(settings):
        for path in () if settings.force else names.all_files:
            if _is_same_file(path, file):
                raise ValueError(f"{path} is {what}: choose another --output, or use --force")
        if settings.preview is not None and _is_same_file(names.preview, file):
            raise ValueError(f"the --preview would be written over {file}, which is {what}")


def _list_inputs(settings: Settings) -> Iterator[tuple[str, str | Path]]:
    """Yield what each file is that a run reads beside the model, and its name."""
    if settings.start is not None:
        yield "the picture to start from", settings.start.file
        if settings.start.repainting is not None and settings.start.repainting.file is not None:
            yield "the mask", settings.start.repainting.file
    if settings.from_image is not None:
        yield "the picture that --from-image reads", settings.from_image
    if settings.prompts_file is not None:
        yield "the prompts file", settings.prompts_file
    for lora, _ in settings.lora:
        yield "a LoRA", os.fspath(lora)
    for _, file in settings.embedding:
        yield "a textual inversion", file


def _check_preview(names: FileNames, settings: Settings) -> None:
    """Check that the preview, if there is one, is not also the file of a picture.

    Raises:
        ValueError: if it is.
    """
    if settings.preview is None:
        return
    preview, *others = _make_keys([names.preview, *names.all_files])
    if preview in others:
        raise ValueError(
            f"{names.preview} is the file of the --preview: choose another name for the picture"
        )


def _is_same_file(path: Path, file: str | Path) -> bool:
    """Return whether both files exist and are the same one."""
    return path.exists() and os.path.exists(file) and path.samefile(file)


def _make_keys(paths: Iterable[Path]) -> list[str]:
    """Return a key for each path; names of one file, which need not exist, have the same key.

    Upper and lower case count as the same on every system, because network folders and memory cards
    ignore them too.
    """
    paths = list(paths)
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [fold_name(os.path.join(folders[p.parent], p.name)).casefold() for p in paths]
