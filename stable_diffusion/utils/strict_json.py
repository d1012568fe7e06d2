"""Read JSON strictly, with limits on its size, and check the values in it."""

import json
import math
from pathlib import Path
from typing import Any

MAX_JSON = 20_000_000  # bytes of a file; vocabularies have a few million
MAX_DEPTH = 100  # of nested lists and objects; tokenizers have five
MAX_NUMBER = 10**36  # less than the largest float32; transformers writes 10**30
MAX_DIGITS = 36  # numbers of so many digits are less than `MAX_NUMBER`


def read_json(file: Path, must_be_finite: bool = True) -> Any:
    """Return the content of a JSON file.

    Args:
        must_be_finite: as for `parse_json`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has more than `MAX_JSON` bytes, or `parse_json` raises it.
    """
    size = file.stat().st_size
    require(size <= MAX_JSON, f"it has {size} bytes, which is too much for a JSON file")
    return parse_json(file.read_bytes(), must_be_finite=must_be_finite)


def parse_json(content: bytes | str, nan_is_null: bool = False, must_be_finite: bool = True) -> Any:
    """Return the content of a JSON text.

    Args:
        nan_is_null: whether NaN counts as null: programs for tables write it for a missing value.
        must_be_finite: whether Infinity, -Infinity, NaN and numbers like 1e999 are errors. JSON
            does not know them, but Python writes them, and so diffusers does in its configs.

    Raises:
        ValueError: if it is not JSON in UTF-8, UTF-16 or UTF-32, is nested too deeply, gives a name
            twice in an object, or has a number that is not finite or too large.
    """
    too_deep = "it is nested too deeply"
    parse_number = _parse_float if must_be_finite else _parse_any_float
    try:
        value = json.loads(
            content,
            object_pairs_hook=_make_object,
            parse_float=parse_number,
            parse_int=_parse_integer,
            parse_constant=_parse_nan_as_null if nan_is_null else parse_number,
        )
    except RecursionError:
        raise ValueError(too_deep) from None
    require(_is_shallow(value), too_deep)
    return value


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_in(option: str, value: Any, low: float, high: float) -> None:
    """Check that a number, or each number of a tuple, is None or from `low` to `high`.

    Raises:
        ValueError: if one is not.
    """
    for number in value if isinstance(value, tuple) else (value,):
        is_in = number is None or low <= number <= high
        require(is_in, f"{option} = {value!r} is not from {low} to {high}")


def require_known(option: str, value: str, known: tuple[str, ...]) -> None:
    """Check that `value` is one of the `known` ones.

    Raises:
        ValueError: if it is not.
    """
    require(value in known, f"{option} = {value!r} is not supported, only {', '.join(known)}")


def _is_shallow(value: Any) -> bool:
    """Return whether a value is nested at most `MAX_DEPTH` deep, so that recursion is safe."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not level


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict, and refuse names that are given twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it gives {twice[:100]!r} twice")
    return content


def _parse_float(text: str) -> float:
    """Parse a finite number of at most `MAX_NUMBER`."""
    value = float(text)
    require(math.isfinite(value), f"{text[:50]} is not a finite number")
    require(abs(value) <= MAX_NUMBER, f"{text[:50]} is too large a number")
    return value


def _parse_any_float(text: str) -> float:
    """Parse a number that is not finite, or else a finite one of at most `MAX_NUMBER`."""
    value = float(text)
    return _parse_float(text) if math.isfinite(value) else value


def _parse_nan_as_null(text: str) -> float | None:
    """Parse a number, but return None for NaN."""
    return None if text == "NaN" else _parse_float(text)


def _parse_integer(text: str) -> int:
    """Parse an integer of at most `MAX_NUMBER`."""
    if len(text) <= MAX_DIGITS:  # the tens of thousands of ids of a vocabulary take this way
        return int(text)
    is_small = len(text) < 40 and abs(value := int(text)) <= MAX_NUMBER
    require(is_small, f"{text[:50]} is too large a number")
    return value
