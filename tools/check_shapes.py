"""Check whether a picture shows the scene that was asked for, by geometry and colour only.

No network is needed: the background is the median of the border, shapes are regions that differ
from it, their colour is the nearest of the palette, and their kind is that of the template with the
best overlap at the same centroid and area. Pictures are [64, 64, 3], uint8 or floats in [0, 1];
positions are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from tools.shapes import PALETTE, PLACES, RADII, SHAPES, Scene, coverage

NOTICEABLE = 50.0  # RGB distance from the background; the closest pair of the palette is 117 apart
TOO_FAR = 75.0  # RGB distance from every named colour at which a colour has no name
SPECK = 12  # pixels; smaller regions are ignored (the smallest shape covers about 80)
OVERLAP = 0.7  # intersection over union below which a region is none of the shapes
SCALES = (0.94, 1.0, 1.06)  # of the radius that the area suggests: soft edges bias the area
ASPECTS = ("background", "count", "colour", "shape", "size", "place", "relation")


@dataclass(frozen=True)
class Found:
    """One region: its shape and colour (None if none is near), its size, its centre in pixels."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    overlap: float  # with the template of the shape, from 0 to 1


def name_colour(rgb: np.ndarray) -> str | None:
    """Return the nearest name of the palette for `rgb` (0 to 255); None if none is near."""
    names = tuple(PALETTE)
    distances = np.linalg.norm(np.array([PALETTE[name] for name in names]) - rgb, axis=1)
    return names[int(distances.argmin())] if distances.min() < TOO_FAR else None


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected regions of a boolean [H, W] as masks, without specks."""
    found, left = [], mask.copy()
    while left.any():
        region = np.zeros_like(left)
        region[np.unravel_index(left.argmax(), left.shape)] = True
        while True:
            wide = np.pad(region, 1)
            wide = wide[:-2] | wide[1:-1] | wide[2:]
            grown = (wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]) & left
            if grown.sum() == region.sum():
                break
            region = grown
        left &= ~region
        if region.sum() >= SPECK:
            found.append(region)
    return found


@cache
def _unit(shape: str) -> tuple[float, float, float]:
    """Return the area, in squared radii, and the centroid, in radii from the centre, of a shape."""
    radius, middle = 20.0, 32.0
    alpha = coverage(shape, middle, middle, radius).astype(float)
    area, x, y = _moments(alpha)
    return area / radius**2, (x - middle) / radius, (y - middle) / radius


def _moments(alpha: np.ndarray) -> tuple[float, float, float]:
    """Return the area and centroid (x, y) of a coverage; pixel centres lie at halves."""
    area = alpha.sum()
    ys, xs = np.indices(alpha.shape) + 0.5
    return float(area), float((alpha * xs).sum() / area), float((alpha * ys).sum() / area)


def _fit(region: np.ndarray, picture: np.ndarray, ground: np.ndarray) -> Found:
    """Name one region of `picture` (floats, 0 to 255) on the background colour `ground`."""
    contrast = np.linalg.norm(picture - ground, axis=-1)  # [H, W]
    core = region & (contrast >= np.median(contrast[region]))  # away from the soft edge
    colour = np.median(picture[core], axis=0)
    towards = colour - ground
    alpha = ((picture - ground) @ towards / (towards @ towards)).clip(0, 1)
    alpha = np.where(region | _rim(region), alpha, 0)  # [H, W]
    area, x, y = _moments(alpha)
    best = Found(None, name_colour(colour), "small", x, y, 0.0)
    for shape in SHAPES:
        unit, offset_x, offset_y = _unit(shape)
        for scale in SCALES:
            radius = scale * np.sqrt(area / unit)
            centre = x - offset_x * radius, y - offset_y * radius
            template = coverage(shape, *centre, radius)
            overlap = np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum()
            if overlap > best.overlap:
                size = min(RADII, key=lambda name: abs(RADII[name] - radius))
                named = shape if overlap >= OVERLAP else None
                best = Found(named, best.colour, size, *centre, float(overlap))
    return best


def _rim(region: np.ndarray) -> np.ndarray:
    """Return the pixels that touch `region`, which contain its faint edge."""
    wide = np.pad(region, 1)
    wide = wide[:-2] | wide[1:-1] | wide[2:]
    return (wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]) & ~region


def look(picture: np.ndarray) -> tuple[str | None, list[Found]]:
    """Return what a picture shows: the name of its background, and its regions, largest first."""
    pixels = picture.astype(float) * (255.0 if picture.dtype.kind == "f" else 1.0)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    sides = np.concatenate([pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    ground = np.median(np.concatenate([border, sides]), axis=0)
    mask = np.linalg.norm(pixels - ground, axis=-1) > NOTICEABLE
    parts = sorted(regions(mask), key=lambda part: -part.sum())
    # With more than four regions the picture is wrong in any case.
    return name_colour(ground), [_fit(part, pixels, ground) for part in parts[:4]]


def _relation(first: Found, second: Found) -> str:
    """Return where `first` lies as seen from `second`, along the axis of the larger distance."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _place(found: Found) -> str:
    """Return the place nearest to a single shape."""
    return min(PLACES, key=lambda p: np.hypot(found.x - PLACES[p][0], found.y - PLACES[p][1]))


def judge(picture: np.ndarray, asked: Scene) -> dict[str, bool]:
    """Return which of `ASPECTS` of `asked` a picture shows; see `compare`."""
    return compare(*look(picture), asked)


def compare(ground: str | None, found: list[Found], asked: Scene) -> dict[str, bool]:
    """Return which of `ASPECTS` of `asked` a picture shows; what `asked` leaves open is right.

    Regions are matched with items such that most aspects are right, so that a swapped relation
    counts against the relation and not against the colours.

    Args:
        ground, found: what `look` returns for the picture.
    """
    verdict = dict.fromkeys(ASPECTS, False)
    verdict["background"] = asked.background in (None, ground)
    verdict["count"] = len(found) == len(asked.items)
    best: dict[str, bool] = {}
    for order in permutations(found, len(asked.items)):
        pairs = list(zip(asked.items, order, strict=True))
        trial = {
            "colour": all(f.colour and item.colour in (None, f.colour) for item, f in pairs),
            "shape": all(f.shape and item.shape in (None, f.shape) for item, f in pairs),
            "size": all(item.size in (None, f.size) for item, f in pairs),
            "place": asked.place is None or _place(order[0]) == asked.place,
            "relation": asked.relation is None
            or (len(order) == 2 and _relation(*order) == asked.relation),
        }
        if sum(trial.values()) > sum(best.values()):
            best = trial
    return verdict | best


def accepts(picture: np.ndarray, asked: Scene) -> bool:
    """Return whether the picture shows all that `asked` says, and nothing more."""
    return all(judge(picture, asked).values())
