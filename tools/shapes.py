"""Describe scenes of one or two coloured shapes, and draw them.

A `Scene` is what a prompt asks for; a field that is None is left open. `complete` fills open
fields, `render` draws complete scenes with numpy, and `caption` (in `wording`) describes a scene in
English. Pictures are [64, 64, 3] uint8, x to the right and y downwards, in pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64  # pixels along each side of a picture
SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "cross", "ring", "crescent")
PALETTE = {
    "red": (215, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (255, 228, 30),
    "green": (25, 150, 50),
    "cyan": (70, 215, 235),
    "blue": (30, 65, 215),
    "purple": (130, 30, 165),
    "pink": (255, 140, 195),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "grey": (128, 128, 128),
}
COLOURS = tuple(name for name in PALETTE if name != "grey")
BACKGROUNDS = ("white", "black", "grey", "blue", "green", "yellow", "pink", "cyan")
RADII = {"small": 10.0, "big": 13.5}  # pixels; half the width of the box that holds a shape
SIZES = tuple(RADII)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
PLACES = {  # centre of a single shape, as (x, y) in pixels
    "left": (16.0, 32.0),
    "right": (48.0, 32.0),
    "top": (32.0, 16.0),
    "bottom": (32.0, 48.0),
    "centre": (32.0, 32.0),
}
PLACE_OF = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
JITTER = 1.5  # pixels by which centres vary in each direction, so that pictures differ
RADIUS_JITTER = 0.7  # pixels
OVERSAMPLING = 4  # sub-samples along each side of a pixel: 17 levels of grey at an edge
HELD_OUT = 10  # one of this many combinations is kept from training


@dataclass(frozen=True)
class Item:
    """One shape. None: left open."""

    shape: str | None
    colour: str | None
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two items on a background. A field that is None is left open.

    `place` is that of a single item; `relation` is how the first of two items lies to the second.
    """

    items: tuple[Item, ...]
    background: str | None
    relation: str | None = None
    place: str | None = None


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points (x, y), in units of the radius, y downwards, lie inside `shape`."""
    match shape:
        case "circle":
            return x**2 + y**2 <= 0.95**2
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.83
        case "triangle":
            return (y <= 0.78) & (abs(x) <= (y + 0.95) / 1.73)
        case "star":
            # Fold the plane into one half point: tip at angle 0, notch at 36 degrees.
            radius, angle = np.hypot(x, y), np.arctan2(x, -y)
            fold = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
            u, v = radius * np.cos(fold), radius * np.sin(fold)
            tip, notch_u, notch_v = 1.05, 0.43 * np.cos(np.pi / 5), 0.43 * np.sin(np.pi / 5)
            return (u - tip) * notch_v <= v * (notch_u - tip)
        case "diamond":
            return abs(x) / 0.85 + abs(y) / 1.05 <= 1
        case "heart":
            u, v = 1.18 * x, 0.15 - 1.18 * y  # the sextic heart curve, (u²+v²-1)³ = u²v³
            return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.95)
        case "ring":
            return abs(np.hypot(x, y) - 0.73) <= 0.22
        case "crescent":
            return (np.hypot(x, y) <= 0.97) & (np.hypot(x - 0.45, y) >= 0.78)
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Return the share of each pixel that `shape`, centred on (x, y), covers: [64, 64] float32."""
    alpha = np.zeros((SIZE, SIZE), np.float32)
    reach = 1.1 * radius + 1
    x0, x1 = max(0, int(x - reach)), min(SIZE, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(SIZE, int(y + reach) + 1)
    step = 1 / OVERSAMPLING
    xs = (np.arange(x0, x1, step, dtype=np.float32) + step / 2 - x) / radius
    ys = (np.arange(y0, y1, step, dtype=np.float32) + step / 2 - y) / radius
    hits = inside(shape, xs[None], ys[:, None])  # [4h, 4w]
    cells = hits.reshape(y1 - y0, OVERSAMPLING, x1 - x0, OVERSAMPLING)
    alpha[y0:y1, x0:x1] = cells.mean((1, 3), dtype=np.float32)  # [h, w]
    return alpha


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a complete scene, its centres and radii jittered by `rng`: [64, 64, 3] uint8."""
    if len(scene.items) == 2:
        places = [PLACE_OF[scene.relation], PLACE_OF[INVERSE[scene.relation]]]
    else:
        places = [scene.place]
    spots = []
    for item, place in zip(scene.items, places, strict=True):
        x, y = np.array(PLACES[place]) + rng.uniform(-JITTER, JITTER, 2)
        radius = RADII[item.size] + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER)
        spots.append((x, y, radius))
    return paint(scene, spots)


def paint(scene: Scene, spots: list[tuple[float, float, float]]) -> np.ndarray:
    """Draw a complete scene with each item at a spot (x, y, radius): [64, 64, 3] uint8."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = PALETTE[scene.background]
    for item, spot in zip(scene.items, spots, strict=True):
        alpha = coverage(item.shape, *spot)[..., None]  # [64, 64, 1]
        picture += alpha * (np.array(PALETTE[item.colour], np.float32) - picture)
    return np.round(picture).astype(np.uint8)


def _pick(rng: np.random.Generator, choices: tuple | list):
    """Return one of `choices`; much faster than `rng.choice` on short lists."""
    return choices[int(rng.integers(len(choices)))]


def _item(rng: np.random.Generator, background: str | None, bare: float) -> Item:
    """Return a random visible item; `bare` is the chance that its shape or colour is left open."""
    unsaid = rng.random()
    colours = tuple(colour for colour in COLOURS if colour != background)
    return Item(
        None if unsaid < bare / 2 else _pick(rng, SHAPES),
        None if bare / 2 <= unsaid < bare else _pick(rng, colours),
        _pick(rng, (None, *SIZES)),
    )


def sample(rng: np.random.Generator, pair: float = 0.75, bare: float = 0.04) -> Scene:
    """Return a random scene as a prompt may ask for it; two items with probability `pair`.

    `bare` is the chance that the background, an item's shape or its colour is left open.
    """
    background = None if rng.random() < bare else _pick(rng, BACKGROUNDS)
    if rng.random() < pair:
        items = (_item(rng, background, bare), _item(rng, background, bare))
        relation = None if rng.random() < bare else _pick(rng, RELATIONS)
        return Scene(items, background, relation)
    place = None if rng.random() < 0.4 else _pick(rng, tuple(PLACES))
    return Scene((_item(rng, background, bare),), background, place=place)


def complete(scene: Scene, rng: np.random.Generator) -> Scene:
    """Fill in what `scene` leaves open: the centre as place, anything visible for the rest."""
    said = {item.colour for item in scene.items}
    background = scene.background or _pick(rng, [b for b in BACKGROUNDS if b not in said])
    colours = tuple(colour for colour in COLOURS if colour != background)
    items = tuple(
        Item(
            item.shape or _pick(rng, SHAPES),
            item.colour or _pick(rng, colours),
            item.size or _pick(rng, SIZES),
        )
        for item in scene.items
    )
    if len(items) == 2:
        return Scene(items, background, scene.relation or _pick(rng, RELATIONS))
    return Scene(items, background, place=scene.place or "centre")


def held_out(scene: Scene) -> bool:
    """Return whether a complete scene shows a combination that is kept from training.

    A combination is the shape and colour of an item, the background, and the relation, which is the
    item's own: in "A left of B" that of B is "right of".
    """
    is_pair = len(scene.items) == 2
    relations = [scene.relation, INVERSE[scene.relation]] if is_pair else ["alone"]
    keys = (
        f"{item.shape}/{item.colour}/{scene.background}/{relation}"
        for item, relation in zip(scene.items, relations, strict=True)
    )
    return any(zlib.crc32(key.encode()) % HELD_OUT == 0 for key in keys)


def mirrored(scene: Scene) -> Scene:
    """Return the same items described from the other side: "A left of B" as "B right of A"."""
    relation = INVERSE[scene.relation] if scene.relation else None
    return replace(scene, items=scene.items[::-1], relation=relation)
