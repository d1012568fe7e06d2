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
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

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

FOLDER = "stable-diffusion-mlx"  # in the user's cache folder
WORKING = "stable-diffusion-mlx-compiling-"  # what the folders in which we compile begin with
A_DAY = 24 * 60 * 60  # seconds: older folders are left behind, whatever their locks say
MIN_FREE = 2**25  # bytes: objects, the library and what g++ writes on the way take a fourth
MAX_SIZE = 2**26  # bytes of a library
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
            f"pictures take several times as long as they could, as {_describe(error)}",
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
    return kept is None or _read(kept) is None


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
        _remove_left_behind(kept.parent)
        content = _read(kept)
        if content is not None:
            with suppress(OSError):  # made with another libc, for example
                return _load_content(content)
    obstacle = None
    with ExitStack() as stack:
        folder = None
        if kept is not None:
            try:
                _prepare(kept.parent)
                folder = stack.enter_context(_working_folder(kept.parent))
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
                _write(content, kept, folder)
            except OSError as error:
                obstacle = error
    if obstacle is not None and not _is_no_folder(obstacle):
        warnings.warn(
            f"the kernels are compiled at every run, as {_describe(obstacle)}: set "
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


def _read(kept: Path) -> bytes | None:
    """Return the library if it is whole, and this user alone can have written it."""
    try:
        with _opened_folder(kept.parent) as folder:
            if not _is_private(os.fstat(folder)):
                return None
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe has no writer
            with open(os.open(kept.name, flags, dir_fd=folder), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not _is_private(status):
                    return None
                written = file.read(MAX_SIZE)
    except OSError:
        return None
    content = written[: -hashlib.sha256().digest_size]
    return content if written == content + _digest(kept.name, content) else None


def _write(content: bytes, kept: Path, folder: Path) -> None:
    """Write the library and its digest, at once, by way of a folder on the same disk."""
    whole = folder / kept.name
    with open(whole, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content + _digest(kept.name, content))
        file.flush()
        os.fsync(file.fileno())
    if kept.is_dir() and not kept.is_symlink():
        kept.rename(folder / "in-the-way")
    whole.replace(kept)
    with _opened_folder(kept.parent) as descriptor:
        os.fsync(descriptor)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _is_private(status: os.stat_result) -> bool:
    """Return whether this user owns it, and nobody else can write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """Open a folder that is no symbolic link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prepare(folder: Path) -> None:
    """Make the cache folder, and let nobody else write it.

    Raises:
        OSError: if that cannot be done, or it is full.
    """
    if folder.is_symlink():
        raise OSError(f"{folder} is a symbolic link")
    for each in (folder.parent, folder):  # but no home if there is none
        each.mkdir(mode=0o700, exist_ok=True)
    with _opened_folder(folder) as descriptor:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise OSError(f"{folder} belongs to another user")
        if not _is_private(status):
            os.fchmod(descriptor, 0o700)
    if shutil.disk_usage(folder).free < MIN_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _is_no_folder(error: OSError) -> bool:
    """Return whether the cache folder has no place to be: there is no home, for example."""
    return isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError)


# --- compiling ------------------------------------------------------------------------------------


@contextmanager
def _working_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that goes when it is left.

    It is locked: the lock of a process that is killed goes with it, and the next one removes the
    folder.
    """
    _remove_left_behind(parent)
    descriptor = None
    while descriptor is None:
        folder = Path(tempfile.mkdtemp(prefix=WORKING, dir=parent))
        descriptor = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make such a folder where the system has its temporary files."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(_working_folder(Path(tempfile.gettempdir())))
        except OSError as error:
            raise OSError(
                f"there is no folder to compile in ({_describe(error)}): set TMPDIR to one with "
                "some free space"
            ) from None
        yield folder


def _lock(folder: Path) -> int | None:
    """Lock a new folder; None if another process has just taken it for one left behind."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    is_there = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = folder.exists()
    except BlockingIOError:
        is_there = False
    except OSError:  # a disk without locks
        pass
    if is_there:
        return descriptor
    os.close(descriptor)
    return None


def _remove_left_behind(parent: Path) -> None:
    """Remove the folders of compilers that were killed."""
    with suppress(OSError):
        status = os.stat(parent, follow_symlinks=False)
        if not _is_private(status) and not status.st_mode & stat.S_ISVTX:
            return  # others could put another folder in the place of ours
        for name in os.listdir(parent):
            is_old_kind = name.startswith("tmp") and parent.name == FOLDER
            if name.startswith(WORKING) or is_old_kind:
                with suppress(OSError), _opened_folder(parent / name) as folder:
                    if _is_left_behind(folder, is_old_kind):
                        shutil.rmtree(parent / name, ignore_errors=True)


def _is_left_behind(folder: int, is_old_kind: bool) -> bool:
    """Return whether a folder is ours, and no process is at work in it."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        return False
    is_old = time.time() - status.st_mtime > A_DAY
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return is_old
    return is_old or not is_old_kind  # earlier versions locked nothing


def compile_kernels(compiler: str, library: Path, flags: Sequence[str] = FLAGS) -> None:
    """Compile each source by a process of its own, and link them.

    Raises:
        OSError: if the compiler cannot be run, or fails.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [compiler, *flags, "-c", source, "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    _run_all(commands, library.parent)
    _run_all([[compiler, "-shared", "-pthread", *objects, "-o", library]], library.parent)


def _run_all(commands: Sequence[Sequence[str | Path]], folder: Path) -> None:
    """Run commands side by side, with a folder for what they write on the way."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
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
        raise OSError(f"the kernels cannot be loaded ({_describe(error)}): {remedy}") from None


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


def _describe(error: OSError) -> str:
    """Return what an error says; one of the system begins with the file."""
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
