"""What the values of options may be: types for argparse, each with one clear message."""

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from .messages import did_you_mean, size

MOST_BYTES = 10_000_000_000  # of a LoRA or embedding, which is read whole to be known again

_N = TypeVar("_N", int, float)


def number(kind: type[_N], low: _N, high: _N) -> Callable[[str], _N]:
    """A number from `low` to `high`."""
    what = "an integer" if kind is int else "a number"

    def parse_number(text: str) -> _N:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high:  # nor is NaN
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {text}")
        return value

    return parse_number


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """One of these words."""

    def parse_word(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"invalid choice: {text!r} (choose from {', '.join(known)})"
                + did_you_mean(text, known)
            )
        return text

    return parse_word


def lora(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE:SCALE`: a file that is there, and a scale, which may be negative."""
    file, colon, scale = text.rpartition(":")
    if not colon or os.path.isfile(os.path.expanduser(text)):
        file, scale = text, "1"
    return _file(file, "LoRA"), number(float, -100, 100)(scale)


def embedding(text: str) -> tuple[str, Path]:
    """`NAME=FILE`: a name, and a file that is there."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE, got {text!r}")
    return name, _file(file, "embedding")


def _file(text: str, what: str) -> Path:
    """A file that is there, and not too large for what it is to be.

    `Path`'s own methods raise for long names, and for `~nobody`.
    """
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        raise argparse.ArgumentTypeError(f"no such {what} file: {text}")
    if (n := os.path.getsize(path)) > MOST_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text} has {size(n)}; the most for a {what} file is {size(MOST_BYTES)}"
        )
    return Path(path)
