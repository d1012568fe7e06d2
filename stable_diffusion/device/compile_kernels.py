"""Compile `kernels/` for the processor of this machine, once, and load them.

MLX itself needs g++ on a Linux CPU for what it compiles. The library is kept in the user's cache
folder. Its name contains a digest of the sources, the compiler, its settings and the processor. The
file ends in a digest of its name and content.

A loaded library runs with the rights of the user. Therefore it is only read from a file and folder
that nobody else can write, and it is checked before it is loaded. It is loaded from a copy in
memory: so the content is exactly what was checked, and the cache folder may be one from which
programs cannot be run.

``STABLE_DIFFUSION_KERNELS=none`` uses MLX's own operations instead.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from .compiler import compile_library, find_compiler
from .memory_files import create_memory_file
from .private_files import (
    FOLDER,
    describe_error,
    make_working_folder,
    prepare_folder,
    read_own,
    remove_left_behind,
    write_own,
)

OVERRIDE = "STABLE_DIFFUSION_KERNELS"

SOURCES = Path(__file__).parent / "kernels"
# Without -ffast-math, which loses infinities and NaN: an overflow is recognized by them.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-pthread")

# The environment variables that change the result of g++ and its linker (GCC's manual, 3.21).
COMPILER_VARIABLES = (
    *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX"),
    *("COMPILER_PATH", "LD_RUN_PATH", "LDEMULATION", "SOURCE_DATE_EPOCH"),
)
PROGRAMS = ("as", "ld")  # g++ looks for them in PATH

# The lines of /proc/cpuinfo that distinguish processors: of x86, then of ARM.
CPU_LINES = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


@cache
def load() -> ctypes.CDLL | None:
    """Return the library; None if it is not wanted or, with a warning, if it cannot be used.

    Raises:
        ValueError: if the override has an unknown value.
    """
    if not _is_wanted():
        return None
    try:
        compiler = find_compiler()
        return _load_or_compile(compiler, _find_kept(compiler))
    except OSError as error:
        warnings.warn(
            f"pictures take several times as long as they could, as {describe_error(error)}",
            stacklevel=2,
        )
        return None


def needs_compiling() -> bool:
    """Return whether `load` will compile first, which takes some seconds.

    Raises:
        ValueError: if the override has an unknown value.
    """
    if not _is_wanted() or load.cache_info().currsize:
        return False
    try:
        kept = _find_kept(find_compiler())
    except OSError:
        return False
    return kept is None or read_own(kept) is None


def _is_wanted() -> bool:
    value = os.environ.get(OVERRIDE)
    if value and value != "none":
        raise ValueError(
            f"{OVERRIDE} is {value!r}: set it to none to compute without compiled kernels, or "
            "unset it"
        )
    return not value


def _load_or_compile(compiler: str, kept: Path | None) -> ctypes.CDLL:
    """Load the library in the cache folder, or compile one and keep it there.

    Raises:
        OSError: if there is no space, the compiler fails, or the system does not load the library.
    """
    if kept is not None:
        remove_left_behind(kept.parent)
        content = read_own(kept)
        if content is not None:
            with suppress(OSError):  # made with another libc, for example
                return _load_content(content)
    obstacle = None  # to keeping the library
    with ExitStack() as stack:
        folder = None
        if kept is not None:
            try:
                prepare_folder(kept.parent)
                folder = stack.enter_context(make_working_folder(kept.parent))
            except OSError as error:
                obstacle = error
        if folder is None:
            folder = stack.enter_context(_make_temporary_folder())
        content = _compile(compiler, folder)
        library = _load_content(content)
        if kept is not None and obstacle is None:
            try:
                write_own(content, kept, folder)
            except OSError as error:
                obstacle = error
    if obstacle is not None and not _means_no_folder(obstacle):
        warnings.warn(
            f"the kernels are compiled at every run, as {describe_error(obstacle)}: set "
            "XDG_CACHE_HOME to a folder with some free space that you alone can write",
            stacklevel=3,
        )
    return library


def _compile(compiler: str, folder: Path) -> bytes:
    """Compile the kernels in a folder, and return the library.

    Raises:
        OSError: if the compiler cannot be run, or fails.
    """
    library = folder / "kernels.so"
    compile_library(compiler, sorted(SOURCES.glob("*.cpp")), FLAGS, library)
    try:
        return library.read_bytes()
    except FileNotFoundError:
        raise OSError("g++ wrote no library: install your system's g++") from None


@contextmanager
def _make_temporary_folder() -> Iterator[Path]:
    """Yield a folder to work in, in the system's temporary folder."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(make_working_folder(Path(tempfile.gettempdir())))
        except OSError as error:
            raise OSError(
                f"there is no folder to compile in ({describe_error(error)}): set TMPDIR to one "
                "with some free space"
            ) from None
        yield folder


# --- the file that is kept ------------------------------------------------------------------------


def _find_kept(compiler: str) -> Path | None:
    """Return the path of the library in the cache folder; None if there can be no such folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        return None
    try:
        return folder / FOLDER / f"kernels-{_compute_key(compiler)}.so"
    except OSError:  # no /proc, so this processor cannot be distinguished from another
        return None


def _means_no_folder(error: OSError) -> bool:
    """Return whether an error means that there can be no cache folder: no home, for example."""
    return isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError)


def _compute_key(compiler: str) -> str:
    """Return a digest of everything that the library depends on.

    Raises:
        OSError: if something of this cannot be read.
    """
    programs = [compiler, *filter(None, map(shutil.which, PROGRAMS))]
    tools = [(program, os.stat(program)) for program in programs]
    parts = [
        *(FLAGS, platform.machine()),
        *((program, status.st_mtime_ns, status.st_size) for program, status in tools),
        *((name, os.environ.get(name)) for name in COMPILER_VARIABLES),
        *((source.name, source.read_bytes()) for source in sorted(SOURCES.glob("*.*"))),
        *_read_processor(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_processor() -> list[str]:
    """Return the lines of /proc/cpuinfo that distinguish this processor from others."""
    lines = []
    with open("/proc/cpuinfo", errors="replace") as file:
        for line in file:
            if line.startswith(CPU_LINES):
                lines.append(line)
            if line == "\n":  # the other cores have the same lines
                break
    return lines


# --- loading --------------------------------------------------------------------------------------


def _load_content(content: bytes) -> ctypes.CDLL:
    """Load a library from memory, or from the temporary folder if the system does not allow that.

    Raises:
        OSError: if the system loads it from neither.
    """
    try:
        return _load_from_memory(content)
    except OSError:
        pass
    try:
        with tempfile.TemporaryDirectory() as folder:  # it stays loaded when its file is removed
            library = Path(folder, "kernels.so")
            library.write_bytes(content)
            return ctypes.CDLL(str(library))
    except OSError as error:
        is_damaged = error.errno is None and "failed to map segment" not in str(error)
        remedy = (
            "install your system's g++"
            if is_damaged
            else "set TMPDIR to a folder with some free space that programs may run from"
        )
        raise OSError(f"the kernels cannot be loaded ({describe_error(error)}): {remedy}") from None


def _load_from_memory(content: bytes) -> ctypes.CDLL:
    """Load a library from a file in memory, which stays open: see `memory_files`."""
    descriptor = create_memory_file("kernels.so")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return ctypes.CDLL(f"/proc/{os.getpid()}/fd/{descriptor}")
    except BaseException:
        os.close(descriptor)
        raise
