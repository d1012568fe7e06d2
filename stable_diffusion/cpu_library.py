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
        return _load(compiler)
    except OSError as error:
        warnings.warn(
            f"pictures take several times as long as they could, as {error}: install your "
            "system's g++",
            stacklevel=2,
        )
        return None


def _load(compiler: str) -> ctypes.CDLL:
    """Raises OSError, also where there is no space or the compiler fails."""
    name = f"kernels-{_key(compiler)}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder /= "stable-diffusion-mlx"
    with suppress(OSError):
        return ctypes.CDLL(str(folder / name))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder)
    except (OSError, RuntimeError):
        folder, scratch = None, tempfile.TemporaryDirectory()
    with scratch:
        library = Path(scratch.name, name)
        compile_kernels(compiler, library)
        loaded = ctypes.CDLL(str(library))  # stays when its file is gone
        if folder is not None:
            library.replace(folder / name)
        return loaded


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
