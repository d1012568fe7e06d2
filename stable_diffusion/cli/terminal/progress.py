"""Show how far a run is and how long the rest takes, and sum up its figures at the end.

On a terminal there is one bar for all pictures, and one for each network that takes long to read.
In a file or pipe there are lines instead: one every half minute, and one when all pictures are
decoded.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce
from tqdm import tqdm

from ...denoising import Denoising, EvaluatedStep
from ...device.memory import read_peak_memory, release_freed
from ...model_io.weights import read_weights
from ...utils.wording import format_bytes
from .console import say, warn

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
SMOOTHING = 0.1  # of the speed, for the time left: only the first step compiles
DECODING_WORK = 1  # steps; at SD 2.1's size on a CPU a picture decodes in 12 s, a step takes 8 s
# Steps: a network of 23 blocks takes as long for a picture as five steps of SD 1.5 with guidance.
ENLARGING_WORK = 5
DELAY = 2  # seconds: shorter work shows no bar
INTERVAL = 30  # seconds between lines


class BatchWork(NamedTuple):
    """A batch to make: how many pictures, and how many steps each takes.

    A step at a larger size counts as several.
    """

    pictures: int
    steps: int
    is_enlarged: bool = False  # when it is finished

    @property
    def whole(self) -> int:
        """Return the work that all its pictures are, in steps."""
        finishing = DECODING_WORK + (ENLARGING_WORK if self.is_enlarged else 0)
        return self.pictures * (self.steps + finishing)


class Progress:
    """The bars and lines on standard error, and the figures of a run.

    Args:
        verbose: whether to print the peak memory of each phase, and the forecast of it.

    Attributes:
        forecast: the expected peak of the memory of the process, in bytes; None if unknown.
    """

    forecast: int | None = None

    def __init__(self, verbose: bool = False):
        self._verbose = verbose
        self._has_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._run_start = self._work_start = self._last_line = _now()  # seconds
        self._peak = 0  # bytes
        self._steps, self._seconds = 0, 0.0  # of denoising; a step of two pictures counts as two
        self._work = 0  # in steps; see `BatchWork`
        self._work_done = 0.0
        self._n_pictures = self._n_decoded = 0
        self._bar = tqdm(disable=True)  # shows nothing
        self._is_one_batch = True
        self._batch_name = ""  # begins each line of the current batch

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure the peak memory of the phase inside the block, and print it if verbose."""
        mx.reset_peak_memory()
        yield
        release_freed()
        self._peak = max(self._peak, mx.get_peak_memory())
        if self._verbose:
            say(f"Peak memory, {phase}: {mx.get_peak_memory() / 1e9:.3f} GB")

    def read_network(self, name: str, network: nn.Module) -> None:
        """Read the weights of a network; those that are in memory already take no time."""
        size = tree_reduce(lambda n, value: n + value.nbytes, network.parameters(), 0)
        start = _now()
        with tqdm(
            total=size,
            desc=f"Reading the {name}",
            unit="B",
            unit_scale=True,
            delay=DELAY,
            leave=False,
            disable=not self._has_terminal,
        ) as bar:
            read_weights(network, bar.update)
        if not self._has_terminal and _now() - start > DELAY:
            warn(f"Read the {name}: {format_bytes(size)} in {_now() - start:.1f} s")

    @contextmanager
    def show_batches(self, batches: Sequence[BatchWork]) -> Iterator[None]:
        """Show one bar, or lines, for all batches, which are made inside the block.

        Args:
            batches: those that this process makes, in order.
        """
        self._n_pictures = sum(batch.pictures for batch in batches)
        self._work = sum(batch.whole for batch in batches)
        self._is_one_batch = len(batches) == 1
        self._work_start = _now()
        with tqdm(
            total=self._work,
            bar_format=BAR,
            smoothing=SMOOTHING,
            dynamic_ncols=True,
            disable=not self._has_terminal,
        ) as self._bar:
            yield
        if not self._has_terminal and 0 < self._n_decoded == self._n_pictures:
            took = tqdm.format_interval(_now() - self._work_start)
            warn(f"Decoded {self._n_decoded}/{self._n_pictures}: 100% in {took}")

    def run_steps(
        self, latents: Denoising, n_pictures: int, *, first: int = 0, work: int | None = None
    ) -> Iterator[EvaluatedStep]:
        """Evaluate the steps of a batch, or of a part of it, and yield each of them.

        If the generator is closed before its end, none of its steps counts as done.

        Args:
            first: how many pictures of the batch are before these.
            work: of a step in the second pass, in steps of the first; None in the first pass.
        """
        done = self._n_decoded + first
        number = f"{done + 1}" if n_pictures == 1 else f"{done + 1}-{done + n_pictures}"
        is_all = self._is_one_batch and (work is None or n_pictures == self._n_pictures)
        self._batch_name = "" if is_all else f"Pictures {number} of {self._n_pictures}, "
        if work is not None:
            self._batch_name += "second pass, "
        self._show(f"{self._batch_name}step 0/{len(latents)}", 0)
        start, done_before = _now(), self._work_done
        try:
            for i, step in enumerate(latents.evaluate(), 1):
                self._seconds += _now() - start
                self._steps += n_pictures
                step_work = n_pictures * (1 if work is None else work)
                self._show(f"{self._batch_name}step {i}/{len(latents)}", step_work)
                yield step
                start = _now()
        except GeneratorExit:
            self._bar.update(done_before - self._work_done)
            self._work_done = done_before
            raise
        self._show(f"{self._batch_name}decoding", 0)

    def count_enlarged(self, part: float) -> None:
        """Count a part of a picture as enlarged by an upscaler; its parts together are 1."""
        text = f"enlarging {self._n_decoded + 1}/{self._n_pictures}"
        self._show(text, part * ENLARGING_WORK)

    def count_decoded(self) -> None:
        """Count one more picture as decoded."""
        self._n_decoded += 1
        self._show(f"decoded {self._n_decoded}/{self._n_pictures}", DECODING_WORK)

    def summarize(self, n_pictures: int) -> str:
        """Return the figures of a run that made `n_pictures` pictures, on one line.

        The seconds include those of loading the model; the speed is that of denoising alone.
        """
        seconds = _now() - self._run_start
        return (
            f"{n_pictures} picture{'s' * (n_pictures != 1)} in {seconds:.1f} s: "
            f"{seconds / n_pictures:.1f} s a picture, {self._format_speed()}, peak memory "
            f"{format_bytes(self._peak)} (of the process "
            f"{format_bytes(read_peak_memory())}{self._format_forecast()})"
        )

    def _format_forecast(self) -> str:
        """Return the forecast of the memory, as a part of a line, if verbose."""
        if self.forecast is None or not self._verbose:
            return ""
        return f", forecast {format_bytes(self.forecast)}"

    def _format_speed(self) -> str:
        if not self._steps:
            return "no steps"
        speed = self._steps / self._seconds
        return f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s a step"

    def _show(self, text: str, work: float) -> None:
        """Show a text on the bar or in a line, and count the work that was done for it."""
        self._work_done += work
        text = text[0].upper() + text[1:]
        if self._has_terminal:
            self._bar.set_description_str(text, refresh=not work)
            if self._steps:
                self._bar.set_postfix_str(self._format_speed(), refresh=False)
            self._bar.update(work)
        elif work and self._work_done < self._work and _now() - self._last_line > INTERVAL:
            self._last_line = _now()
            done = self._work_done
            seconds = (_now() - self._work_start) * (self._work - done) / done
            left = tqdm.format_interval(max(round(seconds), 1))  # never 0, as there is work left
            warn(f"{text}: {int(100 * done / self._work)}%, {left} left")


class ByteBars:
    """A bar on standard error for each component of a model: how many of its bytes are written."""

    def __init__(self) -> None:
        self._component = ""
        self._bar = tqdm(disable=True)  # shows nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, component: str, written: int, total: int) -> None:
        """Show how many of the component's bytes are written."""
        if component != self._component:
            self._bar.close()
            self._component = component
            self._bar = tqdm(total=total, desc=component, unit="B", unit_scale=True)
        self._bar.update(written - self._bar.n)


def _now() -> float:
    """Return the time in seconds since some moment."""
    return time.perf_counter()
