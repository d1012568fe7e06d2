"""Models with another UNet draw diffusers' pictures."""

import numpy as np
import pytest
from oracle import Oracle, psnr
from ours import pictures
from unet_kinds import make_unet, write_unet

from stable_diffusion import StableDiffusion
from stable_diffusion.cli.job import warn_of_no_guidance
from stable_diffusion.model_io.loaders import open_model
from stable_diffusion.pipeline import pipeline_class

PROMPT = "a photo of a café, at night!"
SAME = 45  # dB
# By UNet: the model that it is put into, the sampler, and the guidance.
PICTURES = {
    "bk-sdm-tiny": ("sd-1-published", "euler", 5.0),
    "lcm": ("sd-1-published", "lcm", 8.5),
    "lcm-ssd-1b": ("sdxl-published", "lcm", 8.0),
}


def draw(sd: StableDiffusion, **options) -> np.ndarray:
    return pictures(sd, sd.generate_latents(PROMPT, num_steps=3, seed=7, **options))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_equal_diffusers(name, checkpoint, oracle, tmp_path):
    kind, sampler, guidance = PICTURES[name]
    file = write_unet(name, tmp_path / "unet.safetensors")
    model = open_model(checkpoint(kind), unet=file)
    sd = pipeline_class(model.config)(model, sampler=sampler)
    parts = {name: part for name, part in oracle(kind).single.components.items() if part}
    other = Oracle(checkpoint(kind))
    other.single = other._read(**parts | {"unet": make_unet(name)})
    theirs = other.pictures(
        PROMPT, seeds=[7], sampler=sampler, num_inference_steps=3, guidance_scale=guidance
    )
    ours = draw(sd, cfg_weight=guidance)
    assert psnr(ours, theirs) >= SAME
    assert theirs.std() >= 30  # of 255: they show something
    if sd.config.unet.embeds_guidance:
        assert np.array_equal(draw(sd, cfg_weight=guidance, negative_text="no night"), ours)
        assert psnr(draw(sd, cfg_weight=2.0), ours) < SAME  # the guidance is not ignored


def test_defaults_of_embedded_guidance(checkpoint, tmp_path):
    file = write_unet("lcm", tmp_path / "unet.safetensors")
    config = open_model(checkpoint("sd-1-published"), unet=file).config
    assert (config.defaults.steps, config.defaults.guidance) == (4, 8.5)
    assert not config.needs_second_text(8.5)
    values = {"cfg": 8.5, "image_cfg": None, "negative_prompt": "dog", "guidance_rescale": 0.0}
    values |= {"cfg_range": ()}
    job = type("Job", (), values)
    with pytest.warns(UserWarning, match="--negative_prompt has no effect with this model"):
        warn_of_no_guidance([job], config)
