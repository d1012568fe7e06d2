"""The base class of the configs: it checks every key of a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin


@dataclass(frozen=True)
class Config:
    """Base class of the configs, with a strict `from_dict`.

    The dataclass fields of a subclass are the keys that it reads. Its class variables list the
    keys that it accepts without reading them. Any other key is an error, unless its value is null
    or false.
    """

    # Values that `_class_name` may have; empty if it may have any.
    CLASS_NAMES: ClassVar[tuple[str, ...]] = ()
    CLASSES: ClassVar[str] = ""  # what the message says of them, instead of listing all
    # Fields for which null is a value of its own; for the others it means the default.
    NULLABLE: ClassVar[frozenset[str]] = frozenset()
    # Options of which only one value is supported, diffusers' default.
    FIXED: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Keys that have no effect on what this package computes.
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, data: Any, source: str) -> Self:
        """Check a parsed config file and return it as a config.

        Args:
            data: the parsed JSON.
            source: the name of the file, for error messages.

        Raises:
            ValueError: if an option is not supported, of the wrong type, or impossible.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{source}: expected a JSON object, got {type(data).__name__}")
        class_name = data.get("_class_name")
        if cls.CLASS_NAMES and class_name is not None and class_name not in cls.CLASS_NAMES:
            known = cls.CLASSES or ", ".join(cls.CLASS_NAMES)
            raise ValueError(
                f"{source}: _class_name = {class_name!r} is not supported, only {known}"
            )
        types = {field.name: field.type for field in fields(cls)}
        values = {}
        for key, value in data.items():
            if key in types:
                value = _read_value(key, value, types[key], source)
                if value is not None or key in cls.NULLABLE:  # else null means the default
                    values[key] = value
            elif not cls._has_no_effect(key, value):
                raise ValueError(f"{source}: {key} = {value!r} is not supported")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def _has_no_effect(cls, key: str, value: Any) -> bool:
        """Return whether a key that is not read has no effect with this value."""
        if value is None or value is False or key.startswith("_") or key in cls.IGNORED:
            return True
        return key in cls.FIXED and _to_tuples(value) == cls.FIXED[key]


def _read_value(key: str, value: Any, type_hint: Any, source: str) -> Any:
    """Return a JSON value as the type of its field, or None for null.

    Raises:
        ValueError: if it is of the wrong type, or not a finite number.
    """
    value = _to_tuples(value)
    if isinstance(value, Mapping) and (nested := _find_nested_config(type_hint)) is not None:
        value = nested.from_dict(value, f"{source}: {key}")
    if value is None:
        return None
    if not _is_of_type(value, type_hint):
        raise ValueError(f"{source}: {key} = {value!r} is of the wrong type")
    if not _is_finite(value):
        raise ValueError(f"{source}: {key} = {value!r} is not a finite number")
    return _convert(value, type_hint)


def _to_tuples(value: Any) -> Any:
    """Return a JSON value with tuples for lists, so that a config cannot be changed."""
    return tuple(_to_tuples(v) for v in value) if isinstance(value, list) else value


def _find_nested_config(type_hint: Any) -> type[Config] | None:
    """Return the config class that the type of a field allows, if there is one."""
    classes = [t for t in get_args(type_hint) if isinstance(t, type) and issubclass(t, Config)]
    return classes[0] if classes else None


def _is_of_type(value: Any, type_hint: Any) -> bool:
    """Return whether a JSON value fits the type of a field."""
    if isinstance(type_hint, UnionType):
        return any(_is_of_type(value, t) for t in get_args(type_hint))
    if get_origin(type_hint) is tuple:
        item_type = get_args(type_hint)[0]
        return isinstance(value, tuple) and all(_is_of_type(v, item_type) for v in value)
    if type_hint is float:
        return type(value) in (int, float)
    return type(value) is type_hint  # `isinstance` would take True for an integer


def _is_finite(value: Any) -> bool:
    """Return whether a JSON value has no infinite number and no NaN in it."""
    if isinstance(value, tuple):
        return all(_is_finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def _convert(value: Any, type_hint: Any) -> Any:
    """Return a value that fits a type, converted to it: the integer 1 becomes 1.0 for a float."""
    types = get_args(type_hint) if isinstance(type_hint, UnionType) else (type_hint,)
    if isinstance(value, tuple):
        (item_type,) = (get_args(t)[0] for t in types if get_origin(t) is tuple)
        return tuple(_convert(v, item_type) for v in value)
    return value if type(value) in types else float(value)
