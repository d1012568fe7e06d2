"""A second pass is written and read in the words of AUTOMATIC1111's web UI."""

from dataclasses import replace

import pytest

from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.webui_text import read_parameters, write_parameters

LINE = "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x512, "
RECIPE = Recipe(
    prompt="a cat",
    negative_prompt="",
    steps=20,
    sampler="euler",
    seed=1,
    width=512,
    height=512,
    hires=2.0,
    hires_strength=0.7,
    hires_steps=10,
    hires_upscale="lanczos",
    long_prompt=True,
    prompt_weights=True,
)


def test_round_trip():
    text = write_parameters(RECIPE)
    words = "Denoising strength: 0.7, Hires upscale: 2, Hires steps: 10, Hires upscaler: Lanczos"
    assert words in text and "Size: 512x512" in text
    assert read_parameters(text)[0] == RECIPE
    assert "Hires steps: 14, Hires upscaler: Latent," in write_parameters(
        replace(RECIPE, hires_steps=None, hires_upscale="latent")
    )
    assert "Hires" not in write_parameters(replace(RECIPE, hires=None))
    files = write_parameters(replace(RECIPE, hires_upscale="~/a/4x.safetensors", upscale="b/x2"))
    assert "Hires upscaler: 4x" in files and "Postprocess upscaler: x2" in files


def test_timesteps_stand_in_place_of_steps():
    recipe = replace(RECIPE, steps=None, timesteps=(999, 499, 9), hires_steps=None)
    text = write_parameters(recipe)
    assert "Hires steps: 2" in text
    assert read_parameters(text)[0] == recipe


@pytest.mark.parametrize(
    ("said", "steps", "upscale", "rest"),
    [
        ("Hires upscale: 1.5, Hires upscaler: Latent", 20, "latent", []),
        ("Hires upscale: 1.5, Hires steps: 0, Hires upscaler: Latent", 20, "latent", []),
        ("Hires upscale: 1.5, Hires steps: 9, Hires upscaler: Lanczos", 9, "lanczos", []),
        (
            "Hires upscale: 1.5, Hires upscaler: Latent (bicubic)",
            20,
            "latent",
            ["Hires upscaler: Latent (bicubic) (latent is used)"],
        ),
        (
            "Hires upscale: 1.5, Hires steps: 9, Hires upscaler: R-ESRGAN 4x+, Hires sampler: DDIM",
            9,
            "lanczos",
            ["Hires upscaler: R-ESRGAN 4x+ (lanczos is used)", "Hires sampler: DDIM"],
        ),
    ],
)
def test_what_the_web_ui_writes(said, steps, upscale, rest):
    recipe, _, not_understood = read_parameters(f"{LINE}Denoising strength: 0.4, {said}")
    assert (recipe.hires, recipe.hires_strength, recipe.strength) == (1.5, 0.4, None)
    assert (recipe.hires_steps, recipe.hires_upscale) == (steps, upscale)
    assert not_understood == rest


@pytest.mark.parametrize(
    "said",
    [
        "Hires resize: 1024x1024",
        "First pass size: 0x0",
        "Hires upscale: 8",
        "Hires upscale: x",
        "Hires upscale: nan",
    ],
)
def test_a_pass_that_cannot_be_made_is_named(said):
    recipe, _, rest = read_parameters(f"{LINE}{said}, Denoising strength: 0.4")
    assert (recipe.hires, recipe.hires_strength, recipe.strength) == (None, None, None)
    assert rest == [said, "Denoising strength: 0.4"]
