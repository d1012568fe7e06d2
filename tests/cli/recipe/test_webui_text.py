"""`webui_text.py`: the text of AUTOMATIC1111's web UI, written and read."""

import time
from contextlib import suppress
from dataclasses import replace

import pytest

from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.webui_text import (
    SCHEDULE_NAMES,
    read_parameters,
    write_parameters,
)

PLAIN = Recipe(
    prompt="a lighthouse at dusk",
    negative_prompt="fog, rain",
    model="stabilityai/stable-diffusion-xl-base-1.0",
    revision="0123abc",
    seed=7,
    width=640,
    height=448,
    steps=20,
    cfg=6.5,
    sampler="euler-a",
    schedule="leading",
    clip_skip=0,
    prompt_weights=True,
    version="0.1.0",
)


def test_what_is_written():
    assert write_parameters(PLAIN) == (
        "a lighthouse at dusk\n"
        "Negative prompt: fog, rain\n"
        "Steps: 20, Sampler: Euler a, Schedule type: DDIM, CFG scale: 6.5, Seed: 7, Size: 640x448, "
        "Model: stable-diffusion-xl-base-1.0, RNG: CPU, Version: Stable Diffusion for MLX 0.1.0"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampler": "dpm++2m", "schedule": "karras"}, "DPM++ 2M, Schedule type: Karras, CFG"),
        ({"sampler": "ddim", "schedule": "trailing"}, "DDIM, Schedule type: SGM Uniform, CFG"),
        ({"sampler": "lcm", "schedule": None}, "Sampler: LCM, CFG"),
        ({"schedule": "exponential"}, "Euler a, Schedule type: Exponential, CFG"),
        ({"schedule": "ays"}, "Euler a, Schedule type: Align Your Steps, CFG"),
        (
            {"steps": None, "timesteps": (999, 9), "schedule": None},
            'Steps: 2, Sampler: Euler a, Timesteps: "999,9", ',
        ),
        ({"sampler": "ddim", "eta": 0.5}, "Eta DDIM: 0.5, "),
        ({"cfg": 0.0}, "CFG scale: 1, "),
        ({"clip_skip": 1}, "Clip skip: 2, "),
        ({"strength": 0.6}, "Denoising strength: 0.6, "),
        ({"image_cfg": 1.5}, "Image CFG scale: 1.5, "),
        ({"model": "/home/someone/models/my, model.safetensors"}, 'Model: "my, model", '),
        ({"model": r"C:\Users\someone\model"}, "Model: model, "),
        ({"vae": "org/some-vae@main"}, "VAE: some-vae, "),
        ({"lora": ("~/a.safetensors:0.8", "b.safetensors:1.0")}, 'Lora: "a:0.8, b:1.0", '),
        ({"prompt": "a (b)", "prompt_weights": False}, "Emphasis: None, "),
        ({"prompt": "\ud800\x00 é漢😀"}, "?? é漢😀\nNegative"),
    ],
)
def test_details(changes, expected):
    text = write_parameters(replace(PLAIN, **changes))
    assert expected in text and "someone" not in text
    text.encode()


def test_no_negative_prompt():
    assert write_parameters(replace(PLAIN, negative_prompt="")).count("\n") == 1


@pytest.mark.parametrize("prompt", ["a lighthouse", "one\ntwo, three: four\n\nfive", "Steps: 1"])
def test_what_is_written_is_read(prompt):
    written = replace(PLAIN, prompt=prompt, model="tiny", strength=0.25, clip_skip=2)
    recipe, model_name, rest = read_parameters(write_parameters(written))
    expected = replace(
        written, revision=None, guidance_rescale=None, long_prompt=True, version=None
    )
    assert recipe == expected and model_name == "tiny" and not rest


@pytest.mark.parametrize(("strength", "rest"), [("0.75", ["Denoising strength: 0.75"]), ("1", [])])
def test_editing_has_no_strength(strength, rest):
    """The web UI writes one, which says how much noise it began with."""
    text = "a\nSteps: 9, Sampler: Euler a, Seed: 1, Image CFG scale: 2, "
    text += f"Denoising strength: {strength}"
    recipe, _, not_understood = read_parameters(text)
    assert (recipe.image_cfg, recipe.strength, not_understood) == (2.0, None, rest)


def test_guidance_by_the_picture_of_a_model_that_does_not_edit():
    """Some versions of the web UI wrote it for each picture that was made from another."""
    text = "a\nSteps: 9, Sampler: Euler a, Seed: 1, Image CFG scale: 2, Denoising strength: 0.75, "
    recipe, _, rest = read_parameters(f"{text}Model: v1-5-pruned-emaonly")
    assert (recipe.image_cfg, recipe.strength, rest) == (None, 0.75, [])
    recipe, _, _ = read_parameters(f"{text}Model: instruct-pix2pix-00-22000")
    assert (recipe.image_cfg, recipe.strength) == (2.0, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "ddim", "schedule": "trailing", "eta": 0.5},
        *({"sampler": name, "schedule": None} for name in ("deis", "ddpm", "tcd")),
        {"sampler": "euler", "schedule": None, "steps": None, "timesteps": (999, 499)},
        *({"sampler": "euler", "schedule": schedule} for schedule in SCHEDULE_NAMES),
    ],
)
def test_samplers_and_schedules_are_read(changes):
    written = replace(PLAIN, **changes)
    recipe, _, rest = read_parameters(write_parameters(written))
    names = ("sampler", "schedule", "steps", "timesteps", "eta")
    assert [getattr(recipe, n) for n in names] == [getattr(written, n) for n in names]
    assert not rest


@pytest.mark.parametrize(
    ("said", "sampler", "schedule"),
    [
        ("DPM++ 2M, Schedule type: Automatic", "dpm++2m", "karras"),
        ("Euler, Schedule type: Automatic", "euler", "linspace"),
        ("DDIM, Schedule type: Automatic", "ddim", None),
        ("LCM, Schedule type: Automatic", "lcm", None),
        ("Euler, Schedule type: Normal", "euler", "linspace"),
        ("Euler, Schedule type: DDIM", "euler", "leading"),
        ("Euler, Schedule type: SGM Uniform", "euler", "sgm-uniform"),
        ("Euler SGM Uniform", "euler", "sgm-uniform"),
        ("DPM++ 2M Exponential", "dpm++2m", "exponential"),
        ("DPM++ 2M", "dpm++2m", None),
        ("PLMS, Schedule type: SGM Uniform", "pndm", "trailing"),
    ],
)
def test_names_of_schedules(said, sampler, schedule):
    recipe, _, rest = read_parameters(f"a\nSteps: 2, Sampler: {said}, Seed: 1, Size: 8x8")
    assert (recipe.sampler, recipe.schedule, rest) == (sampler, schedule, [])


@pytest.mark.parametrize(
    ("said", "rest"),
    [
        ("Euler a, Eta: 0.5", ["Eta: 0.5"]),
        ("DDIM CFG++", ["Sampler: DDIM CFG++"]),
        ("Euler, Schedule type: KL Optimal", ["Schedule type: KL Optimal"]),
        ("Restart, Schedule type: Automatic", ["Sampler: Restart"]),
        ("LCM, Schedule type: SGM Uniform", ["Schedule type: SGM Uniform"]),
        ("Euler a Karras", ["Schedule type: Karras"]),
        ("Euler, Timesteps: x", ["Timesteps: x"]),
    ],
)
def test_what_is_not_understood_of_the_steps(said, rest):
    assert read_parameters(f"a\nSteps: 2, Sampler: {said}, Seed: 1")[2] == rest
    ddim = read_parameters("a\nSteps: 2, Sampler: DDIM, Eta: 0.5, Seed: 1")
    assert (ddim[0].eta, ddim[2]) == (0.5, [])


def test_what_automatic1111_writes():
    recipe, model_name, rest = read_parameters(
        "masterpiece, (a cat:1.2) <lora:fur:0.7>,\n[dog]\n"
        "Negative prompt: blurry,\nugly\n"
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3519, Size: 512x768, "
        "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, "
        "Denoising strength: 0.7, Clip skip: 2, Hires upscale: 2, Hires upscaler: Latent, "
        'Lora hashes: "fur: 0a1b, b: 2c", TI hashes: "a: \\"b\\"", Version: v1.7.0'
    )
    assert recipe == Recipe(
        prompt="masterpiece, (a cat:1.2) ,\n[dog]",
        negative_prompt="blurry,\nugly",
        model="sd-1-5",
        seed=3519,
        width=512,
        height=768,
        steps=25,
        cfg=7.0,
        sampler="dpm++2m",
        schedule="karras",
        clip_skip=1,
        long_prompt=True,
        prompt_weights=True,
        hires=2.0,
        hires_strength=0.7,
        hires_steps=25,  # as many as in the first pass
        hires_upscale="latent",
    )
    assert model_name == "v1-5-pruned-emaonly"
    assert rest == ["<lora:fur:0.7>", "Lora hashes: fur: 0a1b, b: 2c", 'TI hashes: a: "b"']


def test_newer_names_and_unknown_values():
    recipe, model_name, rest = read_parameters(
        "a cat\nSteps: 25, Sampler: Restart, Schedule type: Karras, CFG scale: seven, Seed: 1, "
        "Size: 512, Model: my fine-tune, RNG: NV, Emphasis: No norm, and so on"
    )
    assert (recipe.steps, recipe.seed, recipe.schedule) == (25, 1, "karras")
    assert recipe.model is recipe.sampler is recipe.cfg is recipe.width is None
    assert recipe.prompt_weights is False and model_name == "my fine-tune"
    assert rest == ["Sampler: Restart", "CFG scale: seven", "Size: 512", "RNG: NV", "and so on"]


def test_json_among_the_values_is_read_to_its_end():
    """Galleries write JSON with commas, quotes and brackets, and more pairs after it."""
    resources = (
        '[{"type":"checkpoint","modelName":"My, [best] model","modelVersionId":1},'
        '{"type":"lora","weight":0.8,"modelName":"Fur: \\"soft\\"","modelVersionId":2}]'
    )
    recipe, model_name, rest = read_parameters(
        'a cat\nSteps: 25, Hashes: {"model": "0a, b", "lora:x": "1}"}, Sampler: Euler a, Seed: 7, '
        f"Civitai resources: {resources}, Civitai metadata: {{}}, CFG scale: 5, Size: 64x72"
    )
    assert (recipe.steps, recipe.sampler, recipe.seed, recipe.cfg) == (25, "euler-a", 7, 5)
    assert (recipe.width, recipe.height) == (64, 72) and model_name is None
    assert rest == ['Civitai resources: checkpoint My, [best] model, lora Fur: "soft" 0.8']


@pytest.mark.parametrize("value", ["[1, 2", "{x}", '{"a": 1} b', "[" * 10_000, "{}}"])
def test_text_that_only_starts_like_json(value):
    recipe, _, rest = read_parameters(f"a\nSteps: 2, Seed: 3, Odd: {value}, CFG scale: 5")
    assert (recipe.steps, recipe.seed) == (2, 3)
    assert any(part.startswith("Odd: ") for part in rest)


@pytest.mark.parametrize("value", ["[1]", "[{}, 3]", "{}", '"x"', "[]"])
def test_wrong_lists_of_resources(value):
    recipe, _, rest = read_parameters(
        f"a\nSteps: 2, Seed: 3, Civitai resources: {value}, Size: 8x8"
    )
    assert recipe.width == 8 and any(part.startswith("Civitai resources") for part in rest)


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nSteps: 20, Seed: 1", "\n\n", ":" * 9, ","])
def test_text_of_another_kind(text):
    with pytest.raises(ValueError, match="not in the form"):
        read_parameters(text)


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 10**6, "x" * 10**7, " " * 10**6, ' : "' * 250_000, 'a:"\\' * 250_000),
        *("a:" + '"\\"' * 300_000, "a: b, " * 160_000),
        "a:[" * 300_000,
        'a:{"b":[1,' * 100_000,
        'a:[1],b:{"c":2},' * 60_000,
        "<lora:" * 160_000 + "\nSteps: 1, Seed: 1, Size: 1x1",
    ],
    ids=range(11),
)
def test_hostile_text_is_read_fast(text):
    start = time.process_time()
    with suppress(ValueError):
        read_parameters(text)
    assert time.process_time() - start < 5
