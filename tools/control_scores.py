"""Score a ControlNet for `tiny` on outlines of scenes that were held out of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from tools.check_shapes import NOTICEABLE, Found, look
from tools.outlines import Layout, layouts
from tools.wording import caption

# Prompts [B] and outlines [B, 64, 64] of 0 and 1 to pictures [B, 64, 64, 3], floats in [0, 1].
Draw = Callable[[list[str], np.ndarray], np.ndarray]
NEAR = 4.0  # pixels, a sixteenth of the picture, by which a centre may be off
COVERED = 0.7  # intersection over union of what is drawn and what is outlined
ASPECTS = ("count", "shape", "position", "region", "colour", "background")
TINY = Path(__file__).parents[1] / "stable_diffusion" / "tiny"


def outlined(count: int, seed: int = 17) -> list[tuple[str, Layout]]:
    """Return `count` held-out layouts, half of them with two shapes, and their prompts."""
    rng = np.random.default_rng(seed)
    scenes = layouts(rng, unseen=True, pair=0.5)
    chosen = [next(scenes) for _ in range(count)]
    return [(caption(layout.scene, rng), layout) for layout in chosen]


def judge_layout(picture: np.ndarray, layout: Layout) -> dict[str, bool]:
    """Return which of `ASPECTS` a picture has right; found shapes are matched for the best."""
    ground, found = look(picture)
    verdict = dict.fromkeys(ASPECTS, False)
    verdict["count"] = len(found) == len(layout.spots)
    verdict["background"] = ground == layout.scene.background
    verdict["region"] = _overlap(picture, layout) >= COVERED
    best: dict[str, bool] = {}
    for order in permutations(found, len(layout.spots)):
        trial = _match(list(order), layout)
        if sum(trial.values()) > sum(best.values()):
            best = trial
    return verdict | best


def _match(found: list[Found], layout: Layout) -> dict[str, bool]:
    """Return what is right if the found shapes are the items of `layout` in this order."""
    pairs = list(zip(found, layout.scene.items, layout.spots, strict=True))
    return {
        "shape": all(f.shape == item.shape for f, item, _ in pairs),
        "position": all(np.hypot(f.x - s.x, f.y - s.y) <= NEAR for f, _, s in pairs),
        "colour": all(f.colour == item.colour for f, item, _ in pairs),
    }


def _overlap(picture: np.ndarray, layout: Layout) -> float:
    """Return the intersection over union of all that is drawn and all that is outlined."""
    pixels = picture.astype(float) * (255.0 if picture.dtype.kind == "f" else 1.0)
    corner = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    drawn = np.linalg.norm(pixels - corner, axis=-1) > NOTICEABLE
    asked = np.logical_or.reduce(layout.silhouettes())
    return float((drawn & asked).sum() / max(1, (drawn | asked).sum()))


def score_outlines(
    draw: Draw, asked: list[tuple[str, Layout]], batch: int = 50
) -> dict[str, float]:
    """Return the share of pictures, in [0, 1], that are right in each aspect, and in several.

    `outline` is the share with the right number of shapes, each of them the outlined shape, at its
    place and covering its region; `everything` has colours and background as the prompt says, too.
    """
    verdicts = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        lines = np.stack([layout.outline() for _, layout in part]).astype(np.float32)
        pictures = draw([text for text, _ in part], lines)
        verdicts += [judge_layout(p, layout) for p, (_, layout) in zip(pictures, part, strict=True)]
    scores = {aspect: float(np.mean([v[aspect] for v in verdicts])) for aspect in ASPECTS}
    must = ("count", "shape", "position", "region")
    scores["outline"] = float(np.mean([all(v[aspect] for aspect in must) for v in verdicts]))
    scores["everything"] = float(np.mean([all(v.values()) for v in verdicts]))
    return scores


def make_draw(
    control: ControlNetModel, scale: float = 1.0, steps: int = 20, guidance: float = 2.0
) -> Draw:
    """Return a function that draws with diffusers, picture i from seed i."""
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        TINY, controlnet=control, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)

    def draw(texts: list[str], outlines: np.ndarray) -> np.ndarray:
        lines = torch.from_numpy(outlines)[:, None].expand(-1, 3, -1, -1)  # [B, 3, 64, 64]
        return pipe(
            texts,
            image=lines,
            num_inference_steps=steps,
            guidance_scale=guidance,
            controlnet_conditioning_scale=scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(texts))],
            output_type="np",
        ).images

    return draw


def evaluate(control: ControlNetModel, count: int) -> dict[str, dict[str, float]]:
    """Return the scores on `count` outlines with the ControlNet, and without it."""
    asked = outlined(count)
    return {
        "outline and prompt": score_outlines(make_draw(control), asked),
        "prompt alone": score_outlines(make_draw(control, scale=0.0), asked),
    }


def without_shapes(asked: list[tuple[str, Layout]], seed: int = 18) -> list[tuple[str, Layout]]:
    """Return the layouts with prompts that leave shapes, sizes and relations to the outline."""
    rng = np.random.default_rng(seed)
    vague = []
    for _, layout in asked:
        items = tuple(replace(item, shape=None, size=None) for item in layout.scene.items)
        scene = replace(layout.scene, items=items, relation=None)
        vague.append((caption(scene, rng), layout))
    return vague
