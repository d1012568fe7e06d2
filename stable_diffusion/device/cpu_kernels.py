"""Kernels for operations that MLX computes slowly on a Linux CPU.

There MLX uses one core for everything except matrix products, an exponential costs as much as 60
additions, and a convolution copies its input nine times. The kernels, `kernels/*.cpp`, divide the
work between the cores and keep intermediate results in the processor's cache.

They compute in float32, with one exception: if the processor multiplies bfloat16 (AVX-512 BF16 or
AMX), what is multiplied with weights in bfloat16 is rounded to it, too. Sums, norms and softmax
stay in float32.

They compute at once, not lazily. So they cannot be part of a graph: if MLX differentiates, compiles
or maps a function, or if the kernels cannot compute something for another reason, `try_kernels`
uses MLX's own operations, in float32.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

import mlx.core as mx

from . import backend, compile_kernels
from .kernel_calls import Unsupported, load_kernels, run

T = TypeVar("T")


def is_used() -> bool:
    """Return whether the default device is a Linux CPU."""
    return sys.platform == "linux" and not backend.is_gpu()


def supports(x: mx.array) -> bool:
    """Return whether the kernels can compute with arrays like `x`."""
    return x.dtype == mx.float32 and is_used() and bool(load_kernels())


def try_kernels(x: mx.array, kernel: Callable[[], T], plain: Callable[[], T]) -> T:
    """Return `kernel()`, or `plain()` if the kernels cannot compute it.

    Args:
        x: the input of both.
        kernel: calls functions of this module.
        plain: computes the same by MLX's own operations.
    """
    if supports(x):
        try:
            return kernel()
        except Unsupported:
            pass
    return plain()


def needs_compiling() -> bool:
    """Return whether the kernels will be compiled at their first use, which takes some seconds."""
    return is_used() and compile_kernels.needs_compiling()


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """Return the type to compute in with weights of type `stored`.

    On a Linux CPU MLX multiplies half precision 50 times slower than single precision, so arrays
    are float32 there, and weights are converted when they are used.
    """
    return mx.float32 if is_used() else stored


def multiplies_halves() -> bool:
    """Return whether the kernels multiply bfloat16."""
    return is_used() and "half_linear" in load_kernels()


def keep_freed_memory() -> None:
    """Make glibc keep large buffers for the next operation, not return them to the system.

    The system would map each of them again page by page, which takes as long as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


class Activation(IntEnum):
    """The activations that the kernels know, with the numbers of `kernels/activations.h`."""

    NONE, SILU, GELU, QUICK_GELU = range(4)


class Norm(NamedTuple):
    """A norm as the kernels take it: x · gain + offset.

    Attributes:
        gain, offset: [B, C] each for a GroupNorm, with its statistics included; [C] each for a
            LayerNorm.
        layer_eps: the epsilon of a LayerNorm, which first gives each row mean 0 and variance 1;
            None for a GroupNorm.
    """

    gain: mx.array
    offset: mx.array
    layer_eps: float | None = None


def activate(x: mx.array, activation: Activation) -> mx.array:
    """Return the activation of each number of x."""
    out = mx.empty(x.shape)
    run("activate", x, x.size, activation, out)
    return out


def group_norm(x: mx.array, groups: int, weight: mx.array, bias: mx.array, eps: float) -> Norm:
    """Return a GroupNorm (PyTorch's grouping) with the statistics of x [B, ..., C]."""
    batch, size, channels = _get_sizes(x)
    _require(groups > 0 and channels % groups == 0, f"{groups} groups of {channels} channels")
    _require_shape(weight, (channels,))
    _require_shape(bias, (channels,))
    norm = Norm(mx.empty((batch, channels)), mx.empty((batch, channels)))
    arrays = weight, bias, eps, norm.gain, norm.offset
    run("group_norm", x, batch, size, channels, groups, *arrays)
    return norm


def normalize(x: mx.array, norm: Norm) -> mx.array:
    """Return x [B, ..., C] after a GroupNorm."""
    batch, size, channels = _get_sizes(x)
    _require_norm(norm, batch, channels, is_layer=False)
    out = mx.empty(x.shape)
    arrays = norm.gain, norm.offset, Activation.NONE, out
    run("normalize", x, batch, size, channels, *arrays)
    return out


def linear(
    x: mx.array,
    weights: Sequence[mx.array],
    biases: Sequence[mx.array | None],
    norm: Norm | None = None,
    residual: mx.array | None = None,
    gated: bool = False,
) -> list[mx.array]:
    """Return norm(x) [B, ..., D] times the transpose of each weight [O, D], plus its bias [O].

    Args:
        residual: [B, ..., O], added to every result.
        gated: whether half of the outputs are multiplied by the GELU of the other half.
    """
    batch, size, width = _get_sizes(x)
    n_rows = len(weights[0])
    _require(not gated or n_rows % 2 == 0, f"{n_rows} outputs have no half")
    for weight, bias in zip(weights, biases, strict=True):
        _require_shape(weight, (n_rows, width))
        _require_shape(bias, (n_rows,))
    n_outputs = n_rows // 2 if gated else n_rows
    outs = [mx.empty((*x.shape[:-1], n_outputs)) for _ in weights]
    _require_shape(residual, outs[0].shape)
    is_layer = norm is not None and norm.layer_eps is not None
    _require_norm(norm, batch, width, is_layer)
    gain, offset, eps = _unpack_norm(norm)
    name, weights = _choose_precision("linear", weights)
    run(
        *(name, x, batch * size, width, n_outputs, len(weights), weights, biases, outs),
        *(gain, offset, is_layer, eps or 0.0, size, residual, gated),
    )
    return outs


def dequantize(
    weight: mx.array, scales: mx.array, offsets: mx.array, group_size: int, bits: int
) -> mx.array:
    """Return packed weights [O, D · bits / 32] as [O, D] in float32.

    If the scales are in bfloat16, and the kernels multiply it, the weights are in bfloat16.
    """
    if bits < 1 or (32 % bits and bits != 6):  # some numbers are divided between two words
        raise Unsupported
    _require(weight.dtype == mx.uint32 and weight.ndim == 2, "weights that are not packed")
    rows, columns = len(weight), weight.shape[1] * 32 // bits
    n_together = 4 if bits == 6 else 32 // bits  # numbers of whole bytes, or of a word
    fits = group_size > 0 and columns % group_size == 0 and group_size % n_together == 0
    _require(fits, f"{columns} weights of {bits} bits in groups of {group_size}")
    for array in (scales, offsets):
        _require_shape(array, (rows, columns // group_size))
    is_half = scales.dtype == mx.bfloat16 and "half_dequantize" in load_kernels()
    out = mx.empty((rows, columns), mx.uint16 if is_half else mx.float32)
    name = "half_dequantize" if is_half else "dequantize"
    run(name, weight, rows, columns, bits, group_size, scales, offsets, out)
    return out.view(mx.bfloat16) if is_half else out


def conv3x3(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    norm: Norm | None = None,
    activation: Activation = Activation.NONE,
    residual: mx.array | None = None,
    upsample: bool = False,
    stride: int = 1,
    padding: int = 1,
) -> mx.array:
    """Return the 3×3 convolution of activation(norm(x)), padded with zeros: [B, h, w, O].

    Args:
        x: [B, H, W, C].
        weight: [O, 3, 3, C].
        bias: [O], or [B or 1, O] for each picture.
        activation: only with a norm.
        residual: [B, h, w, O], added to the result.
        upsample: whether every pixel is first doubled along both sides.
        stride: 2 for half of the size; not with `upsample`.
        padding: rows above and columns to the left, 0 or 1; there is always 1 below and right.
    """
    _require(x.ndim == 4, f"{x.ndim} axes of pictures")
    is_known = (stride, padding) in ((1, 1), (2, 1), (2, 0)) and not (upsample and stride > 1)
    _require(is_known, f"a stride of {stride} with a padding of {padding}")
    _require(norm is not None or activation == Activation.NONE, "an activation without a norm")
    batch, height, width, channels = x.shape
    factor = 2 if upsample else 1
    sides = [(factor * side + padding - 2) // stride + 1 for side in (height, width)]
    out = mx.empty((batch, *sides, len(weight)))
    if bias.ndim > 1 and len(bias) == 1:
        bias = bias[0]  # the same for all pictures
    _require_shape(weight, (len(weight), 3, 3, channels))
    _require_shape(bias, (batch, len(weight))[2 - bias.ndim :])
    _require_shape(residual, out.shape)
    _require_norm(norm, batch, channels, is_layer=False)
    gain, offset, _ = _unpack_norm(norm)
    name, [weight] = _choose_precision("conv3x3", [weight])
    run(
        *(name, x, batch, height, width, channels, gain, offset, activation),
        *(factor, stride, padding, weight, len(weight), bias, bias.ndim > 1, residual, out),
        *sides,
    )
    return out


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    num_heads: int,
    scale: float,
    causal: bool = False,
    half: bool = False,
) -> mx.array:
    """Return the softmax attention of queries [B, L, D] to keys and values [B, M, D]: [B, L, D].

    D is split evenly between the heads. If causal, position i attends to positions 0 … i.

    Args:
        half: whether to round what is multiplied to bfloat16, if the kernels multiply it.
    """
    _require(queries.ndim == 3, f"{queries.ndim} axes of queries")
    batch, length, width = queries.shape
    _require(num_heads > 0 and width % num_heads == 0, f"{num_heads} heads of {width} numbers")
    _require_shape(keys, (batch, *keys.shape[1:2], width))
    _require_shape(values, keys.shape)
    out = mx.empty(queries.shape)
    name = "half_attention" if half and "half_attention" in load_kernels() else "attention"
    run(
        *(name, queries, keys, values, out, batch, length, keys.shape[1]),
        *(num_heads, width // num_heads, scale, causal),
    )
    return out


def _choose_precision(kernel: str, weights: Sequence[mx.array]) -> tuple[str, Sequence[mx.array]]:
    """Return the name of the kernel to use with these weights, and the weights as it takes them.

    The kernels of half precision take the bits of weights in bfloat16, with an even last axis.
    """
    are_half = all(each.dtype == mx.bfloat16 and each.shape[-1] % 2 == 0 for each in weights)
    name = f"half_{kernel}"
    if are_half and name in load_kernels():
        return name, [each.view(mx.uint16) for each in weights]
    return kernel, weights


# --- checks of arguments --------------------------------------------------------------------------
# Kernels read memory by the sizes that they are given, so the sizes must be right.


def _get_sizes(x: mx.array) -> tuple[int, int, int]:
    """Return the sizes of x [B, ..., C]: B, the product of the sizes between, and C."""
    if x.ndim < 2:
        raise Unsupported
    return len(x), math.prod(x.shape[1:-1]), x.shape[-1]


def _unpack_norm(norm: Norm | None) -> tuple[mx.array | None, mx.array | None, float | None]:
    """Return gain, offset and epsilon."""
    return (None, None, None) if norm is None else norm


def _require(condition: bool, problem: str) -> None:
    """Raise ValueError if a condition is not met, which every layer meets."""
    if not condition:
        raise ValueError(f"{problem}: this cannot be computed")


def _require_shape(x: mx.array | None, shape: Sequence[int]) -> None:
    """Raise ValueError if an array, unless it is None, has another shape."""
    if x is not None and x.shape != tuple(shape):
        raise ValueError(f"expected an array of shape {tuple(shape)}, got {x.shape}")


def _require_norm(norm: Norm | None, batch: int, channels: int, is_layer: bool) -> None:
    """Raise ValueError if a norm, unless it is None, is of another kind or shape."""
    if norm is not None:
        _require((norm.layer_eps is not None) == is_layer, "a norm of another kind")
        for array in (norm.gain, norm.offset):
            _require_shape(array, (channels,) if is_layer else (batch, channels))
