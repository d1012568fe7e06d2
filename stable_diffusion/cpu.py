"""What MLX does slowly on a Linux CPU, by kernels of our own.

There MLX computes everything but matrix products on one core, an exponential costs as much as 60
additions, and a convolution copies its input nine times. The kernels, `kernels/*.cpp`, share the
work out over the cores and keep what they make on the way in the processor's cache.

They compute in float32, whatever type the weights are stored in, and at once, not lazily. So they
cannot be part of a graph: where MLX differentiates, compiles or maps a function, and for whatever
else the kernels cannot do, `by_kernels` takes MLX's own operations.
"""

import ctypes
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from . import cpu_library
from .cpu_cores import count_cores

T = TypeVar("T")

PASSED_AS_THEY_ARE = (mx.float32, mx.uint32, mx.uint16)  # types of arrays; others are widened

CORES = count_cores()


class Unserved(Exception):
    """A kernel cannot compute this: MLX's own operations can."""


def is_used() -> bool:
    """Return whether the default device is a Linux CPU."""
    return sys.platform == "linux" and mx.default_device().type == mx.cpu


def serves(x: mx.array) -> bool:
    """Return whether the kernels are there and can compute with arrays like `x`."""
    return x.dtype == mx.float32 and is_used() and bool(_kernels())


def by_kernels(x: mx.array, kernels: Callable[[], T], plain: Callable[[], T]) -> T:
    """Return `kernels()`, or `plain()` if the kernels cannot compute it.

    Args:
        x: the input of both.
        kernels: calls functions of this module.
        plain: does the same by MLX's own operations.
    """
    if serves(x):
        try:
            return kernels()
        except Unserved:
            pass
    return plain()


def is_to_be_compiled() -> bool:
    """Return whether the kernels will be compiled at their first use, which takes some seconds."""
    return is_used() and cpu_library.is_to_be_compiled()


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """Return the type to compute in with weights of type `stored`.

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
    """What normalises when multiplied and added.

    Attributes:
        gain, offset: [B, C] each, of a GroupNorm; of a LayerNorm [C] each.
        layer_eps: of a LayerNorm, which first gives each row mean 0 and variance 1; None for a
            GroupNorm, whose statistics are in gain and offset already.
    """

    gain: mx.array
    offset: mx.array
    layer_eps: float | None = None


def activate(x: mx.array, activation: Activation) -> mx.array:
    """Return the activation of every number of x."""
    out = mx.empty(x.shape)
    _run("activate", x, x.size, activation, out, CORES)
    return out


def group_norm(x: mx.array, groups: int, weight: mx.array, bias: mx.array, eps: float) -> Norm:
    """Return the GroupNorm (PyTorch's grouping) of x [B, ..., C]: its statistics, to be applied."""
    batch, size, channels = _pixels(x)
    _require(groups > 0 and channels % groups == 0, f"{groups} groups of {channels} channels")
    _require_shape(weight, (channels,))
    _require_shape(bias, (channels,))
    norm = Norm(mx.empty((batch, channels)), mx.empty((batch, channels)))
    arrays = weight, bias, eps, norm.gain, norm.offset
    _run("group_norm", x, batch, size, channels, groups, *arrays, CORES)
    return norm


def normalise(x: mx.array, norm: Norm) -> mx.array:
    """Return x [B, ..., C] after a GroupNorm."""
    batch, size, channels = _pixels(x)
    _require_norm(norm, batch, channels, is_layer=False)
    out = mx.empty(x.shape)
    arrays = norm.gain, norm.offset, Activation.NONE, out
    _run("normalise", x, batch, size, channels, *arrays, CORES)
    return out


def linear(
    x: mx.array,
    weights: Sequence[mx.array],
    biases: Sequence[mx.array | None],
    norm: Norm | None = None,
    added: mx.array | None = None,
    gated: bool = False,
) -> list[mx.array]:
    """Return norm(x) [B, ..., D] times the transpose of each weight [O, D], plus its bias [O].

    Args:
        added: what is added to the results, of their shape.
        gated: whether half of the outputs are multiplied by the GELU of the other half.
    """
    batch, size, width = _pixels(x)
    n_rows = len(weights[0])
    _require(not gated or n_rows % 2 == 0, f"{n_rows} outputs have no half")
    for weight, bias in zip(weights, biases, strict=True):
        _require_shape(weight, (n_rows, width))
        _require_shape(bias, (n_rows,))
    n_outputs = n_rows // 2 if gated else n_rows
    outs = [mx.empty((*x.shape[:-1], n_outputs)) for _ in weights]
    _require_shape(added, outs[0].shape)
    is_layer = norm is not None and norm.layer_eps is not None
    _require_norm(norm, batch, width, is_layer)
    gain, offset, eps = norm or Norm(None, None)
    _run(
        *("linear", x, batch * size, width, n_outputs, len(weights), weights, biases, outs),
        *(gain, offset, is_layer, eps or 0.0, size, added, gated, CORES),
    )
    return outs


def widen(x: mx.array) -> mx.array:
    """Return half precision, of either kind, as float32."""
    out, halves = mx.empty(x.shape), mx.view(x, mx.uint16)
    _run("widen", halves, x.size, x.dtype == mx.bfloat16, out, CORES)
    return out


def dequantize(
    weight: mx.array, scales: mx.array, offsets: mx.array, group_size: int, bits: int
) -> mx.array:
    """Return packed weights [O, D · bits / 32] as [O, D] in float32."""
    if bits < 1 or 32 % bits:  # a number may lie in two words
        raise Unserved
    _require(weight.dtype == mx.uint32 and weight.ndim == 2, "weights that are not packed")
    rows, columns = len(weight), weight.shape[1] * 32 // bits
    fits = group_size > 0 and columns % group_size == 0 and group_size % (32 // bits) == 0
    _require(fits, f"{columns} weights of {bits} bits in groups of {group_size}")
    for one in (scales, offsets):
        _require_shape(one, (rows, columns // group_size))
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
    """Return the 3×3 convolution of activation(norm(x)), x [B, H, W, C] padded with zeros.

    Args:
        weight, bias: [O, 3, 3, C], and [O] or, of each picture, [B or 1, O].
        activation: needs a norm.
        added: what is added to the result.
        upsample: whether every pixel is doubled along both sides before.
        stride: 2 for half of the size; without `upsample`.
        padding: rows above and columns to the left, 0 or 1; below and to the right there is 1.

    Returns:
        [B, h, w, O].
    """
    _require(x.ndim == 4, f"{x.ndim} axes of pictures")
    known = (stride, padding, upsample) in (
        (1, 1, False),
        (1, 1, True),
        (2, 1, False),
        (2, 0, False),
    )
    _require(known, f"a stride of {stride}, with {padding} before")
    _require(norm is not None or activation == Activation.NONE, "an activation without a norm")
    batch, height, width, channels = x.shape
    factor = 2 if upsample else 1
    sides = [(factor * side + padding - 2) // stride + 1 for side in (height, width)]
    out = mx.empty((batch, *sides, len(weight)))
    if bias.ndim > 1 and len(bias) == 1:
        bias = bias[0]  # the same for all
    _require_shape(weight, (len(weight), 3, 3, channels))
    _require_shape(bias, (batch, len(weight))[2 - bias.ndim :])
    _require_shape(added, out.shape)
    _require_norm(norm, batch, channels, is_layer=False)
    gain, offset, _ = norm or Norm(None, None)
    _run(
        *("conv3x3", x, batch, height, width, channels, gain, offset, activation),
        *(factor, stride, padding, weight, len(weight), bias, bias.ndim > 1, added, out),
        *(*sides, CORES),
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
    """Return the softmax attention of queries [B, L, D] to keys and values [B, M, D]: [B, L, D].

    Every head has its part of D. If it is causal, position i attends to those up to i.
    """
    _require(queries.ndim == 3, f"{queries.ndim} axes of queries")
    batch, length, width = queries.shape
    _require(num_heads > 0 and width % num_heads == 0, f"{num_heads} heads of {width} numbers")
    _require_shape(keys, (batch, *keys.shape[1:2], width))
    _require_shape(values, keys.shape)
    out = mx.empty(queries.shape)
    _run(
        *("attention", queries, keys, values, out, batch, length, keys.shape[1]),
        *(num_heads, width // num_heads, scale, causal, CORES),
    )
    return out


# --- calling the kernels --------------------------------------------------------------------------

_ARRAY, _ARRAYS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_INTEGER, _NUMBER = ctypes.c_long, ctypes.c_float

# The arguments of each kernel, as the C++ sources declare them. A void * may be None.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "activate": (_ARRAY, *[_INTEGER] * 2, _ARRAY, _INTEGER),
    "group_norm": (_ARRAY, *[_INTEGER] * 4, _ARRAY, _ARRAY, _NUMBER, _ARRAY, _ARRAY, _INTEGER),
    "normalise": (_ARRAY, *[_INTEGER] * 3, _ARRAY, _ARRAY, _INTEGER, _ARRAY, _INTEGER),
    "linear": (
        *(_ARRAY, *[_INTEGER] * 4, *[_ARRAYS] * 3),
        *(_ARRAY, _ARRAY, _INTEGER, _NUMBER, _INTEGER, _ARRAY, _INTEGER, _INTEGER),
    ),
    "widen": (_ARRAY, *[_INTEGER] * 2, _ARRAY, _INTEGER),
    "dequantize": (_ARRAY, *[_INTEGER] * 4, *[_ARRAY] * 3, _INTEGER),
    "conv3x3": (
        *(_ARRAY, *[_INTEGER] * 4, _ARRAY, _ARRAY, *[_INTEGER] * 4),
        *(_ARRAY, _INTEGER, _ARRAY, _INTEGER, _ARRAY, _ARRAY, *[_INTEGER] * 3),
    ),
    "attention": (*[_ARRAY] * 4, *[_INTEGER] * 5, _NUMBER, *[_INTEGER] * 2),
}

KERNELS = tuple(_ARGUMENTS)
Kernels = dict[str, Callable[..., bool]]

_checked: dict[int, tuple[ctypes.CDLL, Kernels]] = {}  # by the identity of the library, kept alive
_checking = threading.RLock()


def declare(library: ctypes.CDLL) -> Kernels:
    """Return the kernels of a library, by name, which check the types that they are called with."""
    kernels = {}
    for name, arguments in _ARGUMENTS.items():
        kernels[name] = getattr(library, name)
        kernels[name].argtypes, kernels[name].restype = arguments, ctypes.c_bool
    return kernels


def _kernels() -> Kernels:
    """Return those that compute what MLX's own operations do, checked once; {} if there are none.

    A library may be wrong without an error: a compiler, or a flag of the processor, can be.
    """
    library = cpu_library.load()
    if library is None:
        return {}
    with _checking:
        if id(library) not in _checked:
            from . import cpu_check  # which calls this module

            kernels = declare(library)
            _checked[id(library)] = library, kernels  # all, while they are checked
            wrong = cpu_check.find_wrong_kernels() if cpu_check.sees_tracing() else list(kernels)
            if wrong:
                warnings.warn(
                    f"kernels that do not agree with this MLX are not used ({', '.join(wrong)}): "
                    "pictures are right, and take longer",
                    stacklevel=2,
                )
            right = {name: kernel for name, kernel in kernels.items() if name not in wrong}
            _checked[id(library)] = library, right
        return _checked[id(library)][1]


def _run(name: str, *arguments: mx.array | Sequence | float | None) -> None:
    """Run a kernel; arrays are passed as float32, or as the words of what is quantized.

    Raises:
        Unserved: the kernel is not to be used, or not for these arrays: there is nothing in them,
            or MLX is tracing them.
        MemoryError: what it needs on the way does not fit the memory.
    """
    kernel = _kernels().get(name)
    arrays = list(_arrays(arguments))
    if kernel is None or not all(array.size for array in arrays) or is_traced(*arrays):
        raise Unserved
    kept: list[np.ndarray] = []  # while the kernel runs
    if not kernel(*(_passed(_widened(argument), kept) for argument in arguments)):
        raise MemoryError("the memory is too small")


def is_traced(*arrays: mx.array) -> bool:
    """Return whether a transformation of MLX, as `mx.grad` or `mx.compile`, is tracing an array.

    Evaluates them if not. What is computed from them outside of MLX's graph would be a constant to
    the transformation: the gradient would be zero.
    """
    try:
        mx.eval(arrays)  # refused within `mx.compile` and `mx.vmap`
        mx.async_eval(mx.depends([arrays[0]], arrays))  # refused within `mx.grad` and `mx.jvp`, too
    except ValueError:
        return True
    return False


def _arrays(arguments: Sequence) -> Iterator[mx.array]:
    for argument in arguments:
        if isinstance(argument, mx.array):
            yield argument
        elif isinstance(argument, Sequence):
            yield from _arrays(argument)


def _pixels(x: mx.array) -> tuple[int, int, int]:
    """Return the sizes of x [B, ..., C]: B, all between, C."""
    if x.ndim < 2:
        raise Unserved
    return len(x), math.prod(x.shape[1:-1]), x.shape[-1]


def _require(condition: bool, what: str) -> None:
    """Raise ValueError for what no layer asks for."""
    if not condition:
        raise ValueError(f"{what}: this cannot be computed")


def _require_shape(x: mx.array | None, shape: Sequence[int]) -> None:
    """Raise ValueError for another shape: kernels read what is there, right or wrong."""
    if x is not None and x.shape != tuple(shape):
        raise ValueError(f"an array of shape {x.shape} came where {tuple(shape)} was expected")


def _require_norm(norm: Norm | None, batch: int, channels: int, is_layer: bool) -> None:
    if norm is not None:
        _require((norm.layer_eps is not None) == is_layer, "a norm of another kind")
        for one in (norm.gain, norm.offset):
            _require_shape(one, (channels,) if is_layer else (batch, channels))


def _widened(argument: Any) -> Any:
    if isinstance(argument, Sequence):
        return [_widened(one) for one in argument]
    if not isinstance(argument, mx.array) or argument.dtype in PASSED_AS_THEY_ARE:
        return argument
    is_half = argument.dtype in (mx.float16, mx.bfloat16)
    return widen(argument) if is_half else argument.astype(mx.float32)


def _passed(argument: Any, kept: list[np.ndarray]) -> Any:
    """Return an argument as C takes it: arrays by their numbers, row after row."""
    if isinstance(argument, list):
        return (ctypes.c_void_p * len(argument))(*(_passed(one, kept) for one in argument))
    if isinstance(argument, mx.array):
        kept.append(np.ascontiguousarray(np.array(argument, copy=False)))
        return kept[-1].ctypes.data
    return argument
