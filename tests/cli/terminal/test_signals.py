"""Ctrl-C and SIGTERM: finished pictures are kept, and the others can be made later."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ours import ROOT
from PIL import Image

import txt2image
from stable_diffusion.cli.output.picture_writer import PictureWriter
from stable_diffusion.cli.terminal import signals

# One long operation, which Python's own handlers wait for, and a line when it has begun. The
# module is loaded alone, as it does not need MLX.
STUCK = f"""
import hashlib, importlib.util, signal, sys, threading
spec = importlib.util.spec_from_file_location("signals", {signals.__file__!r})
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
signals.PATIENCE = 0.05
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    with signals.handle_signals():
        threading.Timer(0.2, print, ["begun"], {{"flush": True}}).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
except KeyboardInterrupt as interruption:
    print("in order")
    sys.exit(signals.interrupted_status(interruption))
"""
SHORT, FOREVER = "2000000", "300000000"  # a second or so; minutes
PROMPT = "a red circle on a blue background"


@pytest.fixture(autouse=True)
def handle_ctrl_c():
    """Let Ctrl-C raise KeyboardInterrupt, also if the tests are a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("n_signals", [1, 2])
def test_the_first_ends_in_order_the_second_at_once(number, status, n_signals):
    operation = FOREVER if n_signals == 2 else SHORT
    program = [sys.executable, "-c", STUCK, operation]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout.readline() == "begun\n"
        it.send_signal(number)
        if n_signals == 2:
            assert it.stderr.readline() == "\n"
            assert "again stops at once" in it.stderr.readline()
            it.send_signal(number)
        output, _ = it.communicate(timeout=30)
    assert it.returncode == status
    assert ("in order" in output) == (n_signals == 1)


def test_everything_is_as_before_afterwards():
    handlers = [signal.getsignal(number) for number in signals.SIGNALS]
    with pytest.raises(signals.Terminated), signals.handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_while_modules_are_read():
    """There is no traceback."""
    program = [sys.executable, "-X", "importtime", "txt2image.py", "--version"]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as it:
        for line in it.stderr:
            if "numpy" in line:
                break
        it.send_signal(signal.SIGINT)
        errors = it.stderr.read()
    assert it.returncode == -signal.SIGINT and "Traceback" not in errors


def read(path: Path) -> np.ndarray:
    """Return the pixels of a file."""
    return np.asarray(Image.open(path))


def draw(output: Path, *options: str) -> int:
    """Run txt2image.py with the embedded model, and return its exit status."""
    arguments = ["--model", "tiny", "--steps", "1", "--batch-size", "2", "--output", f"{output}"]
    return txt2image.main([*arguments, *options])


def interrupt_after(n: int, number: signal.Signals, monkeypatch) -> None:
    """Send the signal when n pictures are finished."""
    n_added = 0

    def add(self, job, image, add=PictureWriter.add):
        nonlocal n_added
        add(self, job, image)
        n_added += 1
        if n_added == n:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(PictureWriter, "add", add)


def test_a_prompts_file_is_continued(tmp_path, monkeypatch, capsys):
    """Interrupted in a batch and run again, it makes the same pictures, and none twice."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("a star\na heart\na ring\na cross\n")
    whole, parts = tmp_path / "whole/", tmp_path / "parts/"
    assert draw(f"{whole}/", "--prompts-file", str(prompts)) == 0
    with monkeypatch.context() as patch:
        interrupt_after(3, signal.SIGTERM, patch)
        assert draw(f"{parts}/", "--prompts-file", str(prompts)) == 143
    kept = "error: interrupted: 3 of 4 pictures are finished, and kept"
    assert capsys.readouterr().err.splitlines()[-1] == f"{kept}: the same command makes the others"
    names = [path.name for path in sorted(parts.iterdir())]
    assert names == ["0001.png", "0002.png", "0003.png"]
    times = [path.stat().st_mtime_ns for path in sorted(parts.iterdir())]

    assert draw(f"{parts}/", "--prompts-file", str(prompts)) == 0
    files = sorted(parts.iterdir())
    assert [path.stat().st_mtime_ns for path in files[:3]] == times
    for path, other in zip(files, sorted(whole.iterdir()), strict=True):
        assert abs(read(path).astype(int) - read(other)).max() <= 1


def test_the_rest_of_the_pictures(tmp_path, monkeypatch, capsys):
    """The command that the message suggests makes the others; the grid has the finished ones."""
    assert draw(tmp_path / "whole.png", PROMPT, "--n_images", "4", "--seed", "3") == 0
    with monkeypatch.context() as patch:
        interrupt_after(3, signal.SIGINT, patch)
        assert draw(tmp_path / "o.png", PROMPT, "--n_images", "4", "--seed", "3") == 130
    line = capsys.readouterr().err.splitlines()[-1]
    rest = "--seed 6 --n_images 1"
    assert line.endswith(f"the same command with {rest} and another --output makes the others")
    assert draw(tmp_path / "rest.png", PROMPT, *rest.split()) == 0
    whole = read(tmp_path / "whole.png").astype(int)
    assert abs(read(tmp_path / "o.png") - whole[:, : 3 * 80]).max() <= 1
    assert abs(read(tmp_path / "rest.png") - whole[8:-8, 3 * 80 + 8 : -8]).max() <= 1


def test_nothing_is_finished(tmp_path, monkeypatch, capsys):
    """There is no file, and the message has the seed that was drawn."""
    monkeypatch.setattr("secrets.randbits", lambda _: 1234)
    monkeypatch.setattr(PictureWriter, "add", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert draw(tmp_path / "o.png", PROMPT, "--n_images", "1") == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(
        "no picture is finished: the same command with --seed 1234 makes these pictures"
    )
    assert not list(tmp_path.iterdir())
