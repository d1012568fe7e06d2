"""Give MLX's Linux CPU backend a real BLAS.

The Linux wheels of MLX link the reference BLAS, which multiplies matrices some 30 times slower
than OpenBLAS or MKL do. The dynamic linker takes the first definition of a symbol that it meets,
so a real BLAS loaded with ``RTLD_GLOBAL`` before ``mlx.core`` serves MLX instead. That is why the
package imports this module before any other, and why it may import the standard library only.

``STABLE_DIFFUSION_BLAS`` overrides the search: the path of a shared library, or ``none``.
"""

import ctypes
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

OVERRIDE = "STABLE_DIFFUSION_BLAS"

# Under the names that distributions give them: Debian and Fedora, then builds without a version.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")

MKL_THREADING_TBB = 4  # from mkl_service.h


def use_fast_blas() -> str | None:
    """Load a fast BLAS for MLX where it needs one.

    Returns:
        The library that was loaded; None on a Mac, where a BLAS is global already, where MLX
        runs on CUDA and none is found, or where the override says ``none``.

    Raises:
        ValueError: the override names a library that cannot be loaded.
    """
    override = os.environ.get(OVERRIDE)
    if sys.platform != "linux" or override == "none" or _is_global("cblas_sgemm"):
        return None
    if "mlx.core" in sys.modules:
        warnings.warn(
            "mlx was imported before stable_diffusion, so its matrix products keep the slow "
            "reference BLAS on a CPU: import stable_diffusion first, or set LD_PRELOAD to a BLAS",
            stacklevel=2,
        )
        return None
    libraries = [override] if override else [*_files_of("mkl", "libmkl_rt.so"), *SYSTEM_LIBRARIES]
    for library in libraries:
        try:
            loaded = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            if hasattr(loaded, "MKL_Set_Threading_Layer"):
                _thread_with_tbb(loaded)
        except OSError as error:
            if override:
                raise ValueError(f"{OVERRIDE}={override} cannot be loaded: {error}") from None
        else:
            return library
    if not _mlx_runs_on_cuda():
        warnings.warn(
            "no fast BLAS found, so MLX multiplies matrices some 30 times slower than it could: "
            "`pip install mkl` (x86-64), or install your system's OpenBLAS (libopenblas0)",
            stacklevel=2,
        )
    return None


def _is_global(symbol: str) -> bool:
    """Whether the process already offers `symbol` to the libraries it loads (LD_PRELOAD, say)."""
    return hasattr(ctypes.CDLL(None), symbol)


def _thread_with_tbb(mkl: ctypes.CDLL) -> None:
    """Keep MKL's threads apart from any OpenMP.

    Its default is Intel's OpenMP. With GNU's in the same process, which PyTorch brings, matrix
    products of both come out wrong (measured: MKL 2026.2, PyTorch 2.13).
    """
    if tbb := _files_of("tbb", "libtbb.so.12"):
        ctypes.CDLL(tbb[0], mode=ctypes.RTLD_GLOBAL)
        mkl.MKL_Set_Threading_Layer(MKL_THREADING_TBB)


def _files_of(wheel: str, prefix: str) -> list[str]:
    """Files of an installed wheel, which lie outside the linker's search path."""
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return []
    return sorted(str(Path(f.locate()).resolve()) for f in files if f.name.startswith(prefix))


def _mlx_runs_on_cuda() -> bool:
    return any(d.name.startswith("mlx-cuda") for d in metadata.distributions() if d.name)
