"""Draw scenes with shapes at any place and of any size, and the outlines of their shapes.

`shapes.py` draws the places and sizes that prompts name. Here they are random, so that a picture
can only be right if the outline says where its shapes are. Outlines are [64, 64] booleans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tools.shapes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    RELATIONS,
    SHAPES,
    SIZE,
    Item,
    Scene,
    _pick,
    coverage,
    held_out,
    paint,
)

SMALLEST, LARGEST = 9.5, 15.0  # radii in pixels; the sizes that prompts name are 10 and 13.5
GAP = 3.0  # pixels that stay free between two shapes and at the border
HALF = 0.5  # share of a pixel that a shape covers at its outline


@dataclass(frozen=True)
class Spot:
    """Where a shape is: its centre and its radius, in pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Layout:
    """A complete scene, and the spot of each of its items."""

    scene: Scene
    spots: tuple[Spot, ...]

    def render(self) -> np.ndarray:
        """Draw the scene: [64, 64, 3] uint8."""
        spots = [(spot.x, spot.y, spot.radius) for spot in self.spots]
        return paint(self.scene, spots)

    def silhouettes(self) -> list[np.ndarray]:
        """Return the pixels of each shape, as booleans [64, 64]."""
        return [
            coverage(item.shape, spot.x, spot.y, spot.radius) > HALF
            for item, spot in zip(self.scene.items, self.spots, strict=True)
        ]

    def outline(self, inner: bool = True, outer: bool = False) -> np.ndarray:
        """Return the outline of all shapes, as booleans [64, 64].

        Args:
            inner: take the outermost pixels of a shape.
            outer: take the pixels that touch it from outside.
        """
        lines = np.zeros((SIZE, SIZE), bool)
        for shape in self.silhouettes():
            if inner:
                lines |= shape & ~_shrink(shape)
            if outer:
                lines |= ~_shrink(~shape) & ~shape
        return lines


def _shrink(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose four neighbours all lie in `mask`."""
    wide = np.pad(mask, 1, mode="edge")
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _spots(count: int, rng: np.random.Generator) -> tuple[Spot, ...]:
    """Return random spots that neither touch one another nor the border."""
    while True:
        spots = []
        for _ in range(count):
            radius = rng.uniform(SMALLEST, LARGEST)
            x, y = rng.uniform(1.1 * radius + GAP, SIZE - 1.1 * radius - GAP, 2)
            spots.append(Spot(x, y, radius))
        if count == 1:
            return tuple(spots)
        first, second = spots
        distance = np.hypot(first.x - second.x, first.y - second.y)
        if distance > 1.1 * (first.radius + second.radius) + GAP:
            return tuple(spots)


def relation_of(first: Spot, second: Spot) -> str:
    """Return where `first` lies as seen from `second`, along the axis of the larger distance."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def sample_layout(rng: np.random.Generator, pair: float = 0.6) -> Layout:
    """Return a random layout; of two items with probability `pair`."""
    spots = _spots(2 if rng.random() < pair else 1, rng)
    background = _pick(rng, BACKGROUNDS)
    colours = [colour for colour in COLOURS if colour != background]
    items = tuple(
        Item(
            _pick(rng, SHAPES),
            _pick(rng, colours),
            min(RADII, key=lambda name: abs(RADII[name] - spot.radius)),
        )
        for spot in spots
    )
    relation = relation_of(*spots) if len(spots) == 2 else None
    assert relation is None or relation in RELATIONS
    return Layout(Scene(items, background, relation), spots)


def layouts(rng: np.random.Generator, unseen: bool, pair: float = 0.6) -> Iterator[Layout]:
    """Yield endless layouts: those that training never shows if `unseen`, else only the others."""
    while True:
        layout = sample_layout(rng, pair)
        if held_out(layout.scene) == unseen:
            yield layout
