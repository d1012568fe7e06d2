"""Check the arguments that callers give to the library: the kind of each, and its range.

A wrong kind raises a `TypeError`, a wrong value a `ValueError`. Both name the argument, and say
what it must be and what it was. Scalars of NumPy and MLX are accepted like Python's numbers.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .conditioning import expand_texts
from .config.model import ModelConfig
from .model_io.model import Model
from .sampler.sampler import Sampler
from .utils.wording import abbreviate, did_you_mean

SWAPPED = "the image comes first, then the text"


def check_option_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Check that all keyword arguments of a generator are known.

    Raises:
        TypeError: if one is not.
    """
    known = list(known)
    for name in options:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}{did_you_mean(name, known)}")


def check_integer(name: str, value: Any, low: int | None = None) -> int:
    """Return an integer of Python, NumPy or MLX as Python's.

    Raises:
        TypeError: if it is not an integer; `True` and `2.0` are not.
        ValueError: if it is below `low`.
    """
    number = _to_python(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if low is not None and number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    return number


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a number of Python, NumPy or MLX as Python's.

    Raises:
        TypeError: if it is not a number; `True` is not.
        ValueError: if it is not finite, or outside [low, high].
    """
    number = _to_python(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if (low, high) != (-math.inf, math.inf):
        if not low <= number <= high:  # NaN is not either
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {number}")
    elif not _is_finite(number):
        raise ValueError(f"{name} must be a finite number, got {abbreviate(number)}")
    return float(number)


def check_range(name: str, value: Any) -> tuple[float, float]:
    """Return the start and the end of a range within [0, 1].

    Raises:
        TypeError: if it is not a sequence of numbers.
        ValueError: if it does not have two parts, in order, within [0, 1].
    """
    wanted = f"{name} must be a start and an end in [0, 1], such as (0.1, 0.7)"
    if isinstance(value, (str, bytes)) or not _is_list(value):
        raise TypeError(f"{wanted}, got {describe(value)}")
    parts = _to_list(value)
    if len(parts) != 2:
        raise ValueError(f"{wanted}, got {abbreviate(value)}")
    start = check_number(f"the start of {name}", parts[0], 0, 1)
    end = check_number(f"the end of {name}", parts[1], 0, 1)
    if start >= end:
        raise ValueError(f"{name} must start below its end, got {start:g} and {end:g}")
    return start, end


def check_model(model: Any, parts: Mapping[str, Any], words: Mapping[str, Any]) -> None:
    """Check the kinds of the arguments that choose a model, `parts` of others, and by `words`.

    Raises:
        TypeError: if a model is neither text, nor a path, nor an open model; if another argument
            is not text.
    """
    for name, word in words.items():
        if word is not None and not isinstance(word, str):
            raise TypeError(f"{name} must be text or None, got {describe(word)}")
    if not isinstance(model, Model):
        check_path("model", model)
    for name, part in parts.items():
        if not isinstance(part, Model | None):
            check_path(name, part)


def check_sampler(sampler: Any, schedule: Any) -> None:
    """Check that these can be a sampler and a schedule; their names are checked later.

    Raises:
        TypeError: if the schedule is neither text nor None, or the sampler neither of these nor a
            `Sampler`.
    """
    if sampler is not None and not isinstance(sampler, (str, Sampler)):
        raise TypeError(f"sampler must be text, a Sampler or None, got {describe(sampler)}")
    if schedule is not None and not isinstance(schedule, str):
        raise TypeError(f"schedule must be text or None, got {describe(schedule)}")


def check_lora(path: Any, scale: Any) -> float:
    """Return the scale of a LoRA as Python's number.

    Raises:
        TypeError: if `path` is not a path, or `scale` is not a number.
        ValueError: if the scale is not finite.
    """
    check_path("path", path)
    return check_number("scale", scale)


def check_embedding(name: Any, path: Any) -> None:
    """Check that these can be the name and the file of a textual inversion.

    Raises:
        TypeError: if `name` is not text, or `path` is not a path.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text, got {describe(name)}")
    check_path("path", path)


def check_path(name: str, value: Any) -> None:
    """Check that a value can be the name of a file.

    Raises:
        TypeError: if it is neither text nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be text or a path, got {describe(value)}")


def check_size(value: Any, config: ModelConfig) -> tuple[int, int]:
    """Return `latent_size` as two integers, height and width; the model's own size if it is None.

    Raises:
        TypeError: if it is not a sequence of integers.
        ValueError: if it does not have two parts, or one is below 1.
    """
    if value is None:
        width, height = config.defaults.size
        return height // config.autoencoder.factor, width // config.autoencoder.factor
    wanted = "latent_size must be a height and a width in latents, such as (64, 64)"
    if not isinstance(value, (Sequence, np.ndarray, mx.array)) or isinstance(value, (str, bytes)):
        raise TypeError(f"{wanted}, got {describe(value)}")
    parts = _to_list(value)
    if len(parts) != 2:
        raise ValueError(f"{wanted}, got {abbreviate(value)}")
    height, width = (check_integer("each side of latent_size", part) for part in parts)
    if min(height, width) < 1:
        raise ValueError(f"{wanted}, got {abbreviate(value)}")
    return height, width


def check_seed(value: Any) -> int | list[int] | None:
    """Return the seed, or the seeds of several pictures, as Python's integers.

    Raises:
        TypeError: if it is neither an integer, nor a sequence of integers, nor None.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not _is_list(value):
        return check_integer("seed", value)
    return [check_integer("each seed", each) for each in _to_list(value)]


def check_prompts(text: Any, negative_text: Any, n_images: int) -> tuple[list[str], list[str]]:
    """Return a text and a negative text for each picture.

    Raises:
        TypeError: if one is neither text nor a list of texts; None stands for no negative text.
        ValueError: if there are several texts, but not as many as pictures.
    """
    texts = check_texts("text", text)
    negative_texts = check_texts("negative_text", negative_text, is_optional=True)
    return (
        expand_texts(texts, n_images, "text"),
        expand_texts(negative_texts, n_images, "negative_text"),
    )


def check_texts(name: str, value: Any, *, is_optional: bool = False) -> str | list[str]:
    """Return a text, or a list of them.

    Args:
        is_optional: let None stand for the empty text, also in a list.

    Raises:
        TypeError: if the value is neither.
    """
    if isinstance(value, str) or (value is None and is_optional):
        return value or ""
    wanted = f"{name} must be text, or a list of a text for each picture"
    if is_pil(value) or (isinstance(value, (np.ndarray, mx.array)) and value.ndim > 1):
        raise TypeError(
            f"{wanted}, got {describe(value)}: in generate_latents_from_image {SWAPPED}"
        )
    if isinstance(value, (bytes, mx.array)) or not _is_list(value):
        raise TypeError(f"{wanted}, got {describe(value)}")
    texts = _to_list(value)
    for text in texts:
        if not (isinstance(text, str) or (text is None and is_optional)):
            raise TypeError(f"{wanted}, got a list with {describe(text)} in it")
    return [text or "" for text in texts]


def _to_python(value: Any) -> Any:
    """Return a scalar of NumPy or MLX as Python's number, and anything else unchanged.

    0.7 of float32 becomes Python's 0.7, not 0.699999988, because steps × strength is rounded down.
    """
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
        value = np.array(value.astype(mx.float32))
    elif isinstance(value, mx.array):
        return value.item()
    value = value[()] if isinstance(value, np.ndarray) else value
    return float(str(value)) if isinstance(value, np.floating) else value.item()


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the floats
        return False


def _is_list(value: Any) -> bool:
    """Return whether a value is a sequence or an array, not a scalar."""
    return isinstance(value, (Sequence, np.ndarray, mx.array)) and getattr(value, "ndim", 1) > 0


def _to_list(value: Sequence[Any] | np.ndarray | mx.array) -> list[Any]:
    """Return the items as a list; the numbers of an array become Python's."""
    items: Any = value.tolist() if isinstance(value, (np.ndarray, mx.array)) else value
    return list(items)


def is_pil(value: Any) -> bool:
    """Return whether a value is a picture of Pillow, without importing Pillow."""
    return any(each.__module__.partition(".")[0] == "PIL" for each in type(value).__mro__)


def describe(value: Any) -> str:
    """Describe a value for a message, on one line: itself, and its type."""
    name = type(value).__name__
    if is_pil(value):
        return f"a picture of Pillow, {name}"
    if getattr(value, "ndim", 0) > 0 and hasattr(value, "shape"):
        return f"an array {list(value.shape)} of {str(value.dtype).removeprefix('mlx.core.')}"
    return f"{abbreviate(repr(value))}, {_with_article(name)}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
