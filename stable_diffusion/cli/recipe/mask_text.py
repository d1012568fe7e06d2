"""How AUTOMATIC1111's web UI names the options about masks in its text."""

from collections.abc import Callable
from typing import Any

from .recipe import Recipe

AREA, PADDING = "Inpaint area", "Masked area padding"
CROPPED, WHOLE = "Only masked", "Whole picture"  # areas
USUAL_PADDING = 32  # pixels
MODES = {"Inpaint not masked": True, "Inpaint masked": False}  # whether the mask is inverted


def describe_mask(recipe: Recipe) -> dict[str, Any]:
    """Return the pairs of the text about the mask of a recipe; None is left out."""
    is_cropped = recipe.mask_crop is not None
    return {
        "Mask mode": "Inpaint not masked" if recipe.invert_mask else None,
        "Mask blur": recipe.mask_blur,
        AREA: CROPPED if is_cropped else None,
        PADDING: recipe.mask_crop,
    }


def complete_area(pairs: dict[str, str]) -> dict[str, str]:
    """Return the pairs of a text with the padding if it is left out, and without one of no use."""
    if pairs.get(AREA) == CROPPED:
        return {PADDING: str(USUAL_PADDING), **pairs}
    if pairs.get(AREA) == WHOLE:
        return {key: value for key, value in pairs.items() if key != PADDING}
    return pairs


def _read_mode(text: str) -> dict[str, bool]:
    return {"invert_mask": True} if MODES[text] else {}


def _read_area(text: str) -> dict[str, Any]:
    if text not in (CROPPED, WHOLE):
        raise ValueError(f"unknown area {text}")
    return {}  # the padding says how much is drawn


# By key: returns the options for a value, or raises ValueError or KeyError if it means none.
MASK_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Mask mode": _read_mode,
    "Mask blur": lambda text: {"mask_blur": int(text)},
    AREA: _read_area,
    PADDING: lambda text: {"mask_crop": int(text)},
}
