"""Standard output and error that do not fail: pictures are worth more than words about them.

A reader may be gone (`| head -0`), a stream closed (`>&-`), a log's disk full, and the encoding may
lack a character. None of this stops the work; what cannot be written is left out.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tqdm import tqdm

from ...utils.wording import escape_controls

FAILED = 1  # exit status
MAX_SHOWN = 2000  # characters of a line


class Stream:
    """A text stream that never raises an OSError or UnicodeError.

    Attributes:
        error: why something was not written, if it matters: a reader who left does not.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write what the encoding has, and the names of other characters."""
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding, self._stream.errors or "strict")
        except UnicodeEncodeError:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            if self.error is None and error.errno != errno.EPIPE:
                self.error = error
            with suppress(OSError):  # nor may what is held back fail as Python ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def with_lasting_streams(work: Callable[[], int]) -> int:
    """Do the work of a program, with streams that last; returns its exit status.

    That is not 0 where words on standard output are lost, but for a reader who wanted no more.
    """
    _open_closed()
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = work()
        except SystemExit as end:  # argparse's
            out.flush()
            if end.code or out.error is None:
                raise
            status = 0
        out.flush()
        err.flush()
        if status == 0 and out.error is not None:
            status = FAILED
            print(f"error: standard output: {out.error.strerror}", file=err)
    return status


def one_line(text: object) -> str:
    """On one line, which does nothing to a terminal, and the middle left out of what is long."""
    line = escape_controls(str(text))
    if len(line) <= MAX_SHOWN:
        return line
    return f"{line[: MAX_SHOWN // 2]} … {line[-MAX_SHOWN // 2 :]}"


def _open_closed() -> None:
    """Give closed streams the null device, so that no other file gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


pass
pass


def say(text: str) -> None:
    """A line on standard output, above the bar if there is one."""
    tqdm.write(one_line(text), file=sys.stdout)


def warn(text: str) -> None:
    """A line on standard error, above the bar if there is one."""
    tqdm.write(one_line(text), file=sys.stderr)
