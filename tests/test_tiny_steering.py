"""The ControlNet of `tiny` puts shapes where outlines say; a mask repaints what the prompt says.

These are a few of the pictures that `tools.score_tiny` scores.
"""

import numpy as np
import pytest

from stable_diffusion import StableDiffusion
from tools.control_scores import judge_layout, outlined
from tools.mask_scores import extensions, score_extensions, score_swaps, swaps
from tools.score_tiny import make_control_draw, make_mask_draw

N_PICTURES = 6
NUM_STEPS = 5  # a quarter of the usual ones, which are enough


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion("tiny")


def test_shapes_stand_where_the_outline_says(sd):
    """Check that few stand where the outlines of the other pictures are."""
    prompts, layouts = zip(*outlined(N_PICTURES), strict=True)
    outlines = np.stack([layout.outline() for layout in layouts]).astype(np.float32)
    drawn = make_control_draw(sd, "outline", num_steps=NUM_STEPS)(list(prompts), outlines)

    def count(aspect: str, shift: int = 0) -> int:
        asked = layouts[shift:] + layouts[:shift]
        return sum(judge_layout(*each)[aspect] for each in zip(drawn, asked, strict=True))

    assert count("position") >= 5 and count("region") >= 5 and count("shape") >= 3
    assert count("position", shift=1) <= 1 and count("region", shift=1) <= 1


def test_a_mask_replaces_one_shape_and_keeps_the_other(sd):
    scores = score_swaps(make_mask_draw(sd, num_steps=NUM_STEPS), swaps(N_PICTURES))
    assert scores["kept"] == 1
    assert scores["prompt"] >= 5 / N_PICTURES


def test_a_larger_picture_has_the_same_background(sd):
    scores = score_extensions(make_mask_draw(sd, num_steps=NUM_STEPS), extensions(4, pixels=16))
    assert scores["kept"] == 1
    assert scores["pixels"] >= 0.98
    assert scores["clean"] >= 0.75
