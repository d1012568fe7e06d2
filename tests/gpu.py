"""Run on a CPU what would run on a GPU."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mlx.core as mx

from stable_diffusion.device import backend

# mlx::core::CompileMode, of MLX's compile.h.
NO_FUSE, ENABLED = 2, 3


@contextmanager
def as_on(kind: backend.Backend) -> Iterator[None]:
    """Make all choices that depend on the device as on that backend, inside the block."""
    with mock.patch.object(backend, "find_backend", lambda: kind):
        yield


@contextmanager
def without_fusing() -> Iterator[None]:
    """Let `mx.compile` trace, keep and replay functions, without fusing their operations.

    A CPU compiles every fused kernel with a C++ compiler for more than a second, and a UNet has
    dozens of them. What tracing can break is broken without fusing, too: values that are captured
    or read while a function is traced, and evaluation inside of it. A function that was traced
    inside the block stays unfused.
    """
    # C++ has a function for this that Python lacks, `mlx::core::set_compile_mode`.
    (file,) = Path(mx.__file__).with_name("lib").glob("libmlx.[ds]*")
    set_mode = ctypes.CDLL(str(file))._ZN3mlx4core16set_compile_modeENS0_11CompileModeE
    set_mode.argtypes, set_mode.restype = [ctypes.c_int], None
    set_mode(NO_FUSE)
    try:
        yield
    finally:
        set_mode(ENABLED)
