"""Score inpainting and outpainting with `tiny` on scenes that were held out of training.

Inpainting: a drawn picture of two shapes, one of which the mask covers, and a prompt that asks for
another shape of another colour there. Outpainting: a drawn picture of one shape that is made
larger at one side, and a prompt that describes it; the new area should be background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tools.check_shapes import NOTICEABLE, judge, regions
from tools.outlines import layouts
from tools.shapes import (
    COLOURS,
    PALETTE,
    PLACE_OF,
    SHAPES,
    SIZE,
    Scene,
    _pick,
    complete,
    held_out,
    render,
    sample,
)
from tools.wording import caption

# Prompts, pictures [B, H, W, 3] and masks [B, H, W], all floats in [0, 1], to pictures like them.
Draw = Callable[[list[str], np.ndarray, np.ndarray], np.ndarray]
HALVES = {  # the side of the picture that holds the first item, as rows and columns
    "left": (slice(None), slice(None, SIZE // 2)),
    "right": (slice(None), slice(SIZE // 2, None)),
    "top": (slice(None, SIZE // 2), slice(None)),
    "bottom": (slice(SIZE // 2, None), slice(None)),
}
MARGIN = 3  # pixels around a shape that its box contains, too
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SIDES = ("left", "top", "right", "bottom")  # in the order of --outpaint
MUST = ("background", "count", "colour", "shape", "relation")


@dataclass(frozen=True)
class Swap:
    """A picture [64, 64, 3] uint8, a mask [64, 64] of booleans, and the scene that is asked for."""

    picture: np.ndarray
    mask: np.ndarray
    scene: Scene
    prompt: str


def swaps(count: int, box: bool = False, seed: int = 27) -> list[Swap]:
    """Return pictures of two shapes; the scene with the first of them replaced is held out.

    Args:
        box: mask the box around the shape, not its half of the picture.
    """
    rng = np.random.default_rng([seed, box])
    chosen: list[Swap] = []
    while len(chosen) < count:
        old = complete(sample(rng, pair=1.0, bare=0.0), rng)
        first = old.items[0]
        colours = [c for c in COLOURS if c not in (first.colour, old.background)]
        new = replace(
            first,
            shape=_pick(rng, [shape for shape in SHAPES if shape != first.shape]),
            colour=_pick(rng, colours),
        )
        scene = replace(old, items=(new, old.items[1]))
        if held_out(scene):
            picture = render(old, rng)
            mask = np.zeros((SIZE, SIZE), bool)
            half = HALVES[PLACE_OF[old.relation]]
            mask[half] = True
            if box:
                mask = _box(mask & (picture != np.array(PALETTE[old.background])).any(-1))
            chosen.append(Swap(picture, mask, scene, caption(scene, rng)))
    return chosen


def _box(shape: np.ndarray) -> np.ndarray:
    """Return the box around the pixels of a shape, with a margin."""
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    box = np.zeros_like(shape)
    box[
        max(0, rows[0] - MARGIN) : rows[-1] + 1 + MARGIN,
        max(0, columns[0] - MARGIN) : columns[-1] + 1 + MARGIN,
    ] = True
    return box


def score_swaps(draw: Draw, asked: list[Swap], batch: int = 50) -> dict[str, float]:
    """Return the shares, in [0, 1], of pictures with the new shape and with the old one untouched.

    `prompt` has the background, two shapes, their colours and their relation as the prompt says;
    `kept` has every pixel outside the mask as it was.
    """
    verdicts = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        before = np.stack([swap.picture for swap in part])
        masks = np.stack([swap.mask for swap in part])
        drawn = draw(
            [swap.prompt for swap in part],
            before.astype(np.float32) / 255,
            masks.astype(np.float32),
        )
        pixels = np.round(drawn * 255).astype(np.uint8)
        for i, swap in enumerate(part):
            verdict = judge(pixels[i], swap.scene)
            verdict["kept"] = bool((pixels[i] == before[i])[~masks[i]].all())
            verdicts.append(verdict)
    scores = {key: float(np.mean([v[key] for v in verdicts])) for key in (*MUST, "kept")}
    scores["prompt"] = float(np.mean([all(v[key] for key in MUST) for v in verdicts]))
    return scores


@dataclass(frozen=True)
class Extension:
    """A picture to make larger at one side, and what it shows."""

    picture: np.ndarray  # [64, 64, 3] uint8
    side: str  # left, top, right or bottom
    pixels: int  # that are added there
    background: str
    prompt: str

    def extend(self, fill: str = "edge") -> tuple[np.ndarray, np.ndarray]:
        """Return the larger picture [H, W, 3] uint8, and its new area [H, W] as booleans.

        Args:
            fill: what the new area shows before it is drawn: "edge" repeats the outermost pixels,
                "symmetric" mirrors the picture, "grey" is the middle of the range.
        """
        left, top, right, bottom = (self.pixels * (self.side == side) for side in SIDES)
        sides = (top, bottom), (left, right)
        new = np.pad(np.zeros((SIZE, SIZE), bool), sides, constant_values=True)
        if fill == "grey":
            return np.pad(self.picture, (*sides, (0, 0)), constant_values=128), new
        return np.pad(self.picture, (*sides, (0, 0)), mode=fill), new


def extensions(count: int, pixels: int, placed: bool = True, seed: int = 37) -> list[Extension]:
    """Return pictures of one shape whose combination is held out, each with a side to extend.

    Args:
        pixels: to add at the side.
        placed: let the prompt say at which side of the larger picture the shape is, such as "on the
            left" if the new area is at the right.
    """
    rng = np.random.default_rng(seed)
    scenes = layouts(rng, unseen=True, pair=0.0)
    chosen = []
    for _ in range(count):
        layout, side = next(scenes), _pick(rng, SIDES)
        place = OPPOSITE[side] if placed else None
        ground = layout.scene.background
        prompt = caption(replace(layout.scene, place=place), rng)
        chosen.append(Extension(layout.render(), side, pixels, ground, prompt))
    return chosen


def score_extensions(
    draw: Draw, asked: list[Extension], fill: str = "edge", batch: int = 25
) -> dict[str, float]:
    """Return how well the new area continues the background, as shares in [0, 1].

    `pixels` is the share of new pixels in the background's colour, `clean` that of pictures whose
    new area shows nothing else, and `kept` has every old pixel as it was.
    """
    shares, clean, kept = [], [], []
    for upright in (False, True):  # pictures of one size
        group = [one for one in asked if (one.side in ("top", "bottom")) == upright]
        for first in range(0, len(group), batch):
            part = group[first : first + batch]
            padded = [one.extend(fill) for one in part]
            before = np.stack([picture for picture, _ in padded])
            masks = np.stack([new for _, new in padded])
            prompts = [one.prompt for one in part]
            drawn = draw(prompts, before.astype(np.float32) / 255, masks.astype(np.float32))
            after = np.round(drawn * 255).astype(np.uint8)
            for one, new, old, picture in zip(part, masks, before, after, strict=True):
                distance = np.linalg.norm(
                    picture - np.array(PALETTE[one.background], float), axis=-1
                )
                shares.append((distance <= NOTICEABLE)[new].mean())
                clean.append(not regions((distance > NOTICEABLE) & new))
                kept.append((picture == old)[~new].all())
    names = ("pixels", "clean", "kept")
    return {n: float(np.mean(v)) for n, v in zip(names, (shares, clean, kept), strict=True)}
