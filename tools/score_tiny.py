"""Score inpainting, outpainting and ControlNet with `tiny`, as this program computes them.

    python -m tools.score_tiny
    python -m tools.score_tiny --count 20 control

The scenes were held out of training. `mask_scores` and `control_scores` say what is right. With 200
scenes of each kind it takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from stable_diffusion import StableDiffusion  # before mlx
from stable_diffusion.control import Control
from stable_diffusion.denoising import Denoising

# isort: split
import mlx.core as mx
import numpy as np

from tools import control_scores, mask_scores
from tools.tiny_scores import table

Scores = Iterator[tuple[str, dict[str, float]]]
LATENT = 8  # pixels along each side of a latent


def decode_last(sd: StableDiffusion, steps: Denoising) -> np.ndarray:
    """Return the picture [H, W, 3], floats in [0, 1], that the last of the steps shows."""
    for x_t in steps:
        mx.eval(x_t)
    return np.array(sd.decode(x_t))[0]


def make_mask_draw(sd: StableDiffusion, whole_latents: bool = False, **options) -> mask_scores.Draw:
    """Return a function that repaints what masks cover, and keeps all other pixels.

    Args:
        whole_latents: repaint each latent that the mask touches; else those whose first pixel it
            covers, as diffusers does.
        options: of `generate_latents_from_image`; strength is 1 by default.
    """
    options = {"strength": 1.0, **options}

    def draw(prompts: list[str], pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
        drawn = []
        for seed, (text, picture, mask) in enumerate(zip(prompts, pictures, masks, strict=True)):
            area = grow(mask) if whole_latents else mask
            steps = sd.generate_latents_from_image(
                picture * 2 - 1, text, mask=area, seed=seed, **options
            )
            drawn.append(np.where(mask[..., None] > 0, decode_last(sd, steps), picture))
        return np.stack(drawn)

    return draw


def grow(mask: np.ndarray) -> np.ndarray:
    """Return a mask [H, W] that covers each latent of which `mask` covers a part."""
    height, width = (side // LATENT for side in mask.shape)
    cells = mask.reshape(height, LATENT, width, LATENT).max((1, 3))  # [h, w]
    return cells.repeat(LATENT, 0).repeat(LATENT, 1)


def make_control_draw(
    sd: StableDiffusion, model: str | Path | None, **options
) -> control_scores.Draw:
    """Return a function that draws with the ControlNet `model`; None: with the prompt alone."""
    network = None if model is None else sd.load_control(model)

    def draw(prompts: list[str], outlines: np.ndarray) -> np.ndarray:
        drawn = []
        for seed, (text, lines) in enumerate(zip(prompts, outlines, strict=True)):
            image = lines[..., None].repeat(3, -1)  # [64, 64, 3]
            controls = [] if network is None else [Control(network, image)]
            steps = sd.generate_latents(text, seed=seed, controls=controls, **options)
            drawn.append(decode_last(sd, steps))
        return np.stack(drawn)

    return draw


def score_inpainting(sd: StableDiffusion, count: int) -> Scores:
    """Yield the scores of halves and of boxes, and of boxes whose latents are repainted whole."""
    halves, boxes = mask_scores.swaps(count), mask_scores.swaps(count, box=True)
    score, draw = mask_scores.score_swaps, make_mask_draw(sd)
    yield "half of the picture", score(draw, halves)
    yield "box around the shape", score(draw, boxes)
    yield "box, whole latents", score(make_mask_draw(sd, whole_latents=True), boxes)


def score_outpainting(sd: StableDiffusion, count: int) -> Scores:
    """Yield the scores of 16 and 32 new pixels; the prompt says where the shape is, or does not."""
    draw = make_mask_draw(sd)
    for pixels in (16, 32):
        for placed in (True, False):
            name = f"{pixels} pixels, place {'named' if placed else 'not named'}"
            asked = mask_scores.extensions(count, pixels, placed)
            yield name, mask_scores.score_extensions(draw, asked)


def score_control(sd: StableDiffusion, count: int, model: str | Path = "outline") -> Scores:
    """Yield the scores with prompts that say all, little or nothing; and without the ControlNet."""
    asked = control_scores.outlined(count)
    draw, score = make_control_draw(sd, model), control_scores.score_outlines
    yield "outline and prompt", score(draw, asked)
    yield "shapes not named", score(draw, control_scores.without_shapes(asked))
    yield "outline, empty prompt", score(draw, [("", layout) for _, layout in asked])
    yield "prompt alone", score(make_control_draw(sd, None), asked)


PARTS: dict[str, Callable[[StableDiffusion, int], Scores]] = {
    "inpainting": score_inpainting,
    "outpainting": score_outpainting,
    "control": score_control,
}


def main() -> None:
    """Parse the command line, and print each line of scores when it is computed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--count", type=int, default=200, help="scenes of each kind")
    args = parser.parse_args()
    sd = StableDiffusion("tiny")
    for part in args.part or PARTS:
        for name, scores in PARTS[part](sd, args.count):
            print(table({name: scores}), flush=True)


if __name__ == "__main__":
    main()
