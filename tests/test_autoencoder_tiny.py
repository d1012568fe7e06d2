"""TAESD equals diffusers' AutoencoderTiny: the network in float64, and pictures of pipelines."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import Oracle, channels_first, channels_last, psnr, relative_l2
from parity import random_normal
from tiny_vaes import make_tiny_vae, write_folder, write_half, write_model

from stable_diffusion import StableDiffusion, vae_strips
from stable_diffusion.autoencoder_tiny import AutoencoderTiny
from stable_diffusion.config.autoencoder_tiny import read_vae_config
from stable_diffusion.device import cpu_kernels, memory
from stable_diffusion.images.arrays import to_uint8
from stable_diffusion.latent_preview import decode_by_vae
from stable_diffusion.model_io.layouts import AUTOENCODER
from stable_diffusion.model_io.loaders import load_autoencoder, load_model_config
from stable_diffusion.model_io.weights import load_weights
from stable_diffusion.pipeline import pipeline_class

ERROR = 1e-5
SAME = 45  # dB
PROMPT = "a photo of a cat"


def load_both(folder: Path, **options) -> tuple[AutoencoderTiny, torch.nn.Module]:
    """Return this package's network and diffusers' in float64, with the same weights."""
    theirs = make_tiny_vae(**options)
    theirs.save_pretrained(folder)
    ours = AutoencoderTiny(read_vae_config(dict(theirs.config), "config"))
    file = folder / "diffusion_pytorch_model.safetensors"
    load_weights(ours, [file], AUTOENCODER, mx.float32)
    theirs = type(theirs).from_pretrained(folder, torch_dtype=torch.float64)
    return ours, theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act_fn": "silu", "latent_channels": 6, "scaling_factor": 0.5},
        {
            "encoder_block_out_channels": (12, 12),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (0, 2),
            "num_decoder_blocks": (1, 3),
        },
    ],
    ids=["published", "other options", "two levels"],
)
@pytest.mark.parametrize("uses_kernels", [True, False])
def test_the_network(tmp_path, monkeypatch, options, uses_kernels):
    """Whole and in strips, with the kernels of a Linux CPU and with MLX's operations."""
    if not uses_kernels:
        monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    ours, theirs = load_both(tmp_path, **options)
    scale, factor = ours.config.scaling_factor, ours.config.factor
    monkeypatch.setattr(memory, "CPU_STRIP_PIXELS", 40)
    z = random_normal(2, 5, 7, ours.latent_channels) * 2
    x = np.tanh(random_normal(2, 6 * factor, 5 * factor, 3))
    with torch.no_grad():
        decoded = channels_last(theirs.decode(channels_first(z) / scale).sample)
        encoded = channels_last(theirs.encode(channels_first(x)).latents) * scale
    for tiled in (False, True):
        assert relative_l2(vae_strips.decode(ours, mx.array(z), tiled), decoded) <= ERROR
        mean, logvar = vae_strips.encode(ours, mx.array(x), tiled)
        assert relative_l2(mean, encoded) <= ERROR
        assert logvar.shape == mean.shape and logvar.max().item() < -20  # without noise


def test_half_precision(tmp_path, monkeypatch):
    """It computes in half precision, and extreme latents do not overflow."""
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    full = load_autoencoder_of(tmp_path)
    half = load_autoencoder_of(tmp_path, vae_float16=True)
    assert half.dtype == mx.float16
    z = mx.array(random_normal(1, 4, 4, 4))
    assert half.decoder(half.unscale(z)).dtype == mx.float16
    assert relative_l2(half.decode(z), full.decode(z)) < 1e-2
    assert mx.isfinite(half.decode(z * 1e4)).all()


def load_autoencoder_of(folder: Path, **options) -> AutoencoderTiny:
    """Load the tiny VAE of a model in the same folder."""
    if not (folder / "vae").exists():
        write_folder(folder / "vae")
    return load_autoencoder(folder, **options)


@pytest.mark.parametrize(("kind", "is_whole"), [("sd-1", True), ("sdxl", False)])
def test_pictures(checkpoint, tmp_path, kind, is_whole):
    """Of a model with a tiny VAE, and of one that gets it by `vae=`; previews decode the same.

    The other scaling factor of SDXL has no effect.
    """
    model = write_model(checkpoint(kind), tmp_path / kind)
    options = {"guidance_scale": 4.0, "num_inference_steps": 2, "height": 64, "width": 64}
    theirs = Oracle(model).pictures(PROMPT, seeds=[3], sampler="euler", **options)
    own, vae = (model, None) if is_whole else (checkpoint(kind), model)
    sd = pipeline_class(load_model_config(own))(own, vae=vae)
    latents = sd.generate_latents(
        PROMPT, cfg_weight=4, num_steps=2, seed=3, latent_size=(8, 8), sampler="euler"
    )
    for x in latents:
        mx.eval(x)
    picture = to_uint8(np.array(sd.decode(x)))
    assert psnr(picture, theirs) >= SAME
    assert np.array_equal(decode_by_vae(sd.autoencoder, x), picture)


def test_pictures_from_a_picture(checkpoint, tmp_path):
    model = write_model(checkpoint("sd-1"), tmp_path / "model")
    image = np.tanh(random_normal(64, 64, 3)).astype(np.float32)
    options = {"guidance_scale": 4.0, "num_inference_steps": 4, "strength": 0.5}
    theirs = Oracle(model).pictures_from_image(image, PROMPT, seeds=[3], sampler="euler", **options)
    sd = StableDiffusion(model)
    latents = sd.generate_latents_from_image(
        image, PROMPT, strength=0.5, cfg_weight=4, num_steps=4, seed=3, sampler="euler"
    )
    for x in latents:
        mx.eval(x)
    assert psnr(to_uint8(np.array(sd.decode(x))), theirs) >= SAME


def test_a_decoder_alone(checkpoint, tmp_path):
    """It makes pictures of text; a picture to start from needs the encoder beside it."""
    decoder = write_half("decoder", tmp_path / "taesd_decoder.safetensors")
    sd = StableDiffusion(checkpoint("sd-1"), vae=decoder)
    assert sd.decode(mx.zeros((1, 8, 8, 4))).shape == (1, 64, 64, 3)
    image = mx.zeros((64, 64, 3))
    with pytest.raises(ValueError, match=r"decoder alone.*put taesd_encoder\.safetensors beside"):
        sd.generate_latents_from_image(image, PROMPT)
    write_half("encoder", tmp_path / "taesd_encoder.safetensors")
    sd = StableDiffusion(checkpoint("sd-1"), vae=decoder)
    sd.generate_latents_from_image(image, PROMPT, num_steps=2)
