"""Compiles `kernels/` for the processor at hand, once, and loads them.

MLX itself needs g++ on a Linux CPU for what it compiles. The library is kept in the user's cache
folder, under a name that says what it was made of, with what and for which processor.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "kernels"
# No -ffast-math: what is not finite has to stay so, for `finite` looks for it.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-pthread")


@cache
def load() -> ctypes.CDLL | None:
    """The library; None, with a warning, where it cannot be compiled."""
    try:
        compiler = shutil.which("g++")
        if compiler is None:
            raise OSError("there is no g++")
        return _load(compiler, _kept(compiler))
    except OSError as error:
        warnings.warn(
            f"pictures take several times as long as they could, as {error}: install your "
            "system's g++",
            stacklevel=2,
        )
        return None


def is_to_be_compiled() -> bool:
    """Whether `load` will take some seconds, the first time."""
    compiler = shutil.which("g++")
    if compiler is None or load.cache_info().currsize:
        return False
    kept = _kept(compiler)
    return kept is None or not kept.is_file()


def _load(compiler: str, kept: Path | None) -> ctypes.CDLL:
    """Raises OSError, also where there is no space or the compiler fails."""
    if kept is not None:
        with suppress(OSError):
            return ctypes.CDLL(str(kept))
        with suppress(OSError):
            for folder in (kept.parent.parent, kept.parent):  # but no home where there is none
                folder.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                library = Path(folder, kept.name)
                compile_kernels(compiler, library)
                library.replace(kept)
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays when its file is gone
        library = Path(folder, "kernels.so")
        compile_kernels(compiler, library)
        return ctypes.CDLL(str(library))


def _kept(compiler: str) -> Path | None:
    """Where the library is, or will be; None for a user without a folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        return None
    return folder / "stable-diffusion-mlx" / f"kernels-{_key(compiler)}.so"


def compile_kernels(compiler: str, library: Path, flags: Sequence[str] = FLAGS) -> None:
    """Each source by a process of its own.

    Raises:
        OSError: it cannot be run, or fails.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [compiler, *flags, "-c", source, "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    _run_all(commands)
    _run_all([[compiler, "-shared", "-pthread", *objects, "-o", library]])


def _run_all(commands: Sequence[Sequence[str | Path]]) -> None:
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        for command in commands
    ]
    errors = "".join(process.communicate()[1] for process in processes)
    if any(process.returncode for process in processes):
        lines = [line for line in errors.splitlines() if "error" in line]
        raise OSError(f"g++ fails ({lines[0] if lines else 'without saying why'})")


def _key(compiler: str) -> str:
    """What the library depends on, in short."""
    digest = hashlib.sha256(repr((FLAGS, compiler, os.stat(compiler).st_mtime_ns)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features", "model name")):
                digest.update(line.encode())
            if line == "\n":  # the other cores are alike
                break
    return digest.hexdigest()[:16]
