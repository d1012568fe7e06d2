"""Control pictures in recipes: as the options take them, and in the words of the web UI."""

import os
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from ...control import find_union_type
from ..settings import ControlPicture
from .recipe import Recipe

FULL_RANGE = "0-1"
CANNY = "canny"
COMMIT = re.compile(r"@[0-9a-f]{40}")  # of a model on the Hub


def name_control(control: ControlPicture, model: str, file: str) -> str:
    """Return the text of `--control` for a control picture.

    Args:
        model, file: what to call its model and its file.
    """
    kind = "" if control.type is None else f"@{control.type}"
    return f"{model}{kind}={file}:{_format(control.scale)}"


def name_ranges(controls: Sequence[ControlPicture]) -> tuple[str, ...]:
    """Return the texts of `--control-range`: none for all steps, one if all are the same."""
    ranges = tuple(f"{_format(each.start)}-{_format(each.end)}" for each in controls)
    if set(ranges) <= {FULL_RANGE}:
        return ()
    return ranges[:1] if len(set(ranges)) == 1 else ranges


def name_thresholds(controls: Sequence[ControlPicture]) -> str | None:
    """Return the text of `--control-canny`; None if no edges are drawn."""
    found = (each.canny for each in controls if each.canny is not None)
    thresholds = next(found, None)
    return None if thresholds is None else ",".join(map(str, thresholds))


def names_canny(model: str, kind: str | None) -> bool:
    """Return whether the name of a control model, or the type of its picture, says Canny's edges.

    With several control pictures `--control-canny` draws the edges of these.
    """
    in_name = CANNY in os.path.basename(model).lower()
    return in_name or (kind is not None and find_union_type(kind) == find_union_type(CANNY))


def describe_controls(recipe: Recipe) -> dict[str, str]:
    """Return the parts of the web UI's text about control pictures, by their keys."""
    ranges = recipe.control_range or (FULL_RANGE,)
    if len(ranges) != len(recipe.control):
        ranges = ranges[:1] * len(recipe.control)
    described = {}
    for i, (text, steps) in enumerate(zip(recipe.control, ranges, strict=True)):
        model, _, picture = text.partition("=")
        model = COMMIT.sub("", model.replace("\\", "/"))
        start, _, end = steps.partition("-")
        name, _, kind = model.rpartition("@")
        is_drawn = recipe.control_canny is not None and (
            len(recipe.control) == 1 or names_canny(name or model, kind)
        )
        details = {
            "Module": CANNY if is_drawn else "none",
            "Model": PurePath(model).name.removesuffix(".safetensors"),
            "Weight": picture.rpartition(":")[2],
            "Resize Mode": "Just Resize",
            "Guidance Start": start,
            "Guidance End": end,
            "Control Mode": "Balanced",
        }
        described[f"ControlNet {i}"] = ", ".join(f"{key}: {each}" for key, each in details.items())
    return described


def _format(number: float) -> str:
    """Return a number in digits, without an exponent or a fraction of 0."""
    return np.format_float_positional(number, trim="-")
