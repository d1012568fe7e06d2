"""The VAE in half precision: only if it is asked for, and if the model allows it."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import edit
from gpu import as_on
from oracle import psnr
from parity import random_normal
from PIL import Image

import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL, overflow
from stable_diffusion.cli.arguments import parse
from stable_diffusion.device import cpu_kernels
from stable_diffusion.device.backend import Backend
from stable_diffusion.images.text_chunks import RECIPE, read_texts
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.overflow import RecomputeWarning

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
IMAGE = random_normal(64, 64, 3).clip(-1, 1)
OPTIONS = {"n_images": 1, "num_steps": 2, "cfg_weight": 0.0, "seed": 5}


def widen_range(tensors: dict) -> None:
    """Let numbers inside the decoder and the encoder exceed half precision, but not the results."""
    for network, layer in (("decoder", "up_blocks.0"), ("encoder", "down_blocks.0")):
        name = f"{network}.{layer}.resnets.0"
        for parameter in ("weight", "bias"):
            tensors[f"{name}.conv1.{parameter}"] *= 1e6  # before a norm


def set_force_upcast(folder: Path, value: bool | None) -> Path:
    """Write `force_upcast` into the config of a VAE, or take it out."""
    file = folder / "vae/config.json"
    config = json.loads(file.read_text()) | {"force_upcast": value}
    if value is None:
        del config["force_upcast"]
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["sd-1", "sd-2"])
def test_half_precision_is_close_to_float32(checkpoint, kind):
    half, full = (StableDiffusion(checkpoint(kind), vae_float16=half) for half in (True, False))
    assert half.autoencoder.decoder.conv_in.weight.dtype == mx.float16
    assert half.unet.conv_in.weight.dtype == mx.float32
    z = mx.array(random_normal(1, 4, 5, half.config.autoencoder.latent_channels))
    with as_on(Backend.METAL):
        assert half.autoencoder.dtype == mx.float16
        ours, theirs = half.decode(z), full.decode(z)
        encoded = half.autoencoder.encode(mx.array(IMAGE)[None])
    assert ours.dtype == encoded[0].dtype == encoded[1].dtype == mx.float32
    assert 45 < psnr(np.array(ours) * 255, np.array(theirs) * 255) < 100  # not in float32


def test_a_cpu_computes_in_float32(checkpoint):
    """The weights are stored in half precision; the numbers are those of widened weights."""
    half = StableDiffusion(checkpoint("sd-1"), vae_float16=True).autoencoder
    exact = StableDiffusion(checkpoint("sd-1")).autoencoder
    exact.apply(lambda weight: weight.astype(mx.float16).astype(mx.float32))
    z = mx.array(random_normal(1, 4, 5, half.config.latent_channels))
    assert half.dtype == cpu_kernels.compute_dtype(mx.float16)
    if cpu_kernels.is_used():
        assert mx.array_equal(half.decode(z), exact.decode(z)).item()


@pytest.mark.parametrize(("value", "is_allowed"), [(True, False), (None, False), (False, True)])
def test_sdxl_needs_a_vae_that_allows_it(copy, value, is_allowed):
    folder = set_force_upcast(copy("sdxl"), value)
    assert load_model_config(folder).autoencoder.force_upcast is not (value is False)
    if is_allowed:
        sd = StableDiffusionXL(folder, vae_float16=True)
        assert sd.autoencoder.decoder.conv_in.weight.dtype == mx.float16
    else:
        with pytest.raises(ValueError, match="not made for half precision.*force_upcast: false"):
            StableDiffusionXL(folder, vae_float16=True)
        assert not StableDiffusionXL(folder).vae_float16


def test_other_models_do_not_ask_the_config(copy):
    """Configs of SD 1.x and 2.x may say `force_upcast`, which diffusers reads for SDXL only."""
    folder = set_force_upcast(copy("sd-1"), True)
    assert StableDiffusion(folder, vae_float16=True).vae_float16


@pytest.mark.parametrize("tiled", [None, True])
def test_pictures_are_decoded_again_in_float32(copy, tiled):
    folder = copy("sd-1")
    edit(folder / VAE_FILE, widen_range)
    sd, exact = StableDiffusion(folder, vae_float16=True), StableDiffusion(folder)
    z = mx.array(random_normal(1, 8, 8, sd.config.autoencoder.latent_channels))
    with as_on(Backend.METAL):
        assert not overflow.is_finite(sd.decode(z, tiled))
        with pytest.warns(RecomputeWarning, match="the pictures are not finite") as caught:
            pictures = overflow.decode_checked(sd, z, tiled)
        assert overflow.is_finite(overflow.decode_checked(sd, z, tiled))  # without a warning
    (warning,) = [each.message for each in caught]
    assert (warning.gives_up_float16, warning.gives_up_vae_float16) == (False, True)
    assert (sd.vae_float16, sd.autoencoder.dtype) == (False, mx.float32)
    assert psnr(np.array(pictures) * 255, np.array(exact.decode(z)) * 255) > 80


def test_a_picture_is_encoded_again_in_float32(copy):
    folder = copy("sd-1")
    edit(folder / VAE_FILE, widen_range)
    sd, exact = StableDiffusion(folder, vae_float16=True), StableDiffusion(folder)
    with as_on(Backend.METAL):
        with pytest.warns(RecomputeWarning, match="picture to start from are not finite"):
            latents = overflow.start_checked(
                sd, lambda: sd.generate_latents_from_image(IMAGE, "a cat", **OPTIONS)
            )
        assert overflow.is_finite(*latents.inputs)
    assert not sd.vae_float16
    expected = exact.autoencoder.encode(mx.array(IMAGE)[None])[0]
    assert mx.allclose(latents.inputs[-1], expected, atol=1e-4).item()


def test_constant_pictures_are_decoded_again_in_float32(checkpoint, monkeypatch):
    """A number that is too small for half precision becomes zero."""
    sd = StableDiffusion(checkpoint("sd-1"), vae_float16=True)
    z = mx.array(random_normal(1, 8, 8, sd.config.autoencoder.latent_channels))
    conv = sd.autoencoder.decoder.conv_out
    conv.weight, conv.bias = mx.zeros_like(conv.weight), mx.zeros_like(conv.bias)
    with pytest.warns(RecomputeWarning, match="the pictures are constant in half precision"):
        pictures = overflow.decode_checked(sd, z)
    assert not overflow.is_constant(pictures).any().item()


def test_use_float32_loads_the_vae_again(checkpoint):
    sd = StableDiffusion(checkpoint("sd-1"), True, vae_float16=True)
    sd.use_float32()
    assert (sd.float16, sd.vae_float16) == (False, False)
    exact = StableDiffusion(checkpoint("sd-1")).autoencoder
    weights = [each.decoder.conv_in.weight for each in (sd.autoencoder, exact)]
    assert mx.array_equal(*weights).item()
    unchanged = sd.autoencoder
    sd.use_float32()
    assert sd.autoencoder is unchanged
    sd = StableDiffusion(checkpoint("sd-1"), vae_float16=True)
    del sd.autoencoder
    sd.use_float32_vae()
    assert not hasattr(sd, "autoencoder")


def draw(folder: Path, *options: str) -> Path:
    """Make a picture with `txt2image.py` and return its file."""
    file = folder / "o.png"
    common = ["a cat", "--steps=1", "--n_images=1", "--cfg=0", "--seed=5", f"--output={file}"]
    assert txt2image.main([*common, *options]) == 0
    return file


def test_the_option(checkpoint, tmp_path, monkeypatch):
    """Recipes have it if it is on; without it they are as they were before there was the option."""
    made = []
    monkeypatch.setattr(
        StableDiffusion,
        "decode",
        lambda sd, *args, decode=StableDiffusion.decode: (
            made.append(sd.vae_float16) or decode(sd, *args)
        ),
    )
    model = f"--model={checkpoint('sd-1')}"
    file = draw(tmp_path, model, "--vae-float16")
    assert np.asarray(Image.open(file)).std() > 5
    assert json.loads(read_texts(file)[RECIPE])["vae_float16"] is True
    again = parse.parse(parse.txt2image_parser(), ["--from-image", str(file)])
    assert again.vae_float16
    file.unlink()
    file = draw(tmp_path, model)
    assert "vae_float16" not in json.loads(read_texts(file)[RECIPE])
    assert made == [True, False]


def test_the_scripts_refuse_what_overflows(checkpoint, tmp_path, capsys):
    arguments = ["a cat", "--model", str(checkpoint("sdxl")), "--vae-float16", "--n_images=1"]
    assert txt2image.main([*arguments, "--output", str(tmp_path / "o.png")]) == 1
    assert "is not made for half precision" in capsys.readouterr().err
