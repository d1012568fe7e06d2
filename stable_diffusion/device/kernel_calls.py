"""Calls the compiled kernels: with the types that they declare, and only where they may compute.

They fill arrays outside of MLX's graph. Where MLX traces an array, to differentiate, compile or map
a function, they would make constants of what depends on it; so they are not called there.
"""

import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from . import compile_kernels
from .cpu_cores import count_cores

PASSED_AS_THEY_ARE = (mx.float32, mx.uint32, mx.uint16)  # types of arrays; others are widened

CORES = count_cores()


class Unserved(Exception):
    """A kernel cannot compute this: MLX's own operations can."""


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
    declared = {}
    for name, arguments in _ARGUMENTS.items():
        declared[name] = getattr(library, name)
        declared[name].argtypes, declared[name].restype = arguments, ctypes.c_bool
    return declared


def kernels() -> Kernels:
    """Return those that compute what MLX's own operations do, checked once; {} if there are none.

    A library may be wrong without an error: a compiler, or a flag of the processor, can be.
    """
    library = compile_kernels.load()
    if library is None:
        return {}
    with _checking:
        if id(library) not in _checked:
            from . import check_kernels  # which calls this module

            declared = declare(library)
            _checked[id(library)] = library, declared  # all, while they are checked
            wrong = (
                check_kernels.find_wrong_kernels()
                if check_kernels.sees_tracing()
                else list(declared)
            )
            if wrong:
                warnings.warn(
                    f"kernels that do not agree with this MLX are not used ({', '.join(wrong)}): "
                    "pictures are right, and take longer",
                    stacklevel=2,
                )
            right = {name: kernel for name, kernel in declared.items() if name not in wrong}
            _checked[id(library)] = library, right
        return _checked[id(library)][1]


def run(name: str, *arguments: mx.array | Sequence | float | None) -> None:
    """Run a kernel on all cores. Arrays are passed as float32, or as words of what is quantized.

    Raises:
        Unserved: the kernel is not to be used, or not for these arrays: there is nothing in them,
            or MLX is tracing them.
        MemoryError: what it needs on the way does not fit the memory.
    """
    kernel = kernels().get(name)
    arrays = list(_arrays(arguments))
    if kernel is None or not all(array.size for array in arrays) or is_traced(*arrays):
        raise Unserved
    kept: list[np.ndarray] = []  # while the kernel runs
    if not kernel(*(_passed(_widened(argument), kept) for argument in arguments), CORES):
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


def widen(x: mx.array) -> mx.array:
    """Return half precision, of either kind, as float32."""
    out, halves = mx.empty(x.shape), mx.view(x, mx.uint16)
    run("widen", halves, x.size, x.dtype == mx.bfloat16, out)
    return out


def _arrays(arguments: Sequence) -> Iterator[mx.array]:
    for argument in arguments:
        if isinstance(argument, mx.array):
            yield argument
        elif isinstance(argument, Sequence):
            yield from _arrays(argument)


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
