"""`recipe.py`: the JSON keeps every value, and a wrong one gives one clear line."""

import json
from dataclasses import fields

import pytest

from stable_diffusion.cli.recipe.recipe import MAX_CHARACTERS, Recipe

WHOLE = Recipe(
    prompt='naïve "漢字" 😀, \\ \udcff\ud800\n\n\x00Steps: 1\u2028',
    negative_prompt="\n",
    model="org/name",
    revision="0123abc",
    vae="my vae.safetensors",
    unet="my unet.safetensors",
    prediction_type="v_prediction",
    lora=("~/a, b:c.safetensors:-0.1", "d.safetensors:1e-05"),
    lora_sha256=("aa", "bb"),
    embedding=("<x>=x.safetensors",),
    embedding_sha256=("cc",),
    seed=2**64 - 1,
    n_images=4,
    n_rows=2,
    width=640,
    height=448,
    steps=20,
    cfg=0.1 + 0.2,
    guidance_rescale=0.7,
    cfg_range=(0.125, 0.7),
    sampler="dpm++2m",
    schedule="karras",
    timesteps=(999, 499),
    eta=0.3,
    reuse=3,
    clip_skip=1,
    long_prompt=True,
    prompt_weights=False,
    quantize=True,
    unet_bits=4,
    text_encoder_bits=8,
    float16=False,
    vae_float16=True,
    strength=1 / 3,
    fit="crop",
    image="start.png",
    image_sha256="dd",
    control=("canny=edges.png:0.5", "org/union@depth=~/depth.png:1"),
    control_sha256=("ab", "cd"),
    control_range=("0-0.5", "0-1"),
    control_canny="100,200",
    image_cfg=1.25,
    mask="mask.png",
    mask_sha256="ee",
    invert_mask=True,
    mask_blur=4,
    mask_crop=32,
    outpaint=(0, 1, 2, 3),
    hires=1.5,
    hires_strength=0.4,
    hires_steps=7,
    hires_upscale="~/up.safetensors",
    hires_upscale_sha256="ff",
    upscale="up.safetensors",
    upscale_sha256="ff",
    version="0.1.0",
)


def read_changed(**changes: object) -> Recipe:
    """Return what is read from JSON with these changes."""
    return Recipe.from_json(json.dumps(json.loads(WHOLE.to_json()) | changes), "a.png")


def test_json_is_exact():
    assert all(getattr(WHOLE, field.name) not in (None, ()) for field in fields(Recipe))
    assert WHOLE.to_json().isascii()
    assert Recipe.from_json(WHOLE.to_json(), "a.png") == WHOLE
    little = Recipe(prompt="", seed=0)
    assert Recipe.from_json(little.to_json(), "a.png") == little


def test_options_are_those_of_the_command_line():
    options = WHOLE.options
    assert options["model"] == "org/name@0123abc"
    assert options["cfg"] == 0.1 + 0.2 and options["prompt_weights"] is False
    assert not options.keys() & {"revision", "image", "image_sha256", "lora_sha256", "version"}
    assert Recipe(model="tiny").options == {"model": "tiny"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, of a newer program"),
        ({"schema": None}, "does not say its schema"),
        ({"schema": True}, "does not say its schema"),
        ({"steps": "20"}, "steps = '20' is of the wrong type"),
        ({"steps": True}, "steps = True is of the wrong type"),
        ({"steps": 2.5}, "steps = 2.5 is of the wrong type"),
        ({"cfg": float("nan")}, "NaN is not a finite number"),
        ({"cfg": float("inf")}, "Infinity is not a finite number"),
        ({"prompt": ["a"]}, "prompt = ('a',) is of the wrong type"),
        ({"lora": "a.safetensors"}, "lora = 'a.safetensors' is of the wrong type"),
        ({"lora": [["a", 1]]}, "is of the wrong type"),
        ({"quantize": 1}, "quantize = 1 is of the wrong type"),
        ({"output": "/etc/passwd"}, "output = '/etc/passwd' is not supported"),
        ({"sampler": {"a": "x" * 100_000}}, "is of the wrong type"),
        ({"prompt": "x" * MAX_CHARACTERS}, "characters are too many"),
    ],
)
def test_damaged_recipes(changes, message):
    with pytest.raises(ValueError, match="^a.png: the recipe is damaged: ") as raised:
        read_changed(**changes)
    text = str(raised.value)
    assert message in text or (len(str(changes)) > 10_000 and text.endswith("…"))
    assert len(text) < 300 and "\n" not in text


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '"x"', "[" * 900_000, '{"schema": 1' + "0" * 5000 + "}", "\ud800"],
)
def test_text_that_is_not_json(text):
    with pytest.raises(ValueError, match="^a.png: the recipe is damaged: "):
        Recipe.from_json(text, "a.png")
