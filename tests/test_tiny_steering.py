"""The ControlNet of `tiny` puts shapes where outlines say; a mask repaints what the prompt says."""

import pytest

from stable_diffusion import StableDiffusion
from tools.control_scores import outlined, score_outlines
from tools.mask_scores import extensions, score_extensions, score_swaps, swaps
from tools.score_tiny import make_control_draw, make_mask_draw

N_PICTURES = 20


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion("tiny")


def test_shapes_stand_where_the_outline_says(sd):
    """Check 20 of the 200 that `tools.score_tiny` scores; by chance few positions are right."""
    asked = outlined(N_PICTURES)
    steered = score_outlines(make_control_draw(sd, "outline", num_steps=10), asked)
    alone = score_outlines(make_control_draw(sd, None, num_steps=10), asked)
    assert steered["position"] >= 0.8
    assert steered["outline"] >= 0.5
    assert alone["position"] <= 0.3


def test_a_mask_replaces_one_shape_and_keeps_the_other(sd):
    scores = score_swaps(make_mask_draw(sd, num_steps=10), swaps(N_PICTURES))
    assert scores["kept"] == 1
    assert scores["prompt"] >= 0.85


def test_a_larger_picture_has_the_same_background(sd):
    asked = extensions(8, pixels=16)
    scores = score_extensions(make_mask_draw(sd, num_steps=10), asked)
    assert scores["kept"] == 1
    assert scores["pixels"] >= 0.98
    assert scores["clean"] >= 0.8
