import os
import re
from pathlib import Path
from string import Formatter

from ..job import Job

FIELDS = ("index", "seed", "model")
NUMBERS = ("index", "seed")  # of these; their digits may be said: {index:06}, {seed:010d}
DIGITS = 4  # that an index has at least, so that names stand in order
WIDTH = re.compile(r"0?(?P<digits>[0-9]{0,2})d?")
IN_A_FOLDER = "{index}.png"


class _Number:
    """A number in a name, of at least as many digits as the pattern says, or `digits`."""

    def __init__(self, value: int, digits: int = 1):
        self._value, self._digits = value, digits

    def __format__(self, spec: str) -> str:
        digits = int(WIDTH.fullmatch(spec)["digits"] or 1) if spec else self._digits
        return f"{self._value:0{digits}}"


def _are_same(path: Path, file: str) -> bool:
    """Whether two names are of one file that is there."""
    return path.exists() and path.samefile(file)


def _inside(job: Job) -> str:
    """The job's own pattern.

    Raises:
        ValueError: it leads out of the folder, or is no pattern.
    """
    if Path(job.file).is_absolute() or ".." in Path(job.file).parts or "\0" in job.file:
        raise ValueError(f"{job.where}output {job.file!r} is not a name inside the folder")
    _fields(job.file, f"{job.where}output")
    return job.file


def _fields(pattern: str, option: str = "--output") -> set[str]:
    """The names in braces.

    Raises:
        ValueError: one of them is not known.
    """
    try:
        parts = [part for part in Formatter().parse(pattern) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{option} {pattern}: {error}") from None
    for _, field, spec, conversion in parts:
        if field not in FIELDS:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(f"{option} {pattern}: {{{field}}} is none of {known}")
        if conversion or (spec and not (field in NUMBERS and WIDTH.fullmatch(spec))):
            wanted = f"how many digits, as {{{field}:06}}" if field in NUMBERS else f"{{{field}}}"
            given = f"!{conversion}" * bool(conversion) + f":{spec}" * bool(spec)
            raise ValueError(f"{option} {pattern}: {{{field}{given}}} can only say {wanted}")
    return {field for _, field, _, _ in parts}


def _file_name(model: str) -> str:
    """What `{model}` stands for: the last part of the model's name, without what no name has."""
    name = Path(model.partition("@")[0]).name.removesuffix(".safetensors")
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


def _last_number(folder: Path) -> int:
    """The largest of the names in a folder that are numbers, 0 if there is none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    stems = [os.path.splitext(name)[0] for name in names]
    return max((int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,9}", stem)), default=0)
