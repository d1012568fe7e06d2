"""Models for inpainting and for editing are refused without the pictures that they need."""

from dataclasses import replace

import numpy as np
import pytest
from kinds import EDITING, INPAINTING

from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.check_task import check_task
from stable_diffusion.model_io.loaders import load_model_config

IMAGE = np.zeros((64, 64, 3), np.float32)


@pytest.mark.parametrize(
    ("in_channels", "given", "message"),
    [
        (4, {}, None),
        (4, {"has_image": True, "has_mask": True}, None),
        (9, {}, "is an inpainting model, which needs a picture and a mask: give both to "),
        (9, {"has_image": True}, "is an inpainting model, which needs a picture and a mask"),
        (9, {"has_image": True, "has_mask": True}, None),
        (8, {}, "is an editing model, which needs a picture: give one to generate_latents_from"),
        (8, {"has_image": True}, None),
        (8, {"has_image": True, "has_mask": True}, "changes the whole picture: leave the mask"),
    ],
)
def test_check_task(checkpoint, in_channels, given, message):
    config = load_model_config(checkpoint("sd-1"))
    config = replace(config, unet=replace(config.unet, in_channels=in_channels))
    if message is None:
        check_task(config, **given)
    else:
        with pytest.raises(ValueError, match=message):
            check_task(config, **given)


def test_generators_refuse_at_once(checkpoint):
    inpainting = StableDiffusion(checkpoint(f"sd-1{INPAINTING}"))
    with pytest.raises(ValueError, match="needs a picture and a mask"):
        inpainting.generate_latents("a house")
    with pytest.raises(ValueError, match="needs a picture and a mask"):
        inpainting.generate_latents_from_image(IMAGE, "a house")
    with pytest.raises(ValueError, match="is an editing model, which needs a picture"):
        StableDiffusionXL(checkpoint(f"sdxl{EDITING}")).generate_latents("a house")
