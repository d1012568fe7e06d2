"""Scores of a text-to-picture model on prompts whose combinations were held out of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.check_shapes import ASPECTS, judge
from tools.shapes import Scene, complete, held_out, sample
from tools.wording import caption

Draw = Callable[[list[str]], np.ndarray]  # prompts to pictures [B, 64, 64, 3], floats in [0, 1]


def prompts(items: int, count: int, seed: int = 7) -> list[tuple[str, Scene]]:
    """Return `count` prompts of one or two items that name shape, colour, background, relation.

    Every one shows a (shape, colour, background, relation) that training never showed.
    """
    rng = np.random.default_rng([seed, items])
    chosen: list[tuple[str, Scene]] = []
    while len(chosen) < count:
        asked = sample(rng, pair=float(items == 2), bare=0.0)
        if held_out(complete(asked, rng)):
            chosen.append((caption(asked, rng), asked))
    return chosen


def score(draw: Draw, asked: list[tuple[str, Scene]], batch: int = 50) -> dict[str, float]:
    """Share of pictures, in [0, 1], right in each aspect and in what matters together.

    `prompt`: one item: background, colour and shape; two: both items and their relation (with
    the background). `everything`: size and place as well.
    """
    verdicts = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        pictures = draw([text for text, _ in part])
        verdicts += [
            judge(picture, scene) for picture, (_, scene) in zip(pictures, part, strict=True)
        ]
    scores = {aspect: float(np.mean([v[aspect] for v in verdicts])) for aspect in ASPECTS}
    must = ("background", "count", "colour", "shape", "relation")
    scores["prompt"] = float(np.mean([all(v[aspect] for aspect in must) for v in verdicts]))
    scores["everything"] = float(np.mean([all(v.values()) for v in verdicts]))
    return scores


def table(scores: dict[str, dict[str, float]]) -> str:
    """Scores as lines of text, one a set of prompts, in percent."""
    lines = []
    for name, row in scores.items():
        cells = "  ".join(f"{aspect} {100 * share:.1f}" for aspect, share in row.items())
        lines.append(f"{name}: {cells}")
    return "\n".join(lines)
