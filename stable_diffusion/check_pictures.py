"""Check the pictures and latents that callers give to the library.

The errors are those of `check_arguments`.
"""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .check_arguments import SWAPPED, describe, is_pil
from .utils.wording import InputWarning, abbreviate

# Resampling filters overshoot: by a third of the range in practice, by half of it at most.
MAX_LEVEL = 2.0  # of pictures, which are in [-1, 1]
MASK_LEVELS = -0.5, 1.5  # of masks, which are in [0, 1]
FROM_8_BITS = "x / 127.5 - 1"
IMAGE = f"image must be [H, W, 3] floats in [-1, 1]: {FROM_8_BITS} for x of 8 bits"
CONTROL_IMAGE = "image must be [H, W, 3] floats in [0, 1]: x / 255 for x of 8 bits"
ROUNDING = 1e-3  # how far beyond [0, 1] rounding may take a control picture in half precision
MASK = "mask must be [H, W] floats in [0, 1], x / 255 for x of 8 bits, or booleans"
MAX_MISSED = 0.01  # of the pixels of a mask, which may be specks
# How to make such arrays of a picture of Pillow.
READ_IMAGE = 'np.asarray({}.convert("RGB")) / 127.5 - 1'
READ_CONTROL_IMAGE = 'np.asarray(image.convert("RGB")) / 255'
READ_MASK = 'np.asarray({}.convert("L")) / 255'


def check_image(image: Any, factor: int) -> mx.array:
    """Return the picture to start from, float32 [H, W, 3]; this evaluates it.

    Args:
        factor: the sides must be multiples of this.

    Raises:
        TypeError: if it is not an array of real numbers.
        ValueError: if its shape, the type of its numbers, or their range is wrong.
    """
    if _is_text(image):
        raise TypeError(
            f"{IMAGE}; got text, {abbreviate(image)!r}: {SWAPPED}; read a file first, "
            f"{READ_IMAGE.format('Image.open(file)')}"
        )
    array = _check_is_array(image, IMAGE, READ_IMAGE.format("image"))
    shape = list(array.shape)
    if len(shape) != 3 or shape[-1] != 3 or not all(shape):
        raise ValueError(f"{IMAGE}; got the shape {shape}{_suggest_for_shape(shape)}")
    if any(side % factor for side in shape[:2]):
        raise ValueError(
            f"image must be [H, W, 3] with sides that are multiples of {factor}, got {shape}"
        )
    _require_floats(array, IMAGE)
    return _read_levels(array, IMAGE, -MAX_LEVEL, MAX_LEVEL)


def check_control_image(image: Any) -> mx.array:
    """Return a control picture, float32 [H, W, 3]; this evaluates it.

    Raises:
        TypeError: if it is not an array.
        ValueError: if its shape, the type of its numbers, or their range is wrong.
    """
    wanted = CONTROL_IMAGE
    if is_pil(image):
        raise TypeError(f"{wanted}; got {describe(image)}: give {READ_CONTROL_IMAGE}")
    if not isinstance(image, (mx.array, np.ndarray)):
        raise TypeError(f"{wanted}; got {describe(image)}")
    shape = list(image.shape)
    if len(shape) != 3 or shape[-1] != 3 or not all(shape):
        raise ValueError(f"{wanted}; got the shape {shape}")
    if not _is_float(image):
        raise ValueError(f"{wanted}; got numbers of {str(image.dtype).removeprefix('mlx.core.')}")
    return _read_levels(image, wanted, -ROUNDING, 1 + ROUNDING)


def check_mask(mask: Any, size: Sequence[int], factor: int) -> np.ndarray:
    """Return which pixels are painted, booleans [H, W]; this evaluates the mask.

    Args:
        size: (height, width) of the picture.
        factor: the VAE's; a latent is painted if the first of its `factor` × `factor` pixels is.

    Raises:
        TypeError: if the mask is not an array of real numbers.
        ValueError: if its shape, the type of its numbers, or their range is wrong; if no latent is
            painted.

    Warns:
        UserWarning: if parts of the mask are so thin that they have no effect.
    """
    if _is_text(mask):
        raise TypeError(
            f"{MASK}; got text, {abbreviate(mask)!r}: read a file first, "
            f"{READ_MASK.format('Image.open(file)')}"
        )
    array = _check_is_array(mask, MASK, READ_MASK.format("mask"))
    shape = list(array.shape)
    if shape != list(size):
        raise ValueError(f"{MASK}; got the shape {shape}{_suggest_for_mask(shape, size)}")
    _require_floats(array, MASK, or_booleans=True)
    if isinstance(array, mx.array) and array.dtype != mx.bool_:
        array = array.astype(mx.float32)  # NumPy has no bfloat16
    values = np.array(array).astype(np.float32)  # booleans that Pillow makes have the byte 255
    if not np.isfinite(values).all():
        raise ValueError(f"{MASK}; got numbers that are not finite")
    low, high = MASK_LEVELS
    if values.min() < low or values.max() > high:
        raise ValueError(f"{MASK}; got values from {values.min():g} to {values.max():g}")
    painted = values >= 0.5
    if not painted.any():
        raise ValueError("mask is empty: it is nowhere 0.5 or more, so nothing would be painted")
    if not painted[::factor, ::factor].any():
        raise ValueError(
            f"mask is too thin: it misses all pixels that count, one in {factor} × {factor}: make "
            f"each part at least {factor} pixels wide and high"
        )
    if _has_missed_parts(painted, factor):
        message = (
            "thin or small parts of the mask have no effect, as the model paints in blocks of "
            f"{factor} × {factor} pixels: make each part at least as wide and high"
        )
        warnings.warn(InputWarning(message), stacklevel=3)
    return painted


def _has_missed_parts(painted: np.ndarray, factor: int) -> bool:
    """Return whether parts of a mask, booleans [H, W], are far from all latents that are painted.

    Far means that neither their own latent nor one of the eight around it is painted.
    """
    near = np.pad(painted[::factor, ::factor], 1)
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]
    near = near[:-2] | near[1:-1] | near[2:]
    missed = painted & ~near.repeat(factor, axis=0).repeat(factor, axis=1)
    return bool(missed.sum() > MAX_MISSED * painted.sum())


def _is_text(value: Any) -> bool:
    """Return whether a value is text, a path or a list of texts."""
    if isinstance(value, (str, bytes, os.PathLike)):
        return True
    is_list = isinstance(value, Sequence) and bool(value)
    return is_list and all(isinstance(each, str) for each in value)


def _check_is_array(value: Any, wanted: str, reading: str) -> np.ndarray | mx.array:
    """Return a picture or a mask as an array.

    Args:
        wanted: what it must be, for the message.
        reading: how to make it of a picture of Pillow.

    Raises:
        TypeError: if it is not an array of real numbers.
    """
    if is_pil(value):
        raise TypeError(f"{wanted}; got {describe(value)}: give {reading}")
    if isinstance(value, mx.array):
        if value.dtype == mx.complex64:
            raise TypeError(f"{wanted}; got {describe(value)}")
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged lists; tensors of a GPU
        raise TypeError(f"{wanted}; got {describe(value)}, which is not an array") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{wanted}; got {describe(value)}, not an array of real numbers")
    return array


def _require_floats(
    array: np.ndarray | mx.array, wanted: str, *, or_booleans: bool = False
) -> None:
    """Check that the numbers of an array are floats.

    Raises:
        ValueError: if they are not; the message begins with `wanted`.
    """
    is_boolean = array.dtype == (np.bool_ if isinstance(array, np.ndarray) else mx.bool_)
    if not (_is_float(array) or (is_boolean and or_booleans)):
        name = str(array.dtype).removeprefix("mlx.core.")
        raise ValueError(f"{wanted}; got integers, {name}")


def _is_float(array: np.ndarray | mx.array) -> bool:
    """Return whether the numbers of an array are floats."""
    if isinstance(array, np.ndarray):
        return array.dtype.kind == "f"
    return mx.issubdtype(array.dtype, mx.floating)


def _read_levels(
    array: np.ndarray | mx.array, wanted: str, lowest: float, highest: float
) -> mx.array:
    """Return an array of floats as float32; this evaluates it.

    Raises:
        ValueError: if a number is not finite, or not from `lowest` to `highest`; the message begins
            with `wanted`.
    """
    if isinstance(array, np.ndarray):  # MLX takes no negative strides and no foreign byte order
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    picture = mx.array(array, dtype=mx.float32)
    low, high = np.array(mx.stack([picture.min(), picture.max()])).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{wanted}; got numbers that are not finite")
    if low < lowest or high > highest:
        raise ValueError(f"{wanted}; got values from {low:g} to {high:g}")
    return picture


def check_latents(x: Any, channels: int) -> mx.array:
    """Return latents [B, h, w, C] to be decoded, float32.

    Raises:
        TypeError: if they are not an array.
        ValueError: if their shape is wrong.
    """
    wanted = f"latents must be an array [B, h, w, {channels}]"
    if not isinstance(x, (mx.array, np.ndarray)):
        raise TypeError(f"{wanted}, got {describe(x)}")
    if x.ndim != 4 or x.shape[-1] != channels or not all(x.shape):
        raise ValueError(f"{wanted}, got {list(x.shape)}")
    return mx.array(x, dtype=mx.float32)


def _suggest_for_shape(shape: list[int]) -> str:
    """Return advice for a shape that is often given instead of [H, W, 3]; "" for others."""
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
            return ": blend it with a background, or drop the alpha channel, image[..., :3]"
        case [_, _, 1]:
            return ": repeat the grey, np.repeat(image, 3, axis=-1)"
        case [_, _]:
            return ": repeat the grey, np.stack([image] * 3, axis=-1)"
    return ""


def _suggest_for_mask(shape: list[int], size: Sequence[int]) -> str:
    """Return advice for the shape of a mask that is not that of the picture, (height, width)."""
    height, width = size
    if not all(shape):
        return ": it is empty"
    if shape == [height, width, 1]:
        return ": give mask[..., 0]"
    if shape == [1, height, width]:
        return ": give mask[0]"
    if shape in ([height, width, 3], [height, width, 4]):
        return f": give one number for each pixel, {READ_MASK.format('mask')}"
    return f" for an image of {list(size)}: give one number for each pixel of the image"
