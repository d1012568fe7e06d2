"""Standard streams that cannot be written to do not stop the work."""

import errno
import io
import os
import subprocess
import sys

import pytest
from ours import ROOT
from PIL import Image

from stable_diffusion.cli.terminal.console import (
    MAX_SHOWN,
    SafeStream,
    one_line,
    run_with_safe_streams,
)


class Broken(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, number: int):
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))


def make_stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True)


@pytest.mark.parametrize(
    ("encoding", "errors", "written"),
    [
        ("utf-8", "strict", "é新\\udcff".encode()),
        ("utf-8", "surrogateescape", "é新".encode() + b"\xff"),
        ("ascii", "strict", b"\\xe9\\u65b0\\udcff"),
        ("ascii", "surrogateescape", b"\\xe9\\u65b0\\udcff"),
        ("latin-1", "replace", "é??".encode("latin-1")),
    ],
)
def test_characters_that_an_encoding_lacks(encoding, errors, written):
    stream = make_stream(encoding, errors)
    SafeStream(stream).write("é新\udcff")
    assert stream.buffer.getvalue() == written


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EPIPE, 0), (errno.ENOSPC, 1), (errno.EIO, 1)]
)
def test_the_work_goes_on(monkeypatch, number, status):
    """It is not an error if the reader has left; a full disk is reported at the end."""
    errors, done = io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", Broken(number))
    monkeypatch.setattr(sys, "stderr", errors)

    def work() -> int:
        for i in range(3):
            print("a line")
            done.append(i)
        return 0

    assert run_with_safe_streams(work) == status
    assert done == [0, 1, 2]
    reason = os.strerror(number)
    assert errors.getvalue() == (f"error: standard output: {reason}\n" if status else "")


def test_the_status_of_the_work_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    assert run_with_safe_streams(lambda: print("a") or 2) == 2
    with pytest.raises(SystemExit) as end:
        run_with_safe_streams(lambda: sys.exit(2))
    assert end.value.code == 2
    assert run_with_safe_streams(lambda: print("usage") or sys.exit(0)) == 1


def test_closed_streams(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def work() -> int:
        print("a")
        print("b", file=sys.stderr)
        return len(sys.stdin.read())

    assert run_with_safe_streams(work) == 0


def test_one_line():
    assert one_line("a\nb\tc\x1b[31m\r\x85\u2028é\udcff") == (
        "a\\nb\\tc\\x1b[31m\\r\\x85\\u2028é\udcff"
    )
    assert one_line(ValueError("a\nb")) == "a\\nb"
    assert one_line("a\u202eb\u2066c\u061c\ufeff") == r"a\u202eb\u2066c\u061c\ufeff"
    long = one_line("start " + "x" * 10**6 + " end")
    assert len(long) < MAX_SHOWN + 10 and long.startswith("start x") and long.endswith("x end")


def test_a_name_of_any_bytes_and_nobody_listening(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\n.png"
    options = ["--model=tiny", "--steps=1", b"--output=" + name]
    program = [sys.executable, "txt2image.py", *options, "a"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(program, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    with open(name, "rb") as file:
        assert Image.open(file).width > 64
