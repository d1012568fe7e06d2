"""What MLX does slowly on a Linux CPU, by kernels of our own.

There MLX computes everything but matrix products on one core, an exponential costs as much as 60
additions, and a convolution copies its input nine times. The kernels, `kernels/*.cpp`, share the
work out over the cores and keep what they make on the way in the processor's cache.

`layers` takes these functions for what `serves` accepts, and MLX's own for everything else. They
compute in float32, whatever type the weights are stored in, and at once, not lazily.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from . import cpu_library

AS_THEY_ARE = {mx.float32, mx.uint32, mx.uint16}  # what arrays are passed to kernels as

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def is_used() -> bool:
    """Whether the default device is a Linux CPU."""
    return sys.platform == "linux" and mx.default_device().type == mx.cpu


def serves(x: mx.array) -> bool:
    """Whether these functions are the ones to take for `x`."""
    return x.dtype == mx.float32 and is_used() and cpu_library.load() is not None


def is_to_be_compiled() -> bool:
    """Whether the kernels are to be used and not there yet: compiling takes some seconds."""
    return is_used() and cpu_library.is_to_be_compiled()


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """The type to compute in with weights of type `stored`.

    A Linux CPU multiplies half precision 50 times slower than single: there the weights are
    widened as they are used.
    """
    return mx.float32 if is_used() else stored


def keep_freed_memory() -> None:
    """Have glibc keep large buffers for the next operation, not return them to the system.

    Each would be faulted in again page by page, which costs as much as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


class Activation(IntEnum):
    """As `kernels/activations.h` numbers them."""

    NONE, SILU, GELU, QUICK_GELU = range(4)


class Norm(NamedTuple):
    """What normalises when multiplied and added: for a GroupNorm [B, C] each.

    For a LayerNorm [C] each, after what `eps` is for: rows have mean 0 and variance 1.
    """

    gain: mx.array
    offset: mx.array
    eps: float = 0.0


def activate(x: mx.array, activation: Activation) -> mx.array:
    """The activation of every number of x."""
    out = mx.empty(x.shape)
    _run("activate", x, x.size, activation, out, CORES)
    return out


def group_norm(x: mx.array, groups: int, weight: mx.array, bias: mx.array, eps: float) -> Norm:
    """GroupNorm (PyTorch's grouping) of x [B, ..., C]: its statistics, to be applied later."""
    batch, channels = len(x), x.shape[-1]
    _require(weight, (channels,))
    _require(bias, (channels,))
    norm = Norm(mx.empty((batch, channels)), mx.empty((batch, channels)))
    size = x.size // (batch * channels)
    _run("group_norm", x, batch, size, channels, groups, weight, bias, eps, *norm[:2], CORES)
    return norm


def normalise(x: mx.array, norm: Norm) -> mx.array:
    """x [B, ..., C] after the norm."""
    batch, channels, out = len(x), x.shape[-1], mx.empty(x.shape)
    size = x.size // (batch * channels)
    _run("normalise", x, batch, size, channels, *norm[:2], Activation.NONE, out, CORES)
    return out


def linear(
    x: mx.array,
    weights: Sequence[mx.array],
    biases: Sequence[mx.array | None],
    norm: Norm | None = None,
    added: mx.array | None = None,
    gated: bool = False,
) -> list[mx.array]:
    """norm(x) [B, ..., D] times the transpose of each weight [O, D], plus its bias [O].

    Args:
        added: what is added to the results, of their shape.
        gated: whether half of the outputs are multiplied by the GELU of the other half.
    """
    width, n_outputs = x.shape[-1], len(weights[0]) // (2 if gated else 1)
    for weight, bias in zip(weights, biases, strict=True):
        _require(weight, (len(weights[0]), width))
        _require(bias, (len(weights[0]),))
    outs = [mx.empty((*x.shape[:-1], n_outputs)) for _ in weights]
    _require(added, outs[0].shape)
    norm = norm or Norm(None, None)
    for one in norm[:2]:
        _require(one, (width,) if norm.eps else (len(x), width))
    rows = x.size // width
    _run(
        *("linear", x, rows, width, n_outputs, len(weights), weights, biases, outs),
        *(norm.gain, norm.offset, norm.eps, rows // len(x), added, gated, CORES),
    )
    return outs


def widen(x: mx.array) -> mx.array:
    """Half precision, of either kind, as float32."""
    out, halves = mx.empty(x.shape), mx.view(x, mx.uint16)
    _run("widen", halves, x.size, x.dtype == mx.bfloat16, out, CORES)
    return out


def dequantize(
    weight: mx.array, scales: mx.array, offsets: mx.array, group_size: int, bits: int
) -> mx.array:
    """Packed weights [O, D · bits / 32] → [O, D] in float32."""
    if 32 % bits:
        return mx.dequantize(
            weight, scales.astype(mx.float32), offsets.astype(mx.float32), group_size, bits
        )
    rows, columns = len(weight), weight.shape[1] * 32 // bits
    out = mx.empty((rows, columns))
    _run("dequantize", weight, rows, columns, bits, group_size, scales, offsets, out, CORES)
    return out


def conv3x3(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    norm: Norm | None = None,
    activation: Activation = Activation.NONE,
    added: mx.array | None = None,
    upsample: bool = False,
    stride: int = 1,
    padding: int = 1,
) -> mx.array:
    """3×3 convolution of activation(norm(x)), x [B, H, W, C] padded with zeros → [B, h, w, O].

    Args:
        weight, bias: [O, 3, 3, C], and [O] or, of each picture, [B or 1, O].
        added: what is added to the result.
        upsample: whether every pixel is doubled along both sides before.
        stride: 2 for half of the size.
        padding: rows above and columns to the left; below and to the right there is 1.
    """
    batch, height, width, channels = x.shape
    factor = 2 if upsample else 1
    sides = ((factor * side + padding - 2) // stride + 1 for side in (height, width))
    out = mx.empty((batch, *sides, len(weight)))
    norm = norm or Norm(None, None)
    if bias.ndim > 1 and len(bias) < batch:
        bias = bias[0]  # the same for all
    _require(weight, (len(weight), 3, 3, channels))
    _require(bias, (batch, len(weight))[2 - bias.ndim :])
    _require(added, out.shape)
    _run(
        *("conv3x3", x, batch, height, width, channels, norm.gain, norm.offset, activation),
        *(factor, stride, padding, weight, len(weight), bias, bias.ndim > 1, added, out),
        *(*out.shape[1:3], CORES),
    )
    return out


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    num_heads: int,
    scale: float,
    causal: bool = False,
) -> mx.array:
    """Softmax attention of queries [B, L, D] to keys and values [B, M, D] → [B, L, D].

    Every head has its part of D. Where it is causal, position i attends to those up to i.
    """
    batch, length, width = queries.shape
    _require(keys, (batch, keys.shape[1], width))
    _require(values, keys.shape)
    out = mx.empty(queries.shape)
    _run(
        *("attention", queries, keys, values, out, batch, length, keys.shape[1]),
        *(num_heads, width // num_heads, scale, causal, CORES),
    )
    return out


# --- calling the kernels --------------------------------------------------------------------------


def _run(name: str, *arguments: mx.array | Sequence | float | None) -> None:
    """Run a kernel; arrays are passed as float32, or as the words of what is quantized.

    Raises:
        MemoryError: what it needs on the way does not fit the memory.
    """
    arguments = [_wide(argument) for argument in arguments]
    mx.eval(arguments)
    kept: list[np.ndarray] = []  # while the kernel runs
    kernel = getattr(cpu_library.load(), name)
    kernel.restype = ctypes.c_bool
    if not kernel(*(_passed(argument, kept) for argument in arguments)):
        raise MemoryError("the memory is too small")


def _require(x: mx.array | None, shape: Sequence[int]) -> None:
    """Raises ValueError for another shape: kernels read what is there, right or wrong."""
    if x is not None and x.shape != tuple(shape):
        raise ValueError(f"an array of shape {x.shape} came where {tuple(shape)} was expected")


def _wide(argument: mx.array | Sequence | float | None):
    if isinstance(argument, Sequence):
        return [_wide(one) for one in argument]
    if not isinstance(argument, mx.array) or argument.dtype in AS_THEY_ARE:
        return argument
    is_half = argument.dtype in (mx.float16, mx.bfloat16)
    return widen(argument) if is_half else argument.astype(mx.float32)


def _passed(argument: mx.array | list | float | None, kept: list[np.ndarray]):
    """As C takes it: arrays by their numbers, row after row."""
    if isinstance(argument, list):
        return (ctypes.c_void_p * len(argument))(*(_passed(one, kept) for one in argument))
    if isinstance(argument, mx.array):
        kept.append(np.ascontiguousarray(np.array(argument, copy=False)))
        return ctypes.c_void_p(kept[-1].ctypes.data)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument if argument is None else ctypes.c_long(argument)
