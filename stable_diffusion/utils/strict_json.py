"""Config files read strictly: every key is understood, known to be harmless, or an error."""

import json
import math
from pathlib import Path
from typing import Any

MAX_JSON = 20_000_000  # bytes of a file; a vocabulary has a few million
MAX_DEPTH = 100  # lists and objects in one another; a tokenizer has five
MAX_NUMBER = 10**36  # a little less than what float32 holds; transformers writes 10**30


def read_json(file: Path) -> Any:
    """What a JSON file says; as `parse_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or too large for any config.
    """
    size = file.stat().st_size
    require(size <= MAX_JSON, f"it has {size} bytes, which is too much for a JSON file")
    return parse_json(file.read_bytes())


def parse_json(content: bytes | str, nan_is_null: bool = False) -> Any:
    """What a JSON text says, where it says one thing.

    With `nan_is_null` a number that is none counts as null, as tables write what is left out.

    Raises:
        ValueError: it is no JSON, or not UTF-8, UTF-16 or UTF-32; it is nested too deeply, gives
            a name twice, or has a number that is none, or too large.
    """
    too_deep = "it is nested too deeply"
    try:
        value = json.loads(
            content,
            object_pairs_hook=_object,
            parse_float=_float,
            parse_int=_integer,
            parse_constant=_float_or_none if nan_is_null else _float,
        )
    except RecursionError:
        raise ValueError(too_deep) from None
    require(_is_shallow(value), too_deep)
    return value


def _is_shallow(value: Any) -> bool:
    """Whether what follows may walk through it by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not level


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it gives {twice[:100]!r} twice")
    return content


def _float(text: str) -> float:
    value = float(text)
    require(math.isfinite(value), f"{text[:50]} is not a finite number")
    require(abs(value) <= MAX_NUMBER, f"{text[:50]} is too large a number")
    return value


def _float_or_none(text: str) -> float | None:
    return None if text == "NaN" else _float(text)


def _integer(text: str) -> int:
    is_small = len(text) < 40 and abs(value := int(text)) <= MAX_NUMBER
    require(is_small, f"{text[:50]} is too large a number")
    return value


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message where the condition does not hold."""
    if not condition:
        raise ValueError(message)


def require_in(option: str, value: Any, low: float, high: float) -> None:
    """Each number of `value`, which may be one or None, is from `low` to `high`."""
    for number in value if isinstance(value, tuple) else (value,):
        is_in = number is None or low <= number <= high
        require(is_in, f"{option} = {value!r} is not from {low} to {high}")


def require_known(option: str, value: str, known: tuple[str, ...]) -> None:
    """`value` is one of the `known` ones."""
    require(value in known, f"{option} = {value!r} is not supported, only {', '.join(known)}")
