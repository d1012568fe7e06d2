"""Whole pictures of the samplers equal diffusers', from text and from pictures."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import psnr
from ours import pictures

from stable_diffusion import StableDiffusion
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.sampler.sampler import Sampler

PROMPT = "a photo of a café, at night"
SAME = 50  # dB at least between equal pictures
NEW = [("ddim", "linspace"), ("dpm++2m", "trailing"), ("dpm++2m", "karras"), ("lcm", None)]
KINDS = ("sd-1", "sd-2-v", "sdxl")
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
RESCALED = {"num_steps": 4, "cfg_weight": 7.0, "guidance_rescale": 0.7}


@pytest.fixture(scope="module")
def models(checkpoint) -> dict[str, StableDiffusion]:
    configs = {kind: load_model_config(checkpoint(kind)) for kind in KINDS}
    return {kind: pipeline_class(config)(checkpoint(kind)) for kind, config in configs.items()}


@pytest.fixture
def sampled(models, monkeypatch):
    """A model with another sampler and schedule, or other options of its scheduler."""

    def choose(kind: str, name: str | None, schedule: str | None = None, **options):
        sd = models[kind]
        config = replace(sd.diffusion_config, **options)
        monkeypatch.setattr(sd, "sampler", Sampler.for_model(config, name, schedule))
        return sd

    return choose


def from_text(sd: StableDiffusion, **options) -> np.ndarray:
    return pictures(sd, sd.generate_latents(PROMPT, seed=7, **options))


def theirs(options: dict) -> dict:
    """The options of a generator under the names of diffusers."""
    names = {"num_steps": "num_inference_steps", "cfg_weight": "guidance_scale"}
    return {"seeds": [7], **{names.get(key, key): value for key, value in options.items()}}


@pytest.mark.parametrize(
    ("kind", "name", "schedule"),
    [*(("sd-1", *new) for new in NEW), ("sd-2-v", *NEW[2]), ("sdxl", *NEW[2]), ("sdxl", *NEW[3])],
)
def test_text_to_picture(sampled, oracle, kind, name, schedule):
    options = {"num_steps": 4, "cfg_weight": 3.0}
    ours = from_text(sampled(kind, name, schedule), **options)
    expected = oracle(kind).pictures(PROMPT, sampler=name, schedule=schedule, **theirs(options))
    assert psnr(ours, expected) >= SAME
    assert expected.std() >= 30  # of 255: they show something
    assert psnr(from_text(sampled(kind, "euler"), **options), expected) < SAME


@pytest.mark.parametrize("strength", [0.2, 0.7])
@pytest.mark.parametrize(("kind", "name", "schedule"), [("sd-1", *new) for new in NEW])
def test_image_to_image(sampled, oracle, kind, name, schedule, strength):
    """One step of five, and three, which begin amid the schedule."""
    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    options = {"num_steps": 5, "cfg_weight": 3.0, "strength": strength}
    sd = sampled(kind, name, schedule)
    latents = sd.generate_latents_from_image(image, PROMPT, seed=7, **options)
    expected = oracle(kind).pictures_from_image(
        image, PROMPT, sampler=name, schedule=schedule, **theirs(options)
    )
    assert psnr(pictures(sd, latents), expected) >= SAME


@pytest.mark.parametrize(
    ("kind", "name", "schedule"),
    [("sd-1", "dpm++2m", "karras"), ("sdxl", "euler", None), ("sd-2-v", "ddim", "trailing")],
)
def test_guidance_rescale(sampled, oracle, kind, name, schedule):
    sd = sampled(kind, name, schedule)
    expected = oracle(kind).pictures(PROMPT, sampler=name, schedule=schedule, **theirs(RESCALED))
    assert psnr(from_text(sd, **RESCALED), expected) >= SAME
    assert psnr(from_text(sd, **{**RESCALED, "guidance_rescale": 0.0}), expected) < SAME


def test_guidance_rescale_from_a_picture(sampled, oracle):
    """In SDXL's pipeline; that of SD has no such option in diffusers."""
    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    sd, options = sampled("sdxl", "euler"), {**RESCALED, "strength": 0.7}
    latents = sd.generate_latents_from_image(image, PROMPT, seed=7, **options)
    expected = oracle("sdxl").pictures_from_image(image, PROMPT, sampler="euler", **theirs(options))
    assert psnr(pictures(sd, latents), expected) >= SAME


@pytest.mark.parametrize("name", ["euler", "ddim", "dpm++2m"])
def test_zero_terminal_snr(sampled, oracle, name, monkeypatch):
    """A velocity model that begins with noise alone, as published: trailing, and rescaled."""
    ours = from_text(sampled("sd-2-v", name, **ZERO_SNR), **RESCALED)
    scheduler = oracle("sd-2-v").scheduler(name, "trailing", rescale_betas_zero_snr=True)
    monkeypatch.setattr(oracle("sd-2-v"), "scheduler", lambda *_: scheduler)
    expected = oracle("sd-2-v").pictures(PROMPT, **theirs(RESCALED))
    assert psnr(ours, expected) >= SAME
    plain = from_text(sampled("sd-2-v", name, "trailing"), **RESCALED)
    assert psnr(plain, expected) < SAME


@pytest.mark.parametrize("name", ["dpm++2m", "lcm"])
def test_a_picture_does_not_depend_on_its_batch(sampled, name):
    sd = sampled("sd-1", name)
    options = {"num_steps": 3, "cfg_weight": 4.0, "guidance_rescale": 0.5}
    two = pictures(sd, sd.generate_latents(PROMPT, n_images=2, seed=6, **options))
    assert psnr(from_text(sd, **options), two[1:]) >= SAME


def test_steps_and_guidance_of_a_consistency_model(sampled, models):
    """Few, and none, where nobody says otherwise: of the sampler or the model."""
    assert len(models["sd-1"].generate_latents(PROMPT)) == 50
    assert len(sampled("sd-1", "lcm").generate_latents(PROMPT)) == 4
    config = models["sd-1"].config
    own = replace(config, diffusion=replace(config.diffusion, _class_name="LCMScheduler"))
    for defaults in (config.defaults_with("lcm"), own.defaults, own.defaults_with("euler")):
        assert (defaults.steps, defaults.guidance) == (4, 0)
    assert config.defaults_with("dpm++2m") == config.defaults
