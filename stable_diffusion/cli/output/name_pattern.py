"""Patterns of file names with fields in braces, such as `{index:06}-{seed}.png`."""

import os
import re
from pathlib import Path
from string import Formatter

FIELDS = ("index", "seed", "model")
NUMBERS = ("index", "seed")  # fields whose digits may be given: {index:06}, {seed:010d}
DIGITS = 4  # of an index, or more: names with equally many digits sort in order
WIDTH = re.compile(r"0?(?P<digits>[0-9]{0,2})d?")


def parse_fields(pattern: str, option: str = "--output") -> set[str]:
    """Return the names of the fields of a pattern.

    Args:
        option: what the message calls the pattern.

    Raises:
        ValueError: if a field is unknown, or has a format that it cannot have.
    """
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{option} {pattern}: {error}") from None
    fields = set()
    for _, field, spec, conversion in parts:
        if field is None:  # text after the last field
            continue
        if field not in FIELDS:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(f"{option} {pattern}: {{{field}}} is not one of {known}")
        if conversion or (spec and not (field in NUMBERS and WIDTH.fullmatch(spec))):
            wanted = f"{{{field}}}"
            if field in NUMBERS:
                wanted += f", or {{{field}:06}} for six digits"
            given = f"!{conversion}" * bool(conversion) + f":{spec}" * bool(spec)
            raise ValueError(
                f"{option} {pattern}: {{{field}{given}}} is not supported: write {wanted}"
            )
        fields.add(field)
    return fields


def fill_pattern(pattern: str, index: int, seed: int, model: str) -> Path:
    """Return the name that a pattern gives a picture."""
    return Path(pattern.format(index=_Number(index, DIGITS), seed=_Number(seed), model=model))


def format_model(model: str) -> str:
    """Return what `{model}` stands for: the last part of the model's name, safe in a file name."""
    name = Path(model.partition("@")[0]).name.removesuffix(".safetensors")
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


def find_last_number(folder: Path) -> int:
    """Return the largest number that is the name of a file in a folder; 0 if there is none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    stems = [os.path.splitext(name)[0] for name in names]
    return max((int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,9}", stem)), default=0)


class _Number:
    """A number in a name, with as many digits as the pattern says, or at least `digits`."""

    def __init__(self, value: int, digits: int = 1):
        self._value, self._digits = value, digits

    def __format__(self, spec: str) -> str:
        match = WIDTH.fullmatch(spec)
        digits = int(match["digits"] or 1) if spec and match is not None else self._digits
        return f"{self._value:0{digits}}"
