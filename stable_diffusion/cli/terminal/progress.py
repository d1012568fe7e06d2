"""What a run says while it works: bars with the time that is left; and its figures at the end.

On a terminal there is one bar for all pictures, and one for each network that takes long to read.
Elsewhere there are lines: one now and then, and one when all pictures are decoded.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tqdm import tqdm

from ...denoising import Denoising
from ...device.memory import read_peak_memory
from ...model_io.weights import read_weights
from ...utils import wording
from .console import say, warn

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
SMOOTHING = 0.1  # of the speed that tells the time left: the first step compiles, others do not
DECODING = 1  # steps that decoding takes as long as, about: 12 s and 8 s at SD 2.1's size on a CPU
DELAY = 2  # seconds: what takes no longer needs no bar
INTERVAL = 30  # seconds between lines


class Progress:
    """Bars on standard error, and the figures of a run.

    Args:
        verbose: whether phases report their peak memory.
    """

    def __init__(self, verbose: bool = False):
        self._verbose = verbose
        self._is_watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._start = self._begin = self._last_line = _now()  # seconds
        self._peak = 0  # bytes
        self._steps, self._seconds = 0, 0.0  # of denoising; a step of two pictures is two steps
        self._work = self._done = 0  # steps, and decoding as so many
        self._n_pictures = self._n_finished = 0
        self._bar: tqdm | None = None
        self._is_one_batch, self._batch = True, ""  # what a line begins with

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take down, and report, the memory that a phase takes."""
        mx.reset_peak_memory()
        yield
        mx.clear_cache()  # the next phase's buffers are of other sizes
        self._peak = max(self._peak, mx.get_peak_memory())
        if self._verbose:
            say(f"Peak memory, {name}: {mx.get_peak_memory() / 1e9:.3f} GB")

    def read(self, name: str, network: nn.Module) -> None:
        """Read the weights of a network; those that are there already take no time."""
        size, start = sum(value.nbytes for _, value in tree_flatten(network.parameters())), _now()
        with tqdm(
            total=size,
            desc=f"Reading the {name}",
            unit="B",
            unit_scale=True,
            delay=DELAY,
            leave=False,
            disable=not self._is_watched,
        ) as bar:
            read_weights(network, bar.update)
        if not self._is_watched and _now() - start > DELAY:
            warn(f"Read the {name}: {wording.format_bytes(size)} in {_now() - start:.1f} s")

    @contextmanager
    def of(self, batches: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Within, all the pictures are made; of each batch, how many they are and their steps.

        Of several ranks, these are the pictures of this one.
        """
        self._n_pictures = sum(pictures for pictures, _ in batches)
        self._work = sum(pictures * (steps + DECODING) for pictures, steps in batches)
        self._is_one_batch = len(batches) == 1
        self._begin = _now()
        with tqdm(
            total=self._work,
            bar_format=BAR,
            smoothing=SMOOTHING,
            dynamic_ncols=True,
            disable=not self._is_watched,
        ) as self._bar:
            yield
        if not self._is_watched and 0 < self._n_finished == self._n_pictures:
            took = tqdm.format_interval(_now() - self._begin)
            warn(f"Decoded {self._n_finished}/{self._n_pictures}: 100% in {took}")

    def steps(self, latents: Denoising, n_pictures: int) -> Iterator[mx.array]:
        """The latents of a batch, evaluated, step after step; given up, none of it is done."""
        number = f"{self._n_finished + 1}"
        if n_pictures > 1:
            number += f"-{self._n_finished + n_pictures}"
        self._batch = "" if self._is_one_batch else f"Pictures {number} of {self._n_pictures}, "
        self._show(f"{self._batch}step 0/{len(latents)}", 0)
        start, done = _now(), self._done
        try:
            for i, x_t in enumerate(latents, 1):
                mx.eval(x_t)
                self._seconds += _now() - start
                self._steps += n_pictures
                self._show(f"{self._batch}step {i}/{len(latents)}", n_pictures)
                yield x_t
                start = _now()
        except GeneratorExit:
            self._bar.update(done - self._done)
            self._done = done
            raise
        self._show(f"{self._batch}decoding", 0)

    def finished(self) -> None:
        """One more picture is decoded."""
        self._n_finished += 1
        self._show(f"decoded {self._n_finished}/{self._n_pictures}", DECODING)

    def summary(self, n_pictures: int) -> str:
        """The figures of a run that made so many pictures.

        Seconds are all that passed since the beginning, those of loading included; the speed is
        that of denoising alone.
        """
        seconds = _now() - self._start
        return (
            f"{n_pictures} picture{'s' * (n_pictures != 1)} in {seconds:.1f} s: "
            f"{seconds / n_pictures:.1f} s a picture, {self._speed()}, peak memory "
            f"{wording.format_bytes(self._peak)} (of the process "
            f"{wording.format_bytes(read_peak_memory())})"
        )

    def _speed(self) -> str:
        if not self._steps:
            return "no steps"
        speed = self._steps / self._seconds
        return f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s a step"

    def _show(self, text: str, work: int) -> None:
        """Show what is done, and count the work that was done for it."""
        self._done += work
        text = text[0].upper() + text[1:]
        if self._is_watched:
            self._bar.set_description_str(text, refresh=not work)
            if self._steps:
                self._bar.set_postfix_str(self._speed(), refresh=False)
            self._bar.update(work)
        elif work and self._done < self._work and _now() - self._last_line > INTERVAL:
            self._last_line = _now()
            seconds = (_now() - self._begin) * (self._work - self._done) / self._done
            left = tqdm.format_interval(max(round(seconds), 1))  # there is work left, so time
            warn(f"{text}: {100 * self._done // self._work}%, {left} left")


def _now() -> float:
    return time.perf_counter()
