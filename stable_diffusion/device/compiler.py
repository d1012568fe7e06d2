"""Run g++: compile C++ sources and link them to a shared library."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MAX_REASON_LENGTH = 200  # characters of a message of g++ that an error quotes
NO_SPACE = ("No space left on device", "Disk quota exceeded")


def find_compiler() -> str:
    """Return the path of g++.

    Raises:
        OSError: if there is none.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise OSError("there is no g++: install your system's g++")
    return compiler


def compile_library(
    compiler: str, sources: Sequence[Path], flags: Sequence[str], library: Path
) -> None:
    """Compile each source in a process of its own, and link them to a shared library.

    Intermediate files are written to the folder of `library`.

    Raises:
        OSError: if the compiler cannot be run, or fails.
    """
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    _run_all(
        [
            [compiler, *flags, "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects, strict=True)
        ],
        library.parent,
    )
    link = [compiler, *flags, "-shared", *map(str, objects), "-o", str(library)]
    _run_all([link], library.parent)


def _run_all(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Run commands at the same time; `folder` is for their temporary files.

    Raises:
        OSError: if one of them cannot be run, or fails.
    """
    environment = {"PATH": os.defpath, **os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    processes: list[subprocess.Popen[str]] = []
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
        raise OSError(_describe_failure(errors, codes[0], folder))


def _describe_failure(errors: str, code: int, folder: Path) -> str:
    """Return what went wrong, and what to do about it."""
    reason = _find_reason(errors, code)
    if any(words in reason for words in NO_SPACE):
        return f"g++ fails ({reason}): free some space in {folder.parent}"
    return f"g++ fails ({reason}): install your system's g++"


def _find_reason(errors: str, code: int) -> str:
    """Return the line of `errors` that says why a compiler failed."""
    lines = [" ".join(line.split()) for line in errors.splitlines() if line.strip()]
    reasons = [line for line in lines if any(words in line for words in NO_SPACE)]
    reasons = reasons or [line for line in lines if "error" in line] or lines
    if reasons:
        return reasons[0][:MAX_REASON_LENGTH]
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return "without saying why"
