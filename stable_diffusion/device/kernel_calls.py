"""Call the compiled kernels with the right types, unless MLX is tracing their arrays.

Kernels fill arrays outside of MLX's graph. While MLX traces an array, to differentiate, compile or
map a function, a kernel's result would be a constant for MLX. So kernels are not called then.
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

PASSED_TYPES = (mx.float32, mx.uint32, mx.uint16)  # other arrays are converted to float32

CORES = count_cores()


class Unsupported(Exception):
    """A kernel cannot compute this, but MLX's own operations can."""


_ARRAY, _ARRAYS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_INTEGER, _NUMBER = ctypes.c_long, ctypes.c_float

# The arguments of each kernel, as the C++ sources declare them. An array may be None.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "activate": (_ARRAY, *[_INTEGER] * 2, _ARRAY, _INTEGER),
    "group_norm": (_ARRAY, *[_INTEGER] * 4, _ARRAY, _ARRAY, _NUMBER, _ARRAY, _ARRAY, _INTEGER),
    "normalize": (_ARRAY, *[_INTEGER] * 3, _ARRAY, _ARRAY, _INTEGER, _ARRAY, _INTEGER),
    "linear": (
        *(_ARRAY, *[_INTEGER] * 4, *[_ARRAYS] * 3),
        *(_ARRAY, _ARRAY, _INTEGER, _NUMBER, _INTEGER, _ARRAY, _INTEGER, _INTEGER),
    ),
    "widen": (_ARRAY, *[_INTEGER] * 2, _ARRAY, _INTEGER),
    "dequantize": (_ARRAY, *[_INTEGER] * 4, *[_ARRAY] * 3, _INTEGER),
    "quantize": (_ARRAY, *[_INTEGER] * 4, *[_ARRAY] * 3, _INTEGER),
    "conv3x3": (
        *(_ARRAY, *[_INTEGER] * 4, _ARRAY, _ARRAY, *[_INTEGER] * 4),
        *(_ARRAY, _INTEGER, _ARRAY, _INTEGER, _ARRAY, _ARRAY, *[_INTEGER] * 3),
    ),
    "attention": (*[_ARRAY] * 4, *[_INTEGER] * 5, _NUMBER, *[_INTEGER] * 2),
}

KERNELS = tuple(_ARGUMENTS)
# Those for weights in bfloat16, which exist only if the processor multiplies bfloat16.
HALF_KERNELS = tuple(f"half_{name}" for name in ("linear", "dequantize", "conv3x3", "attention"))
Kernels = dict[str, Callable[..., bool]]

_checked: dict[int, tuple[ctypes.CDLL, Kernels]] = {}  # by the library's id; keeps it alive
_checking = threading.RLock()


def declare(library: ctypes.CDLL) -> Kernels:
    """Return the kernels of a library, by name, with the types of their arguments."""
    declared = {}
    for name in KERNELS + (HALF_KERNELS if library.half_products() else ()):
        declared[name] = getattr(library, name)
        declared[name].argtypes = _ARGUMENTS[name.removeprefix("half_")]
        declared[name].restype = ctypes.c_bool
    return declared


def load_kernels() -> Kernels:
    """Return the kernels that agree with MLX's own operations; {} if there are none.

    They are compared once, because a compiler can make a wrong library without an error.
    """
    library = compile_kernels.load()
    if library is None:
        return {}
    with _checking:
        if id(library) not in _checked:
            from . import check_kernels  # which imports this module

            declared = declare(library)
            _checked[id(library)] = library, declared  # all of them, during the check
            wrong = list(declared)
            if check_kernels.sees_tracing():
                wrong = check_kernels.find_wrong_kernels()
            if wrong:
                warnings.warn(
                    f"kernels that do not agree with this MLX are not used ({', '.join(wrong)}): "
                    "pictures are correct, but take longer",
                    stacklevel=2,
                )
            right = {name: kernel for name, kernel in declared.items() if name not in wrong}
            _checked[id(library)] = library, right
        return _checked[id(library)][1]


def run(name: str, *arguments: mx.array | Sequence | float | None) -> None:
    """Run a kernel on all cores.

    Args:
        arguments: the arguments of the C++ function, except the number of cores. Arrays are
            converted to float32, unless they are integers: the words of a quantized weight, or
            the bits of numbers in half precision.

    Raises:
        Unsupported: if the kernel is not used, or not for these arrays: one of them is empty, or
            MLX is tracing one.
        MemoryError: if there is too little memory for intermediate results.
    """
    kernel = load_kernels().get(name)
    arrays = list(_find_arrays(arguments))
    if kernel is None or not all(array.size for array in arrays) or is_traced(*arrays):
        raise Unsupported
    kept: list[np.ndarray] = []  # referenced while the kernel runs
    if not kernel(*(_to_c(_widen_all(argument), kept) for argument in arguments), CORES):
        raise MemoryError("the memory is too small")


def is_traced(*arrays: mx.array) -> bool:
    """Return whether a transformation of MLX, such as `mx.grad`, is tracing one of the arrays.

    If not, they are evaluated. For the transformation, everything that is computed from them
    outside of MLX's graph would be a constant, whose gradient is zero.
    """
    try:
        mx.eval(arrays)  # an error inside `mx.compile` and `mx.vmap`
        mx.async_eval(mx.depends([arrays[0]], arrays))  # an error inside `mx.grad`, `mx.jvp`, too
    except ValueError:
        return True
    return False


def widen(x: mx.array) -> mx.array:
    """Return an array of float16 or bfloat16 as float32."""
    out, halves = mx.empty(x.shape), mx.view(x, mx.uint16)
    run("widen", halves, x.size, x.dtype == mx.bfloat16, out)
    return out


def _find_arrays(arguments: Sequence) -> Iterator[mx.array]:
    """Yield the arrays among arguments and in sequences of them."""
    for argument in arguments:
        if isinstance(argument, mx.array):
            yield argument
        elif isinstance(argument, Sequence):
            yield from _find_arrays(argument)


def _widen_all(argument: Any) -> Any:
    """Return an argument or a sequence of them, with arrays of other types as float32."""
    if isinstance(argument, Sequence):
        return [_widen_all(item) for item in argument]
    if not isinstance(argument, mx.array) or argument.dtype in PASSED_TYPES:
        return argument
    is_half = argument.dtype in (mx.float16, mx.bfloat16)
    return widen(argument) if is_half else argument.astype(mx.float32)


def _to_c(argument: Any, kept: list[np.ndarray]) -> Any:
    """Return an argument for C: for an array, the address of its numbers, row after row."""
    if isinstance(argument, list):
        return (ctypes.c_void_p * len(argument))(*(_to_c(item, kept) for item in argument))
    if isinstance(argument, mx.array):
        kept.append(np.ascontiguousarray(np.array(argument, copy=False)))
        return kept[-1].ctypes.data
    return argument
