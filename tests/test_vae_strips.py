"""Decoding in strips has the same result as decoding at once, and needs less memory."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import relative_l2
from parity import random_normal

from stable_diffusion import StableDiffusion, vae_strips
from stable_diffusion.config.networks import AutoencoderConfig
from stable_diffusion.device import memory
from stable_diffusion.model_io.loaders import load_autoencoder
from stable_diffusion.vae import Autoencoder

VISIBLE = 45  # dB: with less, pictures from 0 to 1 differ visibly


def compute_psnr(ours: mx.array, theirs: mx.array) -> float:
    """Return the peak signal-to-noise ratio, in dB, of pictures about in [-1, 1]."""
    ours, theirs = (np.clip(np.array(x, dtype=np.float64) / 2 + 0.5, 0, 1) for x in (ours, theirs))
    return float(-10 * np.log10(max(np.mean((ours - theirs) ** 2), 1e-20)))


def random_latents(autoencoder: Autoencoder, *shape: int) -> mx.array:
    return mx.array(random_normal(*shape, autoencoder.config.latent_channels))


@pytest.fixture(params=["tiny", "sd-1", "unusual"])
def autoencoder(request, checkpoint) -> Autoencoder:
    name = request.param
    return load_autoencoder(name if name == "tiny" else checkpoint(name))


@pytest.mark.parametrize("strip", [1, 500, 3000])
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_strips_do_not_show(autoencoder, monkeypatch, strip, size):
    """They do not, with strips of one row, odd sizes, and attention in many parts."""
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: strip)
    monkeypatch.setattr(vae_strips, "MAX_SCORES", 500)
    z = random_latents(autoencoder, 2, *size)
    whole = vae_strips.decode(autoencoder, z, tiled=False)
    ours = vae_strips.decode(autoencoder, z, tiled=True)
    assert np.std(np.array(whole)) > 0.3
    assert relative_l2(ours, whole) <= 1e-5
    assert compute_psnr(ours, whole) >= 90


def test_a_single_strip(autoencoder):
    z = random_latents(autoencoder, 1, 8, 8)
    assert relative_l2(vae_strips.decode(autoencoder, z, tiled=True), autoencoder.decode(z)) <= 1e-5


@pytest.mark.parametrize("what", ["statistics", "neighbours"])
def test_what_strips_lack_would_show(monkeypatch, what):
    """With the statistics of one strip, or without the rows next to it, the result is wrong."""
    autoencoder = load_autoencoder("tiny")
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: 500)
    if what == "statistics":
        monkeypatch.setattr(vae_strips, "_make_norm", lambda norm, _: norm)
    else:
        monkeypatch.setattr(vae_strips, "_convolve", convolve_alone)
    z = random_latents(autoencoder, 1, 8, 8)
    ours = vae_strips.decode(autoencoder, z, tiled=True)
    assert compute_psnr(ours, autoencoder.decode(z)) < VISIBLE


def convolve_alone(strips, convolution, scale=1):
    """Convolve each strip without the rows next to it."""
    while strips:
        strip = strips.pop(0)
        yield convolution(strip), strip


def make_autoencoder() -> Autoencoder:
    """Return a VAE like that of the real models, a quarter as wide, with random weights."""
    config = AutoencoderConfig(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
    )
    mx.random.seed(0)
    autoencoder = Autoencoder(config)
    mx.eval(autoencoder.parameters())
    return autoencoder


def test_peak_memory(monkeypatch):
    """It holds the largest layer, the input of the last block, and one strip."""
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: 2**11)
    autoencoder = make_autoencoder()
    z = random_latents(autoencoder, 1, 32, 32)
    largest_layer = 256 * 256 * 64 * 4
    peaks = {}
    for tiled in (False, True):
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(vae_strips.decode(autoencoder, z, tiled))
        peaks[tiled] = (mx.get_peak_memory() - before) / largest_layer
    assert peaks[True] < 3
    assert peaks[True] < peaks[False] / 2


def test_large_pictures_are_decoded_in_strips_unasked(monkeypatch):
    sd = StableDiffusion("tiny")
    in_strips = []
    decode = vae_strips._decode_picture
    monkeypatch.setattr(
        vae_strips, "_decode_picture", lambda *args: in_strips.append(1) or decode(*args)
    )
    monkeypatch.setattr(memory, "choose_whole_pixels", lambda _: 64 * 64)
    small, large = random_latents(sd.autoencoder, 1, 8, 8), random_latents(sd.autoencoder, 1, 8, 9)
    for x, tiled, expected in (
        (small, None, 0),
        (large, None, 1),
        (small, True, 1),
        (large, False, 0),
    ):
        in_strips.clear()
        picture = sd.decode(x, tiled)
        assert len(in_strips) == expected
        assert picture.shape == (1, 64, 8 * x.shape[2], 3)
        assert 0 <= picture.min().item() <= picture.max().item() <= 1


def test_half_precision_latents(monkeypatch):
    """The VAE computes in float32, also in strips."""
    sd = StableDiffusion("tiny")
    x = random_latents(sd.autoencoder, 1, 8, 8).astype(mx.float16)
    assert sd.decode(x, tiled=True).dtype == mx.float32
    assert relative_l2(sd.decode(x, tiled=True), sd.decode(x)) <= 1e-5
