"""A mask is written and read in the words of AUTOMATIC1111's web UI."""

from dataclasses import replace

import pytest

from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.webui_text import read_parameters, write_parameters

LINE = "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x512, Denoising strength: 0.5, "
RECIPE = Recipe(
    prompt="a cat",
    negative_prompt="",
    steps=20,
    sampler="euler",
    seed=1,
    width=512,
    height=512,
    strength=0.5,
    invert_mask=True,
    mask_blur=4,
    mask_crop=0,
    long_prompt=True,
    prompt_weights=True,
)


def test_round_trip():
    text = write_parameters(RECIPE)
    words = "Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, Masked area"
    assert words in text and "Masked area padding: 0" in text
    assert read_parameters(text)[0] == RECIPE
    plain = replace(RECIPE, invert_mask=None, mask_blur=None, mask_crop=None)
    assert "ask" not in write_parameters(plain) and "Inpaint" not in write_parameters(plain)


@pytest.mark.parametrize(
    ("said", "crop", "rest"),
    [
        ("Inpaint area: Only masked, Masked area padding: 16", 16, []),
        ("Masked area padding: 16, Inpaint area: Only masked", 16, []),
        ("Inpaint area: Only masked", 32, []),
        ("Inpaint area: Whole picture, Masked area padding: 16", None, []),
        ("Inpaint area: Half", None, ["Inpaint area: Half"]),
        ("Mask mode: Both", None, ["Mask mode: Both"]),
        ("Mask mode: Inpaint masked", None, []),
    ],
)
def test_what_the_web_ui_writes(said, crop, rest):
    """Its usual padding is 32 pixels."""
    recipe, _, not_understood = read_parameters(LINE + said)
    assert (recipe.mask_crop, recipe.invert_mask, not_understood) == (crop, None, rest)
    assert recipe.strength == 0.5
