"""Config files read strictly: every key is understood, known to be harmless, or an error."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin


class Config:
    """Base of the configs: a strict `from_dict`.

    The dataclass fields of a subclass are the keys that it reads. Its class variables sort the
    others: a key outside all of them is an error, unless its value is null or false.
    """

    CLASS_NAMES: ClassVar[tuple[str, ...]] = ()  # what `_class_name` may say; empty: anything
    # Options with one supported value, diffusers' default.
    FIXED: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Keys without effect on what is computed here.
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, data: Any, source: str) -> Self:
        """Read a parsed config file; `source` names the file in errors.

        Raises:
            ValueError: an option that is unsupported, of the wrong type, or impossible.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{source}: expected a JSON object, got {type(data).__name__}")
        class_name = data.get("_class_name")
        if cls.CLASS_NAMES and class_name is not None and class_name not in cls.CLASS_NAMES:
            raise ValueError(f"{source}: _class_name = {class_name!r} is not supported")
        kinds = {f.name: f.type for f in fields(cls)}
        values = {}
        for key, value in data.items():
            if key in kinds:
                value = _frozen(value)
                if isinstance(value, Mapping) and (nested := _nested(kinds[key])) is not None:
                    value = nested.from_dict(value, f"{source}: {key}")
                if value is not None:
                    if not _is_of_kind(value, kinds[key]):
                        raise ValueError(f"{source}: {key} = {value!r} is of the wrong type")
                    values[key] = _as_kind(value, kinds[key])
            elif not cls._is_without_effect(key, value):
                raise ValueError(f"{source}: {key} = {value!r} is not supported")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def _is_without_effect(cls, key: str, value: Any) -> bool:
        if value is None or value is False or key.startswith("_") or key in cls.IGNORED:
            return True
        return key in cls.FIXED and _frozen(value) == cls.FIXED[key]


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that a config is immutable throughout."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _nested(kind: Any) -> type[Config] | None:
    """The config that the annotation of a field allows, if it does."""
    kinds = [k for k in get_args(kind) if isinstance(k, type) and issubclass(k, Config)]
    return kinds[0] if kinds else None


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Whether a JSON value fits the annotation of a field."""
    if isinstance(kind, UnionType):
        return any(_is_of_kind(value, k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of_kind(v, get_args(kind)[0]) for v in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind  # `isinstance` would take True for an integer


def _as_kind(value: Any, kind: Any) -> Any:
    """Return a value that fits the annotation `kind` as what it says: 1 is 1.0 for a float."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if isinstance(value, tuple):
        (of,) = (get_args(k)[0] for k in kinds if get_origin(k) is tuple)
        return tuple(_as_kind(v, of) for v in value)
    return value if type(value) in kinds else float(value)


MAX_JSON = 20_000_000  # bytes of a file; a vocabulary has a few million
DEEPEST = 100  # lists and objects in one another; a tokenizer has five
LARGEST = 10**36  # a little less than what float32 holds; transformers writes 10**30


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
    for _ in range(DEEPEST):
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
    require(abs(value) <= LARGEST, f"{text[:50]} is too large a number")
    return value


def _float_or_none(text: str) -> float | None:
    return None if text == "NaN" else _float(text)


def _integer(text: str) -> int:
    is_small = len(text) < 40 and abs(value := int(text)) <= LARGEST
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
