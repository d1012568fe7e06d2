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
    if (folder / name).is_file():
        return ctypes.CDLL(str(folder / name))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder)
    except (OSError, RuntimeError):
        folder, scratch = None, tempfile.TemporaryDirectory()
    with scratch:
        library = Path(scratch.name, name)
        _compile(compiler, library)
        loaded = ctypes.CDLL(str(library))  # stays when its file is gone
        if folder is not None:
            library.replace(folder / name)
        return loaded


def _compile(compiler: str, library: Path) -> None:
    """Each source by a process of its own."""
    objects = {source: library.with_name(f"{source.stem}.o") for source in SOURCES.glob("*.cpp")}
    processes = [
        subprocess.Popen(
            [compiler, *FLAGS, "-c", source, "-o", target], stderr=subprocess.PIPE, text=True
        )
        for source, target in objects.items()
    ]
    errors = [process.communicate()[1] for process in processes]
    if not any(process.returncode for process in processes):
        link = [compiler, "-shared", "-pthread", *objects.values(), "-o", library]
        done = subprocess.run(link, stderr=subprocess.PIPE, text=True)
        errors.append(done.stderr)
        if done.returncode == 0:
            return
    lines = [line for line in "".join(errors).splitlines() if "rror" in line]
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
