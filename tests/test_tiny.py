"""The embedded model draws what is asked: wrong meaning shows where numbers might not."""

import numpy as np
import pytest
from oracle import Oracle, psnr
from ours import pictures
from PIL import Image

import txt2image
from stable_diffusion import StableDiffusion, hub
from stable_diffusion.models import MODELS
from tools.check_shapes import judge
from tools.shapes import Item, Scene
from tools.tiny_scores import prompts, score

N_PROMPTS = 24


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion("tiny")


def draw(sd: StableDiffusion, prompt: str, **options) -> np.ndarray:
    """uint8 [B, 64, 64, 3]."""
    return pictures(sd, sd.generate_latents(prompt, **{"seed": 0, **options}))


def share(drawn: np.ndarray, scene: Scene, *aspects: str) -> float:
    """Of the pictures, how many are right in all these aspects."""
    verdicts = [judge(picture, scene) for picture in drawn]
    return float(np.mean([all(v[aspect] for aspect in aspects) for v in verdicts]))


def one(colour: str, shape: str, background: str) -> Scene:
    return Scene((Item(shape, colour),), background)


@pytest.mark.parametrize(("items", "at_least"), [(1, 0.7), (2, 0.5)])
def test_it_draws_what_held_out_prompts_ask(sd, items, at_least):
    """Combinations that training never showed; `tools/train_tiny.py` scores 200 of each."""

    def draw_all(texts: list[str]) -> np.ndarray:
        return np.concatenate([draw(sd, text, seed=i) for i, text in enumerate(texts)])

    assert score(draw_all, prompts(items, N_PROMPTS))["prompt"] >= at_least


def test_quantized_is_near(sd):
    """At least 20 dB from float32."""
    quantized = StableDiffusion("tiny")
    quantized.quantize()
    prompt = "a green star on a black background"
    assert psnr(draw(quantized, prompt, n_images=4), draw(sd, prompt, n_images=4)) >= 20


def test_the_same_picture_as_diffusers(sd):
    spec = MODELS["tiny"]
    prompt = "a small red circle left of a big blue star on a yellow background"
    theirs = Oracle(hub.open_model("tiny").root).pictures(
        prompt,
        seeds=[3, 4],
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
    )
    assert psnr(draw(sd, prompt, n_images=2, seed=3), theirs) >= 50


def test_the_first_command(tmp_path):
    """The quick start, with no network and an empty cache: four red circles on blue."""
    output = tmp_path / "out.png"
    prompt = "a red circle on a blue background"
    assert txt2image.main(["--model", "tiny", prompt, "--seed", "1", "--output", str(output)]) == 0
    grid = np.asarray(Image.open(output))
    drawn = np.stack([grid[8:-8, 8 + 80 * i : 72 + 80 * i] for i in range(4)])
    scene = one("red", "circle", "blue")
    assert share(drawn, scene, "background", "count", "colour", "shape") >= 0.75


def test_it_is_small():
    files = [f for f in hub.open_model("tiny").root.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 32e6
