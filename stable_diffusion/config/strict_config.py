from collections.abc import Mapping
from dataclasses import fields
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
