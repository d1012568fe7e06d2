"""Check the pictures and latents that callers give to the library.

The errors are those of `check_arguments`.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .check_arguments import SWAPPED, describe, is_pil
from .utils.wording import abbreviate

# Resampling filters overshoot: by a third of the range in practice, by half of it at most.
MAX_LEVEL = 2.0
FROM_8_BITS = "x / 127.5 - 1"
IMAGE = f"image must be [H, W, 3] floats in [-1, 1]: {FROM_8_BITS} for x of 8 bits"


def check_image(image: Any, factor: int) -> mx.array:
    """Return the picture to start from, float32 [H, W, 3]; this evaluates it.

    Args:
        factor: the sides must be multiples of this.

    Raises:
        TypeError: if it is not an array of real numbers.
        ValueError: if its shape, the type of its numbers, or their range is wrong.
    """
    array = _check_is_array(image)
    shape = list(array.shape)
    if len(shape) != 3 or shape[-1] != 3 or not all(shape):
        raise ValueError(f"{IMAGE}; got the shape {shape}{_suggest_for_shape(shape)}")
    if any(side % factor for side in shape[:2]):
        raise ValueError(
            f"image must be [H, W, 3] with sides that are multiples of {factor}, got {shape}"
        )
    if isinstance(array, np.ndarray):
        is_float = array.dtype.kind == "f"
    else:
        is_float = mx.issubdtype(array.dtype, mx.floating)
    if not is_float:
        name = str(array.dtype).removeprefix("mlx.core.")
        raise ValueError(f"{IMAGE}; got integers, {name}")
    picture = mx.array(array, dtype=mx.float32)
    low, high = np.array(mx.stack([picture.min(), picture.max()])).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{IMAGE}; got numbers that are not finite")
    if max(-low, high) > MAX_LEVEL:
        raise ValueError(f"{IMAGE}; got values from {low:g} to {high:g}")
    return picture


def _check_is_array(image: Any) -> np.ndarray | mx.array:
    """Return the picture to start from as an array.

    Raises:
        TypeError: if it is not an array of real numbers; the message says how to make it one.
    """
    if isinstance(image, (str, bytes, os.PathLike)) or (
        isinstance(image, Sequence) and image and all(isinstance(each, str) for each in image)
    ):
        raise TypeError(
            f"{IMAGE}; got text, {abbreviate(image)!r}: {SWAPPED}; read a file first, "
            'np.asarray(Image.open(file).convert("RGB")) / 127.5 - 1'
        )
    if is_pil(image):
        raise TypeError(
            f'{IMAGE}; got {describe(image)}: give np.asarray(image.convert("RGB")) / 127.5 - 1'
        )
    if isinstance(image, mx.array):
        if image.dtype == mx.complex64:
            raise TypeError(f"{IMAGE}; got {describe(image)}")
        return image
    try:
        array = np.asarray(image)
    except (ValueError, TypeError, RuntimeError):  # ragged lists; tensors of a GPU
        raise TypeError(f"{IMAGE}; got {describe(image)}, which is not an array") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{IMAGE}; got {describe(image)}, not an array of real numbers")
    return array


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
