"""The types of numbers in safetensors files: those that MLX does not read, and 8-bit floats.

8-bit floats are widened to float16, which holds all of their values: F8_E4M3 (4 bits of exponent,
3 of mantissa) has no infinity, F8_E5M2 is the upper byte of a float16 (arXiv:2209.05433). Programs
that write them may also write a scale for a weight, by which it is multiplied.
"""

import json
import math
from collections.abc import Mapping
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..utils.strict_json import require

EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
NOT_READ = ("F64", "F8_E5M2")  # by MLX, which then reads no tensor of the file
LAZY_FLOATS = frozenset(("F32", "F16", "BF16"))  # which MLX reads as they are
FLOATS = (*LAZY_FLOATS, "F64", *EIGHT_BITS)

# The types in numpy; those without an own one are read as their bits.
_NUMPY = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4"},
    **{"U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"},
    **{"BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"},
}

# Ends of the keys beside a weight `NAME.weight`, as ComfyUI writes them.
SCALES = ("scale_weight", "weight_scale")
UNUSED = ("scale_input", "input_scale", "comfy_quant")  # the scales of its inputs, and its format
MARKER = "scaled_fp8"  # an empty tensor that says that there are scales
FORMAT = "comfy_quant"  # the format of a weight, as JSON in bytes

# Weights of few bits that are not floats, by the ends of the keys beside them.
QUANTIZERS = {
    "quant_state.bitsandbytes__nf4": "to 4 bits by bitsandbytes",
    "quant_state.bitsandbytes__fp4": "to 4 bits by bitsandbytes",
    "absmax": "to 4 bits by bitsandbytes",
    "SCB": "to 8 bits by bitsandbytes",
    "qweight": "to integers",
    "weight_scale_2": "to 4 bits (NVFP4)",
    "weight._data": "by Quanto",
    "weight_zero_point": "to integers",
}


def refuse_quantized(name: str, kinds: Mapping[str, str]) -> None:
    """Check that a file is not quantized to integers, or to less than 8 bits.

    Args:
        name: the file's name in messages.
        kinds: the type of each tensor.

    Raises:
        ValueError: if it is; the message says how.
    """
    ends = tuple(f".{end}" for end in QUANTIZERS)
    beside_ends = tuple(f".{end}" for end in (*SCALES, FORMAT))
    for key in kinds:
        if key.endswith(ends):
            how = next(how for end, how in QUANTIZERS.items() if key.endswith(f".{end}"))
            raise _make_refusal(name, how, key)
        if key.endswith(beside_ends):
            weight = f"{key.rpartition('.')[0]}.weight"
            if kinds.get(weight, "").startswith(("I", "U")):
                raise _make_refusal(name, f"to {kinds[weight]}", weight)


def read_numbers(opened: BinaryIO, kind: str, shape: tuple[int, ...]) -> mx.array:
    """Read a tensor from a file, at its position; float64 is rounded to float32.

    Raises:
        ValueError: if the file ends before the tensor does.
    """
    count = math.prod(shape)
    numbers = np.fromfile(opened, _NUMPY[kind], count)
    require(len(numbers) == count, "it is cut short")
    if kind == "F64":
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, as in MLX
            numbers = numbers.astype(np.float32)
    tensor = mx.array(numbers).reshape(shape)
    return tensor.view(mx.bfloat16) if kind == "BF16" else tensor


def widen_floats(
    name: str, kinds: Mapping[str, str], tensors: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """Return tensors with their 8-bit floats as float16, or as float32 times their scales.

    The scales and what else belongs to 8-bit weights are left out.

    Args:
        name: the file's name in messages.
        kinds: the type of each tensor in the file.
        tensors: as MLX reads them; 8-bit floats are bytes.

    Raises:
        ValueError: if a scale does not fit its weight, or the format of a weight is not known.
    """
    widened = dict(tensors)
    for key in [key for key in tensors if kinds[key] in EIGHT_BITS]:
        layer, _, parameter = key.rpartition(".")
        value = _widen(widened[key], kinds[key])
        if parameter == "weight":
            _check_format(name, widened.get(f"{layer}.{FORMAT}"), key)
            for end in SCALES:
                if (scale := widened.pop(f"{layer}.{end}", None)) is not None:
                    value = _multiply(name, key, value, scale)
            for end in UNUSED:
                widened.pop(f"{layer}.{end}", None)
        widened[key] = value
    return {key: value for key, value in widened.items() if key.split(".")[-1] != MARKER}


def _widen(value: mx.array, kind: str) -> mx.array:
    """Return bytes that are 8-bit floats as float16."""
    if kind == "F8_E4M3":
        return mx.from_fp8(value, mx.float16)
    return mx.left_shift(value.astype(mx.uint16), 8).view(mx.float16)


def _multiply(name: str, key: str, value: mx.array, scale: mx.array) -> mx.array:
    """Return a weight times its scale: one number, or one for each row.

    Raises:
        ValueError: if the scale is neither.
    """
    rows = (value.shape[0], *[1] * (value.ndim - 1)) if value.ndim else ()
    is_float = mx.issubdtype(scale.dtype, mx.floating)
    if not is_float or scale.size not in (1, math.prod(rows)):
        shape = list(scale.shape)
        raise ValueError(
            f"{name}: the scale of {key} is {shape} of {scale.dtype}, which is not "
            "supported: use the model's float16 file"
        )
    factor = scale.reshape(() if scale.size == 1 else rows)
    return value.astype(mx.float32) * factor.astype(mx.float32)


def _check_format(name: str, content: mx.array | None, key: str) -> None:
    """Check that the format that ComfyUI names for a weight is a plain 8-bit float.

    Raises:
        ValueError: if it is not.
    """
    if content is None:
        return
    try:
        options = json.loads(np.array(content, np.uint8).tobytes())
        found, is_rotated = str(options["format"]), bool(options.get("convrot"))
    except (ValueError, KeyError, TypeError, AttributeError):
        found, is_rotated = "a format that is not readable", False
    if is_rotated or not found.startswith("float8"):
        raise _make_refusal(name, f"as {found[:50]!r}{' and rotated' * is_rotated}", key)


def _make_refusal(name: str, how: str, key: str) -> ValueError:
    """Return the error to raise for a quantized file."""
    return ValueError(
        f"{name} is quantized {how}, which is not supported (it has {key}): use the model's "
        "float16 file"
    )
