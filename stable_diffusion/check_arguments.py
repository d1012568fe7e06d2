"""Check what callers give to the library: the kind of each argument, and its range.

A wrong kind is a `TypeError`, a wrong value a `ValueError`. Both name the argument, and say what it
is to be and what it was. Scalars of NumPy and MLX are as good as Python's.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .conditioning import Texts, for_each
from .config.model import ModelConfig
from .model_io.model import Model
from .utils.wording import abbreviate

OptionalTexts = Texts | Sequence[str | None] | None

# Resampling filters overshoot: by a third of the range in practice, by half of it at most.
MAX_LEVEL = 2.0
FROM_8_BITS = "x / 127.5 - 1"
IMAGE = f"image must be [H, W, 3] floats in [-1, 1]: {FROM_8_BITS} for x of 8 bits"
SWAPPED = "the image comes first, then the text"


def check_integer(name: str, value: Any, low: int | None = None) -> int:
    """Return an integer of Python, NumPy or MLX as Python's.

    Raises:
        TypeError: if it is none, `True` and `2.0` included.
        ValueError: if it is below `low`.
    """
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {_describe(value)}")
    if low is not None and number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    return number


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a number of Python, NumPy or MLX as Python's.

    Raises:
        TypeError: if it is none, `True` included.
        ValueError: if it is not finite, or outside [low, high].
    """
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, got {_describe(value)}")
    if (low, high) != (-math.inf, math.inf):
        if not low <= number <= high:  # nor is NaN
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {number}")
    elif not _is_finite(number):
        raise ValueError(f"{name} must be a finite number, got {abbreviate(number)}")
    return float(number)


def check_model(model: Any, vae: Any, sampler: Any, schedule: Any, prediction_type: Any) -> None:
    """Refuse what cannot be a model, another VAE, or a word; which words there are is seen later.

    Raises:
        TypeError: if a model is neither text, nor a path, nor open; if a word is no text.
    """
    words = {"sampler": sampler, "schedule": schedule, "prediction_type": prediction_type}
    for name, word in words.items():
        if word is not None and not isinstance(word, str):
            raise TypeError(f"{name} must be text or None, got {_describe(word)}")
    if not isinstance(model, Model):
        check_path("model", model)
    if not isinstance(vae, Model | None):
        check_path("vae", vae)


def check_lora(path: Any, scale: Any) -> float:
    """Return the scale of a LoRA, if both can be one's file and its scale.

    Raises:
        TypeError: if the one is no path, or the other no number.
        ValueError: if the scale is not finite.
    """
    check_path("path", path)
    return check_number("scale", scale)


def check_embedding(name: Any, path: Any) -> None:
    """Refuse what cannot be the name of a learned word, or of its file.

    Raises:
        TypeError: if the one is no text, or the other no path.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text, got {_describe(name)}")
    check_path("path", path)


def check_path(name: str, value: Any) -> None:
    """Refuse what cannot be a file's name.

    Raises:
        TypeError: if it is neither text nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be text or a path, got {_describe(value)}")


def check_size(value: Any, config: ModelConfig) -> tuple[int, int]:
    """Return `latent_size` as two integers, height and width; the model's own in place of None.

    Raises:
        TypeError: if it is none or has parts that are no integers.
        ValueError: if it has other than two parts, or one below 1.
    """
    if value is None:
        width, height = config.defaults.size
        return height // config.autoencoder.factor, width // config.autoencoder.factor
    wanted = "latent_size must be a height and a width in latents, such as (64, 64)"
    if not isinstance(value, (Sequence, np.ndarray, mx.array)) or isinstance(value, (str, bytes)):
        raise TypeError(f"{wanted}, got {_describe(value)}")
    parts = _listed(value)
    if len(parts) != 2:
        raise ValueError(f"{wanted}, got {abbreviate(value)}")
    size = tuple(check_integer("each side of latent_size", part) for part in parts)
    if min(size) < 1:
        raise ValueError(f"{wanted}, got {abbreviate(value)}")
    return size


def check_seed(value: Any) -> int | list[int] | None:
    """Return the seed, or the seeds of several pictures, as Python's integers.

    Raises:
        TypeError: if it is neither an integer, nor several of them, nor None.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not _is_listed(value):
        return check_integer("seed", value)
    return [check_integer("each seed", each) for each in _listed(value)]


def check_prompts(text: Any, negative_text: Any, n_images: int) -> tuple[list[str], list[str]]:
    """Return a text and a negative one for each picture.

    Raises:
        TypeError: if one is neither text nor a list of it; None is no negative text.
        ValueError: if there are several, but not as many as pictures.
    """
    text = check_texts("text", text)
    negative_text = check_texts("negative_text", negative_text, is_optional=True)
    return for_each(text, n_images, "text"), for_each(negative_text, n_images, "negative_text")


def check_texts(name: str, value: Any, *, is_optional: bool = False) -> str | list[str]:
    """Return a text, or a list of them.

    Args:
        is_optional: take None for no text, also in a list.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(value, str) or (value is None and is_optional):
        return value or ""
    wanted = f"{name} must be text, or a list of a text for each picture"
    if _is_pil(value) or (isinstance(value, (np.ndarray, mx.array)) and value.ndim > 1):
        raise TypeError(
            f"{wanted}, got {_describe(value)}: in generate_latents_from_image {SWAPPED}"
        )
    if isinstance(value, (bytes, mx.array)) or not _is_listed(value):
        raise TypeError(f"{wanted}, got {_describe(value)}")
    texts = _listed(value)
    for text in texts:
        if not (isinstance(text, str) or (text is None and is_optional)):
            raise TypeError(f"{wanted}, got a list with {_describe(text)} in it")
    return [text or "" for text in texts]


def check_image(image: Any, factor: int) -> mx.array:
    """Return the picture to start from, float32 [H, W, 3]; this evaluates it.

    Args:
        factor: what its sides are to be multiples of.

    Raises:
        TypeError: if it is no array of numbers.
        ValueError: if its shape, the type of its numbers, or their range is another.
    """
    if isinstance(image, (str, bytes, os.PathLike)) or (
        isinstance(image, Sequence) and image and all(isinstance(each, str) for each in image)
    ):
        raise TypeError(
            f"{IMAGE}; got text, {abbreviate(image)!r}: {SWAPPED}, and a file is read first, "
            'np.asarray(Image.open(file).convert("RGB")) / 127.5 - 1'
        )
    if _is_pil(image):
        raise TypeError(
            f'{IMAGE}; got {_describe(image)}: give np.asarray(image.convert("RGB")) / 127.5 - 1'
        )
    given = image
    if not isinstance(image, mx.array):
        try:
            image = np.asarray(image)
        except (ValueError, TypeError, RuntimeError):  # ragged lists; tensors of a GPU
            raise TypeError(f"{IMAGE}; got {_describe(image)}, which is no array") from None
        if image.dtype.kind not in "biuf":
            raise TypeError(f"{IMAGE}; got {_describe(given)}, which is no array of real numbers")
        is_float = image.dtype.kind == "f"
    elif image.dtype == mx.complex64:
        raise TypeError(f"{IMAGE}; got {_describe(image)}")
    else:
        is_float = mx.issubdtype(image.dtype, mx.floating)
    shape = list(image.shape)
    if len(shape) != 3 or shape[-1] != 3 or not all(shape):
        raise ValueError(f"{IMAGE}; got the shape {shape}{_hint_for(shape)}")
    if any(side % factor for side in shape[:2]):
        raise ValueError(
            f"image must be [H, W, 3] with sides that are multiples of {factor}, got {shape}"
        )
    if not is_float:
        name = str(image.dtype).removeprefix("mlx.core.")
        raise ValueError(f"{IMAGE}; got integers, {name}")
    image = mx.array(image, dtype=mx.float32)
    low, high = image.min().item(), image.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{IMAGE}; got numbers that are not finite")
    if max(-low, high) > MAX_LEVEL:
        raise ValueError(f"{IMAGE}; got values from {low:g} to {high:g}")
    return image


def check_latents(x: Any, channels: int) -> mx.array:
    """Return latents [B, h, w, C] to be decoded, float32.

    Raises:
        TypeError: if they are no array.
        ValueError: if their shape is another.
    """
    wanted = f"latents must be an array [B, h, w, {channels}]"
    if not isinstance(x, (mx.array, np.ndarray)):
        raise TypeError(f"{wanted}, got {_describe(x)}")
    if x.ndim != 4 or x.shape[-1] != channels or not all(x.shape):
        raise ValueError(f"{wanted}, got {list(x.shape)}")
    return mx.array(x, dtype=mx.float32)


def _scalar(value: Any) -> Any:
    """A Python number in place of one of NumPy or MLX; what is none stays.

    0.7 of float32 becomes Python's 0.7, not 0.699999988: steps times strength are cut down.
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


def _is_listed(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray, mx.array)) and getattr(value, "ndim", 1) > 0


def _listed(value: Any) -> list:
    return value.tolist() if isinstance(value, (np.ndarray, mx.array)) else list(value)


def _is_pil(value: Any) -> bool:
    """Return whether it is a picture of Pillow, which this does not import."""
    return any(each.__module__.partition(".")[0] == "PIL" for each in type(value).__mro__)


def _describe(value: Any) -> str:
    """Say what a value is, on one line."""
    name = type(value).__name__
    if _is_pil(value):
        return f"a picture of Pillow, {name}"
    if getattr(value, "ndim", 0) > 0 and hasattr(value, "shape"):
        return f"an array {list(value.shape)} of {str(value.dtype).removeprefix('mlx.core.')}"
    return f"{abbreviate(repr(value))}, {_with_article(name)}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _hint_for(shape: list[int]) -> str:
    """Say what to do about a shape that is often given in place of [H, W, 3]."""
    if not all(shape):
        return ": it is empty"
    match shape:
        case [1, _, _, 3]:
            return ": give one picture, image[0]"
        case [_, _, _, 3]:
            return ": give one picture of them, image[i]"
        case [_, 3, _, _]:
            return ": give one picture with its channels last, image[i].transpose(1, 2, 0)"
        case [3, _, _]:
            return ": put the channels last, image.transpose(1, 2, 0)"
        case [_, _, 4]:
            return ": lay it over a background, or leave out what is transparent, image[..., :3]"
        case [_, _, 1]:
            return ": repeat the grey, np.repeat(image, 3, axis=-1)"
        case [_, _]:
            return ": repeat the grey, np.stack([image] * 3, axis=-1)"
    return ""
