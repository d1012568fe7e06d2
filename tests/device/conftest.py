"""Fixtures of the tests of kernels."""

import ctypes

import pytest

from stable_diffusion.device import compile_kernels, compiler


@pytest.fixture(scope="session")
def wide_kernels(tmp_path_factory, shared) -> ctypes.CDLL:
    """Return the kernels as for AVX-512 with BF16, in portable code, once for all processes."""
    library = shared / "wide.so"
    if not library.exists():
        made = tmp_path_factory.mktemp("wide") / "kernels.so"
        sources = sorted(compile_kernels.SOURCES.glob("*.cpp"))
        flags = (*compile_kernels.FLAGS, "-DWIDE", "-O1")
        compiler.compile_library("g++", sources, flags, made)
        made.rename(library)
    return ctypes.CDLL(str(library))
