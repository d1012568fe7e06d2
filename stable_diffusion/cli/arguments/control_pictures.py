"""Read the control pictures of a command line."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...images.arrays import MAX_PIXELS, Fit
from ...images.edges import require_edges
from ...images.reading import read_picture
from ...utils.size import Size
from ..recipe.control_text import names_canny
from ..settings import ControlPicture
from .control_values import ControlChoice


def read_controls(values: Mapping[str, Any]) -> tuple[ControlPicture, ...]:
    """Return the control pictures of the values of the options, in the order of the command line.

    Raises:
        ValueError: if a file is not a picture, or the options do not suit each other, or the
            package that draws edges is missing.
        OSError: if a file cannot be read.
    """
    choices: Sequence[ControlChoice] = values["control"]
    ranges = _expand_ranges(values["control_range"], len(choices))
    has_edges = _choose_edges(choices, values["control_canny"] is not None)
    controls = []
    for choice, (start, end), is_drawn in zip(choices, ranges, has_edges, strict=True):
        file = choice.file if os.path.lexists(choice.file) else os.path.expanduser(choice.file)
        pixels, _ = read_picture(file, _limit_size)
        controls.append(
            ControlPicture(
                model=choice.model,
                type=choice.type,
                file=file,
                pixels=(pixels + 1) / 2,
                scale=choice.scale,
                start=start,
                end=end,
                canny=values["control_canny"] if is_drawn else None,
            )
        )
    return tuple(controls)


def _expand_ranges(
    ranges: Sequence[tuple[float, float]], n_controls: int
) -> Sequence[tuple[float, float]]:
    """Return a range for each control picture.

    Raises:
        ValueError: if there are neither one nor as many ranges.
    """
    if ranges and not n_controls:
        raise ValueError("--control-range needs --control, which it is about")
    if len(ranges) <= 1:
        return [*(ranges or [(0.0, 1.0)])] * n_controls
    if len(ranges) != n_controls:
        raise ValueError(
            f"--control-range is given {len(ranges)} times and --control {n_controls}: give it "
            "once for all, or once for each"
        )
    return ranges


def _choose_edges(choices: Sequence[ControlChoice], wants_edges: bool) -> list[bool]:
    """Return for each control picture whether to draw its edges.

    Raises:
        ValueError: if it is unclear for which, or the package that draws them is missing.
    """
    if not wants_edges:
        return [False] * len(choices)
    if not choices:
        raise ValueError("--control-canny needs --control, which it is about")
    require_edges()
    if len(choices) == 1:
        return [True]
    has_edges = [names_canny(each.model, each.type) for each in choices]
    if not any(has_edges):
        raise ValueError(
            "--control-canny with several --control is for those whose MODEL or TYPE has canny in "
            "its name, and none has"
        )
    return has_edges


def _limit_size(size: Size) -> Fit:
    """Return how to reduce a picture that has more pixels than any picture that is made."""
    scale = math.sqrt(MAX_PIXELS / (size.width * size.height))
    if scale >= 1:
        return Fit(size)
    return Fit(Size(max(int(size.width * scale), 1), max(int(size.height * scale), 1)))
