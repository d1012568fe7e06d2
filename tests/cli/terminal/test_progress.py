"""`progress.py`: bars on a terminal, lines in a file or pipe, and the figures of a run."""

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import mlx.core as mx
import mlx.nn as nn
import pytest

import txt2image
from stable_diffusion.cli.terminal import console, progress
from stable_diffusion.cli.terminal.progress import BatchWork, ByteBars, Progress
from stable_diffusion.denoising import Denoising, StepOutput
from stable_diffusion.utils.wording import format_bytes

SECONDS = 2.0  # that a step takes


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def screens(self) -> list[str]:
        """Return all texts that the last line has shown, in order."""
        return [line.strip() for line in re.split(r"[\r\n]", self.getvalue()) if line.strip()]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Replace the clock by a number of seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress, "_now", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def make_denoising(n_steps: int, clock: list[float]) -> Denoising:
    def steps():
        for _ in range(n_steps):
            clock[0] += SECONDS
            yield StepOutput(mx.zeros(1), mx.zeros(1), None)

    return Denoising(steps, n_steps, [], seed=0)


def test_enlarging_counts(clock, capsys):
    """A picture that an upscaler enlarges is as much work as five steps more."""
    with (it := Progress()).show_batches([BatchWork(1, 4, is_enlarged=True)]):
        list(it.run_steps(make_denoising(4, clock), 1))
        for _ in range(2):
            clock[0] += 31
            it.count_enlarged(0.5)
        it.count_decoded()
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Enlarging 1/1: 65%, ") and second.startswith("Enlarging 1/1: 90%, ")
    assert last.startswith("Decoded 1/1: 100%")


def run(
    batches: list[tuple[int, int]], clock: list[float], stderr: io.TextIOBase | None = None
) -> Progress:
    """Run batches, (pictures, steps) each; decoding takes no time."""
    with (
        redirect_stderr(stderr or sys.stderr),
        (it := Progress()).show_batches([BatchWork(*batch) for batch in batches]),
    ):
        for n_pictures, n_steps in batches:
            for _ in it.run_steps(make_denoising(n_steps, clock), n_pictures):
                pass
            for _ in range(n_pictures):
                it.count_decoded()
    return it


def test_one_bar_for_all_batches(clock, terminal):
    run([(4, 9), (2, 4)], clock, terminal)
    assert any(s.startswith("Pictures 1-4 of 6, step 0/9:   0%|") for s in terminal.screens)
    assert any(s.startswith("Pictures 1-4 of 6, decoding:  72%|") for s in terminal.screens)
    assert any(s.startswith("Pictures 5-6 of 6, step 0/4:  80%|") for s in terminal.screens)
    assert terminal.screens[-1].startswith("Decoded 6/6: 100%|")
    assert "1.7 steps/s" in terminal.screens[-1]  # 4 · 9 + 2 · 4 of them in 13 times 2 s


def test_one_batch_needs_no_numbers(clock, terminal):
    run([(1, 3)], clock, terminal)
    assert any(screen.startswith("Step 0/3:   0%|") for screen in terminal.screens)
    assert "2.0 s a step" in terminal.screens[-1]


def test_the_time_left(clock, terminal, monkeypatch):
    """Four of ten steps took 8 s: six more and the decoding take 14 s, by tqdm's clock, too."""
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with redirect_stderr(terminal), (it := Progress()).show_batches([BatchWork(1, 10)]):
        steps = it.run_steps(make_denoising(10, clock), 1)
        for _ in range(4):
            next(steps)
        assert "| 00:08<00:14, 2.0 s a step" in terminal.screens[-1]


def test_steps_that_are_given_up_are_not_done(clock, terminal, monkeypatch):
    """Half precision overflows at the third of five steps; all are run again."""
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with redirect_stderr(terminal), (it := Progress()).show_batches([BatchWork(1, 5)]):
        steps = it.run_steps(make_denoising(5, clock), 1)
        for _ in range(3):
            next(steps)
        assert "Step 3/5:  50%|" in terminal.screens[-1]
        steps.close()
        for _ in it.run_steps(make_denoising(5, clock), 1):
            pass
        it.count_decoded()
    assert "Step 5/5:  83%|" in "".join(terminal.screens)
    assert terminal.screens[-1].startswith("Decoded 1/1: 100%|")


def test_a_short_run_is_one_line_where_there_is_no_terminal(clock, capsys):
    run([(4, 9), (2, 4)], clock)  # 13 steps of 2 s
    assert capsys.readouterr().err.splitlines() == ["Decoded 6/6: 100% in 00:26"]


def test_a_line_every_half_minute(clock, capsys):
    run([(1, 40)], clock)
    assert capsys.readouterr().err.splitlines() == [
        "Step 16/40: 39%, 00:50 left",  # 16 of 41 in 32 s
        "Step 32/40: 78%, 00:18 left",
        "Decoded 1/1: 100% in 01:20",
    ]


def test_lines_of_several_batches(clock, capsys):
    run([(1, 10), (2, 10), (1, 10)], clock)
    assert capsys.readouterr().err.splitlines() == [
        "Pictures 2-3 of 4, step 6/10: 52%, 00:29 left",  # 10 + 1 + 2 · 6 of 44 in 32 s
        "Decoded 4/4: 100% in 01:00",
    ]


def test_no_line_says_that_all_is_done_before_it_is(clock, capsys, monkeypatch):
    """99.9 % is not rounded up, and the last half second is not rounded down."""
    monkeypatch.setattr(progress, "INTERVAL", -1)
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.001)
    run([(1, 300), (3, 300)], clock)
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 300 + 1 + 300 + 2
    assert all(re.search(r": \d?\d%, 00:01 left", line) for line in lines)
    assert last == "Decoded 4/4: 100% in 00:00"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_stopped_run_does_not_end_at_100(clock, capsys, stop):
    with pytest.raises(stop), (it := Progress()).show_batches([BatchWork(1, 40), BatchWork(1, 40)]):
        for _ in it.run_steps(make_denoising(40, clock), 1):
            pass
        it.count_decoded()
        raise stop
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not any("100%" in line for line in lines)


def test_a_picture_that_cannot_be_written_does_not_end_at_100(clock, capsys):
    """All pictures are decoded, but the last is lost."""
    with pytest.raises(OSError), (it := Progress()).show_batches([BatchWork(1, 2)]):
        for _ in it.run_steps(make_denoising(2, clock), 1):
            pass
        it.count_decoded()
        raise OSError("disk full")
    assert capsys.readouterr().err == ""


def test_an_unfinished_run_does_not_end_at_100(clock, capsys):
    with (it := Progress()).show_batches([BatchWork(1, 2), BatchWork(1, 2)]):
        for _ in it.run_steps(make_denoising(2, clock), 1):
            pass
        it.count_decoded()
    assert capsys.readouterr().err == ""


def test_a_rank_without_pictures_says_nothing(clock, capsys):
    run([], clock)
    assert capsys.readouterr().err == ""


def test_no_last_line_beside_a_bar(clock, terminal):
    run([(1, 3)], clock, terminal)
    assert "100% in" not in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(clock, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    run([(1, 3)], clock, terminal)
    assert terminal.getvalue() == "Decoded 1/1: 100% in 00:06\n"


def test_no_colour(clock, terminal):
    """There is never any, so NO_COLOR changes nothing."""
    run([(2, 3), (1, 3)], clock, terminal)
    assert "\x1b" not in terminal.getvalue()


def test_lines_stand_above_the_bar(terminal):
    with (
        redirect_stderr(terminal),
        redirect_stdout(terminal),
        Progress().show_batches([BatchWork(1, 3)]),
    ):
        console.say("Wrote it")
    assert "Wrote it" in terminal.screens
    assert terminal.screens[-1].startswith("0%|") or terminal.screens[-1].startswith(":   0%|")


@pytest.mark.parametrize(("delay", "shown"), [(0, True), (60, False)])
def test_reading(terminal, monkeypatch, delay, shown):
    """A network that takes long has a bar in bytes, which disappears when all is read."""
    monkeypatch.setattr(progress, "DELAY", delay)
    with redirect_stderr(terminal):
        Progress().read_network("UNet", nn.Linear(1000, 500))
    assert any(s.startswith("Reading the UNet:   0%|") for s in terminal.screens) is shown
    assert any("2.00M" in screen for screen in terminal.screens) is shown


def test_reading_in_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", -1)
    Progress().read_network("UNet", nn.Linear(1000, 500))
    assert capsys.readouterr().err.startswith("Read the UNet: 2.0 MB in ")


def test_bars_of_bytes(terminal):
    """Each component has a bar, up to its last byte."""
    with redirect_stderr(terminal), ByteBars() as bars:
        for component, total in (("unet", 2_000_000), ("vae", 1_000)):
            for written in (0, total // 2, total):
                bars.show(component, written, total)
    assert any(screen.startswith("unet: 100%|") for screen in terminal.screens)
    assert "2.00M/2.00M" in terminal.getvalue()
    assert terminal.screens[-1].startswith("vae: 100%|")


def test_the_summary(clock, monkeypatch):
    monkeypatch.setattr(progress, "read_peak_memory", lambda: 4_610_000_000)
    it = run([(4, 9), (2, 4)], clock)
    with it.measure("decoding"):
        mx.eval(mx.zeros(2**20))
    peak = format_bytes(mx.get_peak_memory())
    clock[0] = 60.0
    assert it.summarize(6) == (
        f"6 pictures in 60.0 s: 10.0 s a picture, 1.7 steps/s, peak memory {peak} "
        "(of the process 4.6 GB)"
    )
    assert it.summarize(1).startswith("1 picture in")


def test_the_peak_of_the_process():
    """It is larger than an array of which every page was written."""
    size = 2**28
    array = b"x" * size
    assert size < progress.read_peak_memory() < 1e12
    del array


def test_a_script_ends_with_a_summary(tmp_path, capsys):
    output = tmp_path / "o.png"
    arguments = ["--model", "tiny", "a star", "--n_images", "2", "--steps", "3"]
    assert txt2image.main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    *_, wrote, summary = printed.out.splitlines()
    assert wrote == f"Wrote {output}"
    number, memory = r"\d+\.\d", r"\d+(\.\d)? [MG]B"
    speed = rf"({number} steps/s|{number} s a step)"
    figures = rf"2 pictures in {number} s: {number} s a picture, {speed}, peak memory {memory} "
    assert re.fullmatch(rf"{figures}\(of the process {memory}\)", summary)
    assert re.search(r"^Decoded 2/2: 100% in 00:\d\d$", printed.err, re.MULTILINE)
    assert " left" not in printed.err.splitlines()[-1]
