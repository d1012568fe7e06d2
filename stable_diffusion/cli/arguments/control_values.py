"""The values of the options for control pictures.

The functions raise `argparse.ArgumentTypeError` if the text is not such a value.
"""

import argparse
import os
import re
from typing import NamedTuple

from ...control import UNION_ALIASES, UNION_TYPES, find_union_type
from ...utils.wording import abbreviate, did_you_mean
from . import value_types
from .value_types import make_number_parser, parse_model_name

MAX_SCALE = 10  # above about 2 pictures are unusable
MAX_THRESHOLD = 10_000  # of gradients, which are at most a few thousand
CANNY = (100, 200)  # thresholds that are usual for 8 bits
THRESHOLDS = re.compile(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*")

parse_scale = make_number_parser(float, 0, MAX_SCALE)
parse_threshold = make_number_parser(int, 0, MAX_THRESHOLD)


class ControlChoice(NamedTuple):
    """A value of `--control`.

    Attributes:
        model: the name of the network.
        type: what the picture shows, for a union of ControlNets.
        file: the control picture.
        scale: how much it steers.
    """

    model: str
    type: str | None
    file: str
    scale: float


def parse_control(text: str) -> ControlChoice:
    """Return the parts of `MODEL[@TYPE]=IMAGE[:SCALE]`.

    If there are several `=`, the picture begins after the first one that a file follows.
    """
    splits = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == "="]
    splits = [(model, image) for model, image in splits if model.strip() and image.strip()]
    if not splits:
        raise argparse.ArgumentTypeError(
            f"must be MODEL=IMAGE or MODEL=IMAGE:SCALE, such as canny=edges.png:0.8, got "
            f"{abbreviate(text)!r}"
        )
    found = [split for split in splits if _exists(_split_scale(split[1])[0])]
    model, image = (found or splits)[0]
    file, scale = _split_scale(image)
    model = model if _exists(model) else model.strip()
    return ControlChoice(*_split_type(model), file, parse_scale(scale))


def _split_scale(text: str) -> tuple[str, str]:
    """Return the file and the scale, "1" if there is none, of `IMAGE[:SCALE]`.

    A word after the last colon that is no number belongs to the name, unless the rest is a file.
    """
    file, colon, scale = text.rpartition(":")
    if not colon or not file or _exists(text):
        return text, "1"
    try:
        float(scale)
    except ValueError:
        return (file, scale) if _exists(file) else (text, "1")
    return file, scale


def _split_type(text: str) -> tuple[str, str | None]:
    """Return the model and the type, None if there is none, of `MODEL[@TYPE]`.

    What follows the `@` in the name of a repository may also be a revision.
    """
    model, at, name = text.rpartition("@")
    if not at or not model or _exists(text):
        return parse_model_name(text), None
    if find_union_type(name) is None:
        if "/" in model and not _exists(model):
            return parse_model_name(text), None
        known = ", ".join(UNION_TYPES)
        suggestion = did_you_mean(name, (*UNION_TYPES, *UNION_ALIASES))
        raise argparse.ArgumentTypeError(
            f"after @ must be what the picture shows, one of {known}, got {abbreviate(name)!r}"
            f"{suggestion}"
        )
    return parse_model_name(model), name


def _exists(path: str) -> bool:
    """Return whether there is such a file or folder; `~` stands for the home folder."""
    return os.path.exists(os.path.expanduser(path))


def parse_range(text: str) -> tuple[float, float]:
    """Return the two parts of `START-END`."""
    return value_types.parse_range(text, "0-0.5 for the first half of the steps")


def parse_canny(text: str) -> tuple[int, int]:
    """Return the thresholds of `LOW,HIGH`; the usual ones if there are none."""
    if not text:
        return CANNY
    match = THRESHOLDS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be LOW,HIGH, such as {CANNY[0]},{CANNY[1]}, got {abbreviate(text)!r}"
        )
    low, high = (parse_threshold(part) for part in match.groups())
    if low >= high:
        raise argparse.ArgumentTypeError(f"the first must be the lower one, got {text!r}")
    return low, high


def names_thresholds(word: str) -> bool:
    """Return whether a word is `LOW,HIGH`, not a prompt."""
    return THRESHOLDS.fullmatch(word) is not None
