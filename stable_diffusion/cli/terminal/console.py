"""Write lines on standard output and standard error, and never fail because of them.

The reader of a pipe may be gone (`| head -0`), a stream may be closed (`>&-`), the disk of a log
may be full, and an encoding may lack a character. None of this may stop the work: what cannot be
written is left out.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tqdm import tqdm

from ...utils.wording import escape_controls

SUCCEEDED, FAILED, WRONG_USAGE = 0, 1, 2  # exit statuses
MAX_SHOWN = 2000  # characters of a line


def say(text: str) -> None:
    """Write a line on standard output, above the progress bar if there is one."""
    tqdm.write(one_line(text), file=sys.stdout)


def warn(text: str) -> None:
    """Write a line on standard error, above the progress bar if there is one."""
    tqdm.write(one_line(text), file=sys.stderr)


def one_line(text: object) -> str:
    """Return a text on one line, with control characters escaped and a long middle left out."""
    line = escape_controls(str(text))
    if len(line) <= MAX_SHOWN:
        return line
    return f"{line[: MAX_SHOWN // 2]} … {line[-MAX_SHOWN // 2 :]}"


class SafeStream:
    """A text stream that never raises an OSError or UnicodeError.

    Attributes:
        error: the first reason why something could not be written. None if the reader of a pipe
            has left, which is not an error.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, with escapes for the characters that the encoding lacks."""
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding, self._stream.errors or "strict")
        except UnicodeEncodeError:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write everything that is still in the buffer."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Do some work; if that fails, discard everything that is written from then on."""
        try:
            work()
        except OSError as error:
            if self.error is None and error.errno != errno.EPIPE:
                self.error = error
            with suppress(OSError):  # so that flushing the buffer at Python's exit cannot fail
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def run_with_safe_streams(work: Callable[[], int]) -> int:
    """Do the work of a program with standard streams that never fail, and return its exit status.

    The status is not 0 if standard output could not be written, unless its reader has left.
    """
    _replace_closed_streams()
    out, err = SafeStream(sys.stdout), SafeStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = work()
        except SystemExit as end:  # argparse raises it
            out.flush()
            if end.code or out.error is None:
                raise
            status = SUCCEEDED
        out.flush()
        err.flush()
        if status == SUCCEEDED and out.error is not None:
            status = FAILED
            print(f"error: standard output: {out.error.strerror}", file=err)
    return status


def _replace_closed_streams() -> None:
    """Open the null device for closed streams, so that no other file gets their descriptors."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
