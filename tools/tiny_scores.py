"""Score a text-to-picture model on prompts with combinations that were held out of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.check_shapes import ASPECTS, judge
from tools.shapes import Scene, complete, held_out, sample
from tools.wording import caption

Draw = Callable[[list[str]], np.ndarray]  # prompts to pictures [B, 64, 64, 3], floats in [0, 1]


def prompts(items: int, count: int, seed: int = 7) -> list[tuple[str, Scene]]:
    """Return `count` prompts of one or two items that name shape, colour, background, relation.

    Each asks for a combination of these that training never showed.
    """
    rng = np.random.default_rng([seed, items])
    chosen: list[tuple[str, Scene]] = []
    while len(chosen) < count:
        asked = sample(rng, pair=float(items == 2), bare=0.0)
        if held_out(complete(asked, rng)):
            chosen.append((caption(asked, rng), asked))
    return chosen


def score(draw: Draw, asked: list[tuple[str, Scene]], batch: int = 50) -> dict[str, float]:
    """Return the share of pictures, in [0, 1], that are right in each aspect, and in several.

    `prompt` is the share that has the background, the number of items, their colours and shapes,
    and their relation right; `everything` has size and place as well.
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
    """Return scores as lines of text in percent, one line for each set of prompts."""
    lines = []
    for name, row in scores.items():
        cells = "  ".join(f"{aspect} {100 * share:.1f}" for aspect, share in row.items())
        lines.append(f"{name}: {cells}")
    return "\n".join(lines)
