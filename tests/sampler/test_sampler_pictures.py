"""Pictures of every sampler equal those of diffusers, from text and from pictures."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

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
USUAL = {"num_steps": 3, "cfg_weight": 3.0}
RESCALED = {"num_steps": 3, "cfg_weight": 7.0, "guidance_rescale": 0.7}


@pytest.fixture(scope="module")
def models(checkpoint) -> dict[str, StableDiffusion]:
    configs = {kind: load_model_config(checkpoint(kind)) for kind in KINDS}
    return {kind: pipeline_class(config)(checkpoint(kind)) for kind, config in configs.items()}


@pytest.fixture(scope="module")
def euler_pictures(models) -> Callable[[str], np.ndarray]:
    """Return a function that makes the pictures of a kind with another sampler than the tests'."""
    return cache(lambda kind: make_pictures(models[kind], sampler="euler", **USUAL))


def make_pictures(sd: StableDiffusion, **options) -> np.ndarray:
    """Return the pictures of the prompt, uint8 [B, H, W, 3]."""
    return pictures(sd, sd.generate_latents(PROMPT, seed=7, **options))


def to_diffusers(options: dict) -> dict:
    """Return the options of a generator under the names of diffusers."""
    names = {"num_steps": "num_inference_steps", "cfg_weight": "guidance_scale"}
    return {"seeds": [7], **{names.get(key, key): value for key, value in options.items()}}


@pytest.mark.parametrize(
    ("kind", "name", "schedule"),
    [*(("sd-1", *new) for new in NEW), ("sd-2-v", *NEW[2]), ("sdxl", *NEW[3])],
)
def test_text_to_picture(models, oracle, euler_pictures, kind, name, schedule):
    ours = make_pictures(models[kind], sampler=name, schedule=schedule, **USUAL)
    expected = oracle(kind).pictures(PROMPT, sampler=name, schedule=schedule, **to_diffusers(USUAL))
    assert psnr(ours, expected) >= SAME
    assert expected.std() >= 30  # of 255: they show something
    assert psnr(euler_pictures(kind), expected) < SAME


@pytest.mark.parametrize(
    ("name", "schedule", "strength"),
    [(*NEW[0], 0.7), (*NEW[1], 0.4), (*NEW[2], 0.7), (*NEW[3], 0.2)],
)
def test_image_to_image(models, oracle, name, schedule, strength):
    """One, two or three steps of five are run, from the middle of the schedule."""
    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    options = {"num_steps": 5, "cfg_weight": 3.0, "strength": strength}
    sd = models["sd-1"]
    latents = sd.generate_latents_from_image(
        image, PROMPT, seed=7, sampler=name, schedule=schedule, **options
    )
    expected = oracle("sd-1").pictures_from_image(
        image, PROMPT, sampler=name, schedule=schedule, **to_diffusers(options)
    )
    assert psnr(pictures(sd, latents), expected) >= SAME


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": 0.6, "num_steps": 5}),
        ("euler", {"timesteps": [999, 749, 499, 249, 3]}),
        ("lcm", {"timesteps": [999, 749, 499, 249]}),
    ],
)
def test_eta_and_timesteps_from_a_picture(models, oracle, name, options):
    """Fresh noise follows the noise that the picture gets; strength cuts the timesteps."""
    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    options = {"cfg_weight": 3.0, "strength": 0.7, **options}
    sd = models["sd-1"]
    latents = sd.generate_latents_from_image(image, PROMPT, seed=7, sampler=name, **options)
    assert len(latents) == int(0.7 * len(options.get("timesteps", range(5))))
    expected = oracle("sd-1").pictures_from_image(
        image, PROMPT, sampler=name, **to_diffusers(options)
    )
    assert psnr(pictures(sd, latents), expected) >= SAME


@pytest.mark.parametrize(
    ("kind", "name", "schedule"),
    [("sd-1", "dpm++2m", "karras"), ("sdxl", "euler", None)],
)
def test_guidance_rescale(models, oracle, kind, name, schedule):
    sd, options = models[kind], {**RESCALED, "sampler": name, "schedule": schedule}
    expected = oracle(kind).pictures(
        PROMPT, sampler=name, schedule=schedule, **to_diffusers(RESCALED)
    )
    assert psnr(make_pictures(sd, **options), expected) >= SAME
    assert psnr(make_pictures(sd, **options | {"guidance_rescale": 0.0}), expected) < SAME


def test_guidance_rescale_from_a_picture(models, oracle):
    """With SDXL only: the image-to-image pipeline of SD has no such option in diffusers."""
    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    sd, options = models["sdxl"], {**RESCALED, "strength": 0.7}
    latents = sd.generate_latents_from_image(image, PROMPT, seed=7, sampler="euler", **options)
    expected = oracle("sdxl").pictures_from_image(
        image, PROMPT, sampler="euler", **to_diffusers(options)
    )
    assert psnr(pictures(sd, latents), expected) >= SAME


@pytest.mark.parametrize("name", ["euler", "dpm++2m"])
def test_zero_terminal_snr(models, oracle, name, monkeypatch):
    """A velocity model begins with noise alone, as published: trailing, and rescaled."""
    sd = models["sd-2-v"]
    sampler = Sampler.for_model(replace(sd.diffusion_config, **ZERO_SNR), name)
    ours = make_pictures(sd, sampler=sampler, **RESCALED)
    scheduler = oracle("sd-2-v").scheduler(name, "trailing", rescale_betas_zero_snr=True)
    monkeypatch.setattr(oracle("sd-2-v"), "scheduler", lambda *_: scheduler)
    expected = oracle("sd-2-v").pictures(PROMPT, **to_diffusers(RESCALED))
    assert psnr(ours, expected) >= SAME
    plain = make_pictures(sd, sampler=name, schedule="trailing", **RESCALED)
    assert psnr(plain, expected) < SAME


@pytest.mark.parametrize("name", ["dpm++2m", "lcm"])
def test_a_picture_does_not_depend_on_its_batch(models, name):
    sd = models["sd-1"]
    options = {"num_steps": 3, "cfg_weight": 4.0, "guidance_rescale": 0.5, "sampler": name}
    two = pictures(sd, sd.generate_latents(PROMPT, n_images=2, seed=6, **options))
    assert psnr(make_pictures(sd, **options), two[1:]) >= SAME


def test_steps_and_guidance_of_a_consistency_model(models):
    """The defaults are few steps and no guidance, if the sampler or the model is LCM's."""
    assert len(models["sd-1"].generate_latents(PROMPT)) == 50
    for name in ("lcm", "tcd"):
        assert len(models["sd-1"].generate_latents(PROMPT, sampler=name)) == 4
    config = models["sd-1"].config
    own = replace(config, diffusion=replace(config.diffusion, _class_name="LCMScheduler"))
    for defaults in (config.defaults_with("lcm"), own.defaults, own.defaults_with("euler")):
        assert (defaults.steps, defaults.guidance) == (4, 0)
    assert config.defaults_with("dpm++2m") == config.defaults


def test_the_sampler_of_a_call(models, checkpoint):
    """It may be a name or a `Sampler`, and the constructor's one stays for other calls."""
    sd, options = models["sd-1"], {"num_steps": 3, "cfg_weight": 1.0}
    built = StableDiffusion(checkpoint("sd-1"), sampler="dpm++2m", schedule="karras")
    expected, before = make_pictures(built, **options), sd.sampler
    sampler = Sampler.for_model(sd.diffusion_config, "dpm++2m", "karras")
    plain = Sampler.for_model(sd.diffusion_config, "dpm++2m")
    for given in (
        {"sampler": "dpm++2m", "schedule": "karras"},
        {"sampler": sampler},
        {"sampler": plain, "schedule": "karras"},
    ):
        assert np.array_equal(make_pictures(sd, **given, **options), expected)
    assert not np.array_equal(make_pictures(sd, **options), expected)
    assert sd.sampler is before
    other_schedule = make_pictures(built, schedule="trailing", **options)
    assert np.array_equal(
        other_schedule,
        make_pictures(built, sampler=built.sampler.name, schedule="trailing", **options),
    )
    assert not np.array_equal(other_schedule, expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sampler": "restart"}, ValueError, "sampler must be one of euler, .*, got 'restart'"),
        ({"schedule": "sgm"}, ValueError, "sampler euler has no schedule 'sgm', only trailing"),
        ({"sampler": "ddim", "schedule": "karras"}, ValueError, "ddim has no schedule 'karras'"),
        ({"sampler": 3}, TypeError, "sampler must be text, a Sampler or None, got 3, an int"),
        ({"schedule": 3}, TypeError, "schedule must be text or None, got 3, an int"),
        ({"sampler": "lcm", "num_steps": 60}, ValueError, "steps must be from 1 to 50, got 60"),
    ],
)
def test_the_sampler_of_a_call_is_checked_when_called(models, options, kind, message):
    image = np.zeros((64, 64, 3), np.float32)
    with pytest.raises(kind, match=message):
        models["sd-1"].generate_latents(PROMPT, **options)
    with pytest.raises(kind, match=message):
        models["sd-1"].generate_latents_from_image(image, PROMPT, **options)
