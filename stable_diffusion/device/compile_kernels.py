"""Compiles `kernels/` for the processor at hand, once, and loads them.

MLX itself needs g++ on a Linux CPU for what it compiles. The library is kept in the user's cache
folder, under a name that says what it was made of, with what and for which processor. At its end
is a digest of the name and the library.

What is loaded runs with the rights of the user. So it is read first, only from a file and folder
that nobody else can write, and what was read and checked is what is loaded: by way of a file in
memory, for which it does not matter whether programs may run from the folder.

``STABLE_DIFFUSION_KERNELS=none`` uses MLX's own operations instead.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from .private_files import (
    FOLDER,
    describe,
    prepare_folder,
    read_own,
    remove_left_behind,
    working_folder,
    write_own,
)

OVERRIDE = "STABLE_DIFFUSION_KERNELS"

SOURCES = Path(__file__).parent / "kernels"
# No -ffast-math: what is not finite has to stay so, for `finite` looks for it.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-pthread")

# The environment variables that change what g++ and its linker make (GCC's manual, 3.21).
COMPILER_VARIABLES = (
    *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX"),
    *("COMPILER_PATH", "LD_RUN_PATH", "LDEMULATION", "SOURCE_DATE_EPOCH"),
)
PROGRAMS = ("as", "ld")  # which g++ looks for in PATH

# The lines of /proc/cpuinfo that tell processors apart: of x86, then of ARM.
CPU_LINES = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)

MAX_SHOWN = 200  # characters of what g++ says
NO_SPACE = ("No space left on device", "Disk quota exceeded")


@cache
def load() -> ctypes.CDLL | None:
    """Return the library; None if it is not wanted or, with a warning, if it cannot be used.

    Raises:
        ValueError: if the override says something unknown.
    """
    if not _is_wanted():
        return None
    try:
        compiler = _find_compiler()
        return _load(compiler, _kept(compiler))
    except OSError as error:
        warnings.warn(
            f"pictures take several times as long as they could, as {describe(error)}",
            stacklevel=2,
        )
        return None


def is_to_be_compiled() -> bool:
    """Return whether `load` will take some seconds, the first time.

    Raises:
        ValueError: if the override says something unknown.
    """
    if not _is_wanted() or load.cache_info().currsize:
        return False
    try:
        kept = _kept(_find_compiler())
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


def _find_compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise OSError("there is no g++: install your system's g++")
    return compiler


def _load(compiler: str, kept: Path | None) -> ctypes.CDLL:
    """Load the library that is kept, or a new one.

    Raises:
        OSError: if there is no space, or the compiler fails, or the system loads no library.
    """
    if kept is not None:
        remove_left_behind(kept.parent)
        content = read_own(kept)
        if content is not None:
            with suppress(OSError):  # made with another libc, for example
                return _load_content(content)
    obstacle = None
    with ExitStack() as stack:
        folder = None
        if kept is not None:
            try:
                prepare_folder(kept.parent)
                folder = stack.enter_context(working_folder(kept.parent))
            except OSError as error:
                obstacle = error
        if folder is None:
            folder = stack.enter_context(_temporary_folder())
        compile_kernels(compiler, folder / "kernels.so")
        try:
            content = (folder / "kernels.so").read_bytes()
        except FileNotFoundError:
            raise OSError("g++ makes no library: install your system's g++") from None
        library = _load_content(content)
        if kept is not None and obstacle is None:
            try:
                write_own(content, kept, folder)
            except OSError as error:
                obstacle = error
    if obstacle is not None and not _is_no_folder(obstacle):
        warnings.warn(
            f"the kernels are compiled at every run, as {describe(obstacle)}: set "
            "XDG_CACHE_HOME to a folder with some free space that you alone can write",
            stacklevel=3,
        )
    return library


# --- the file that is kept ------------------------------------------------------------------------


def _kept(compiler: str) -> Path | None:
    """Return where the library is, or will be; None for a user without a folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        return None
    try:
        return folder / FOLDER / f"kernels-{_key(compiler)}.so"
    except OSError:  # no /proc: nothing tells this processor from another
        return None


def _is_no_folder(error: OSError) -> bool:
    """Return whether the cache folder has no place to be: there is no home, for example."""
    return isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError)


# --- compiling ------------------------------------------------------------------------------------


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make such a folder where the system has its temporary files."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(working_folder(Path(tempfile.gettempdir())))
        except OSError as error:
            raise OSError(
                f"there is no folder to compile in ({describe(error)}): set TMPDIR to one with "
                "some free space"
            ) from None
        yield folder


def compile_kernels(compiler: str, library: Path, flags: Sequence[str] | None = None) -> None:
    """Compile each source by a process of its own, and link them.

    Raises:
        OSError: if the compiler cannot be run, or fails.
    """
    flags = FLAGS if flags is None else flags
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [compiler, *flags, "-c", source, "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    _run_all(commands, library.parent)
    _run_all(
        [[compiler, *flags, "-shared", *objects, "-o", library]],
        library.parent,
    )


def _run_all(commands: Sequence[Sequence[str | Path]], folder: Path) -> None:
    """Run commands side by side, with a folder for what they write on the way."""
    environment = {"PATH": os.defpath, **os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    processes: list[subprocess.Popen] = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
            )
        errors = "".join(process.communicate()[1] for process in processes)
    except OSError as error:
        is_short = error.errno in (errno.ENOMEM, errno.EAGAIN)
        remedy = "close other programs" if is_short else "install your system's g++"
        raise OSError(f"g++ cannot be run ({error.strerror}): {remedy}") from None
    finally:  # if one cannot be started, or Ctrl-C is pressed
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    codes = [process.returncode for process in processes if process.returncode]
    if codes:
        reason = _reason(errors, codes[0])
        if any(words in reason for words in NO_SPACE):
            raise OSError(f"g++ fails ({reason}): free some space in {folder.parent}")
        raise OSError(f"g++ fails ({reason}): install your system's g++")


def _reason(errors: str, code: int) -> str:
    """Return the line that says why a compiler failed."""
    lines = [" ".join(line.split()) for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if any(words in line for words in NO_SPACE)]
    telling = telling or [line for line in lines if "error" in line] or lines
    if telling:
        return telling[0][:MAX_SHOWN]
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return "without saying why"


def _key(compiler: str) -> str:
    """Return what the library depends on, in short.

    Raises:
        OSError: if something of it cannot be read.
    """
    programs = [compiler, *filter(None, map(shutil.which, PROGRAMS))]
    tools = [(program, os.stat(program)) for program in programs]
    parts = [
        *(FLAGS, platform.machine()),
        *((program, status.st_mtime_ns, status.st_size) for program, status in tools),
        *((name, os.environ.get(name)) for name in COMPILER_VARIABLES),
        *((source.name, source.read_bytes()) for source in sorted(SOURCES.glob("*.*"))),
        *_processor(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """Return the lines of the system that tell this processor from others."""
    lines = []
    with open("/proc/cpuinfo", errors="replace") as file:
        for line in file:
            if line.startswith(CPU_LINES):
                lines.append(line)
            if line == "\n":  # the other cores are alike
                break
    return lines


# --- loading --------------------------------------------------------------------------------------


def _load_content(content: bytes) -> ctypes.CDLL:
    """Load a library from memory, or by way of the temporary folder.

    Raises:
        OSError: if the system loads it from neither.
    """
    try:
        descriptor = _file_in_memory()
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            # The number stays taken: the linker would take another file of it for this one.
            return ctypes.CDLL(f"/proc/{os.getpid()}/fd/{descriptor}")
        except BaseException:
            os.close(descriptor)
            raise
    except OSError:
        pass  # the system's rules are against it
    try:
        with tempfile.TemporaryDirectory() as folder:  # what is loaded stays when its file is gone
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
        raise OSError(f"the kernels cannot be loaded ({describe(error)}): {remedy}") from None


def _file_in_memory() -> int:
    """Return a new file's descriptor, none of the standard streams' should one be closed."""
    try:
        low = os.memfd_create("kernels.so")
    except AttributeError:  # a Python for an older Linux
        raise OSError("there are no files in memory") from None
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(low)
