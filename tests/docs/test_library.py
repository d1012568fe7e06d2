"""docs/library.md: its examples run, and its tables are complete."""

import importlib
import inspect
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from ours import ROOT
from pages import read_blocks

from stable_diffusion import StableDiffusion
from stable_diffusion.check_task import DEFAULT_STRENGTH
from stable_diffusion.config.known_models import MODELS
from stable_diffusion.generation import GenerationOptions
from stable_diffusion.model_io import load_diffusion_config, load_text_encoder, load_unet
from stable_diffusion.sampler import SimpleEulerSampler

FILE = ROOT / "docs/library.md"
PAGE, BLOCKS = FILE.read_text(), read_blocks(FILE, "python")
MAX_LINES_BY_HAND = 25
FEW_STEPS = 3
# What programs for the original example import, and which members of it they use.
ORIGINAL_NAMES = {
    "stable_diffusion": {
        "StableDiffusion": (
            *("generate_latents", "generate_latents_from_image", "decode"),
            "ensure_models_are_loaded",
        ),
        "StableDiffusionXL": (),
    },
    "stable_diffusion.model_io": {
        "load_unet": (),
        "load_text_encoder": (),
        "load_autoencoder": (),
        "load_tokenizer": (),
        "load_diffusion_config": (),
    },
    "stable_diffusion.config": {
        "DiffusionConfig": (),
        "UNetConfig": (),
        "AutoencoderConfig": (),
        "CLIPTextModelConfig": (),
    },
    "stable_diffusion.sampler": {
        "SimpleEulerSampler": (
            *("max_time", "sigmas", "sample_prior", "add_noise", "timesteps", "step"),
        ),
        "SimpleEulerAncestralSampler": (),
    },
    "stable_diffusion.unet": {"UNetModel": ()},
    "stable_diffusion.clip": {"CLIPTextModel": (), "CLIPOutput": ()},
    "stable_diffusion.vae": {"Autoencoder": ("encode", "decode", "latent_channels")},
    "stable_diffusion.tokenizer": {"Tokenizer": ("tokenize",)},
}


def write_adapters() -> None:
    """Write the LoRA and the textual inversion that the page loads, into the current folder."""
    generator = np.random.default_rng(0)
    weights = {}
    for path, layer in load_unet("tiny").named_modules():
        if path.endswith("query_proj"):
            name = f"lora_unet_{path.replace('query_proj', 'to_q').replace('.', '_')}"
            width = len(layer.weight)
            for part, shape in (("lora_down", (4, width)), ("lora_up", (width, 4))):
                values = generator.standard_normal(shape, np.float32)
                weights[f"{name}.{part}.weight"] = mx.array(values)
    mx.save_safetensors("style.safetensors", weights)
    width = load_text_encoder("tiny").token_embedding.weight.shape[1]
    vectors = mx.array(generator.standard_normal((2, width), np.float32))
    mx.save_safetensors("cat-toy.safetensors", {"emb_params": vectors})


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, object]:
    """Run all examples in order, in an empty folder, and return the names that they define.

    A few steps show as much as those that they ask for and those that the model has by itself.
    """
    defined: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("library"))
        patch.setitem(MODELS, "tiny", replace(MODELS["tiny"], steps=FEW_STEPS))
        write_adapters()
        for i, block in enumerate(BLOCKS):
            block = re.sub(r"(num_steps=|schedule\()\d+", rf"\g<1>{FEW_STEPS}", block)
            exec(compile(block, f"docs/library.md, example {i + 1}", "exec"), defined)
    return defined


def test_the_examples_run(names):
    assert len(BLOCKS) >= 9
    assert names["pictures"].shape == (1, 64, 64, 3)
    assert float(mx.abs(names["slope"]).max()) > 0


def test_the_picture_by_hand_equals_the_one_of_the_library(names):
    (block,) = [block for block in BLOCKS if "by_hand" in block]
    lines = [line for line in block.splitlines() if line]
    assert len(lines) <= MAX_LINES_BY_HAND
    assert f".schedule({MODELS['tiny'].steps})" in block
    sd = StableDiffusion("tiny")
    prompt = "a red circle on a blue background"
    *_, x_0 = sd.generate_latents(prompt, num_steps=FEW_STEPS, seed=1)
    expected = np.array(sd.decode(x_0))
    np.testing.assert_allclose(np.array(names["by_hand"]), expected, atol=1e-5)
    assert expected.std() > 0.1  # it shows something


def test_the_loop_as_in_the_original_runs(names):
    sampler = SimpleEulerSampler(load_diffusion_config("tiny"))
    unet = load_unet("tiny")
    width = unet.config.cross_attention_dim
    latents = names["denoise"](unet, sampler, mx.zeros((1, 77, width)), 2)
    assert latents.shape == (1, 8, 8, 8) and mx.isfinite(latents).all().item()


def test_the_page_has_all_arguments_of_the_generators():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    generators = (StableDiffusion.generate_latents, StableDiffusion.generate_latents_from_image)
    for generator in generators:
        parameters = inspect.signature(generator).parameters
        assert parameters.keys() - {"self", "options"} <= rows.keys()
        assert str(parameters["n_images"].default) == rows["n_images"]
    assert str(DEFAULT_STRENGTH) == rows["strength"]
    assert GenerationOptions.__annotations__.keys() <= rows.keys()
    for name in GenerationOptions.__annotations__:
        assert re.search(rf"^ {{8}}{name}: ", GenerationOptions.__doc__, re.MULTILINE)
        assert name in StableDiffusion.generate_latents.__doc__


@pytest.mark.parametrize("module", ORIGINAL_NAMES)
def test_names_of_the_original_exist(module):
    """They can be imported from the same modules, and the page lists them."""
    (row,) = re.findall(rf"^\| `{module}` \| (.*) \|$", PAGE, re.MULTILINE)
    for name, members in ORIGINAL_NAMES[module].items():
        found = getattr(importlib.import_module(module), name)
        assert f"`{name}`" in row
        for member in members:
            assert hasattr(found, member) and f"`{member}`" in row


def test_attributes_of_the_original_exist():
    sd = StableDiffusion("tiny")
    for name in ("unet", "text_encoder", "autoencoder", "sampler", "tokenizer"):
        assert hasattr(sd, name) and f"`{name}`" in PAGE
    assert sd.autoencoder.latent_channels == 8
