"""The VAE in strips has the same result as at once, and needs less memory."""

from contextlib import nullcontext
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from gpu import as_on
from oracle import relative_l2
from parity import random_normal

from stable_diffusion import StableDiffusion, attention, vae_strips
from stable_diffusion.config.networks import AutoencoderConfig
from stable_diffusion.device import memory
from stable_diffusion.device.backend import Backend
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


@pytest.mark.parametrize(("strip", "size"), [(1, (5, 9)), (500, (8, 8)), (3000, (5, 9))])
def test_strips_do_not_show(autoencoder, monkeypatch, strip, size):
    """Strips of one row and odd sizes give the same picture."""
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: strip)
    z = random_latents(autoencoder, 2, *size)
    whole = vae_strips.decode(autoencoder, z, tiled=False)
    ours = vae_strips.decode(autoencoder, z, tiled=True)
    assert np.std(np.array(whole)) > 0.3
    assert relative_l2(ours, whole) <= 1e-5
    assert compute_psnr(ours, whole) >= 90


@pytest.mark.parametrize(
    ("strip", "size", "device"),
    [
        (1, (37, 53), None),
        (500, (64, 64), Backend.METAL),
        (3000, (37, 53), Backend.METAL),
    ],
)
def test_strips_of_the_encoder_do_not_show(autoencoder, monkeypatch, strip, size, device):
    """Strips of two rows, odd sizes, and attention in many parts give the same latents."""
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: strip)
    monkeypatch.setattr(attention, "choose_score_bytes", lambda: 5000)
    x = mx.array(random_normal(2, *size, 3).clip(-1, 1))
    with nullcontext() if device is None else as_on(device):
        whole = vae_strips.encode(autoencoder, x, tiled=False)
        ours = vae_strips.encode(autoencoder, x, tiled=True)
    for one, other in zip(ours, whole, strict=True):
        assert np.std(np.array(other)) > 0.01
        assert relative_l2(one, other) <= 1e-5
        assert compute_psnr(one, other) >= 90


def test_strips_in_half_precision(monkeypatch):
    """The norms of strips are computed in float32, which may even be closer to float32."""
    exact, half = load_autoencoder("tiny"), load_autoencoder("tiny", vae_float16=True)
    monkeypatch.setattr(memory, "choose_strip_pixels", lambda _: 500)
    z, x = random_latents(exact, 1, 8, 9), mx.array(random_normal(1, 64, 72, 3).clip(-1, 1))
    with as_on(Backend.METAL):
        assert half.dtype == mx.float16
        for tiled in (False, True):
            picture, latents = (
                vae_strips.decode(half, z, tiled),
                vae_strips.encode(half, x, tiled)[0],
            )
            assert picture.dtype == latents.dtype == mx.float32
            assert compute_psnr(picture, exact.decode(z)) >= 50
            assert compute_psnr(latents, exact.encode(x)[0]) >= 50


def test_a_gpu_waits_once_for_the_statistics_of_a_norm():
    """A large mean costs no digits: the variance is that of the differences from it."""
    norm = load_autoencoder("tiny").decoder.conv_norm_out
    x = mx.array(random_normal(1, 16, 8, len(norm.weight))) + 300
    strips = [x[:, top : top + 2] for top in range(0, 16, 2)]
    mx.eval(strips)
    with as_on(Backend.METAL), mock.patch.object(mx, "eval", wraps=mx.eval) as evaluate:
        normalize = vae_strips._make_norm(norm, strips)
        assert evaluate.call_count == 1
        assert relative_l2(normalize(x), norm(x)) <= 1e-4
        half = x.astype(mx.float16)
        normalize = vae_strips._make_norm(norm, [half[:, :7], half[:, 7:]])
        ours = normalize(half)
    assert ours.dtype == mx.float16
    assert relative_l2(ours, norm(half.astype(mx.float32))) <= 1e-3


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


@pytest.fixture
def in_strips(monkeypatch) -> list[str]:
    """Return a list that gets the name of the function for each picture that is in strips."""
    called: list[str] = []
    for name in ("_decode_picture", "_encode_picture"):
        function = getattr(vae_strips, name)

        def noted(*args, name=name, function=function):
            called.append(name)
            return function(*args)

        monkeypatch.setattr(vae_strips, name, noted)
    return called


def test_large_pictures_are_encoded_in_strips_unasked(monkeypatch, in_strips):
    """The encoder's layers are half as large as the decoder's."""
    sd = StableDiffusion("tiny")
    monkeypatch.setattr(memory, "choose_whole_pixels", lambda _: 32 * 64)
    options = {"n_images": 1, "num_steps": 2, "seed": 1}
    for height, expected in ((64, []), (72, ["_encode_picture"])):
        in_strips.clear()
        image = random_normal(height, 64, 3).clip(-1, 1)
        latents = sd.generate_latents_from_image(image, "a red circle", **options)
        assert in_strips == expected
        mean, _ = sd.autoencoder.encode(mx.array(image)[None])
        assert relative_l2(latents.inputs[-1], mean) <= 1e-5


def test_a_gpu_computes_at_once_what_fits_into_its_memory(monkeypatch, in_strips):
    autoencoder = load_autoencoder("tiny")
    z = random_latents(autoencoder, 2, 8, 8)
    bytes_of_both = 2 * 64 * 64 * memory.WHOLE_NUMBERS * 4 / memory.WHOLE_SHARE
    with as_on(Backend.METAL):
        for factor, n_in_strips in ((1.01, 0), (0.99, 2)):
            in_strips.clear()
            monkeypatch.setattr(memory, "read_total_memory", lambda f=factor: f * bytes_of_both)
            vae_strips.decode(autoencoder, z)
            assert len(in_strips) == n_in_strips
        # Half precision takes half of the memory.
        in_strips.clear()
        vae_strips.decode(load_autoencoder("tiny", vae_float16=True), z)
        assert in_strips == []


def test_strips_are_sized_for_the_memory(monkeypatch):
    for size in (8e9, 64e9):
        monkeypatch.setattr(memory, "read_total_memory", lambda size=size: size)
        assert (memory.choose_strip_pixels(4), memory.choose_whole_pixels(4)) == (2**15, 768**2)
        with as_on(Backend.METAL):
            assert memory.choose_strip_pixels(4) * memory.STRIP_NUMBERS * 4 <= size / 16
            assert memory.choose_strip_pixels(2) == 2 * memory.choose_strip_pixels(4)
            assert memory.choose_strip_pixels(4) >= 45_000


def test_half_precision_latents(monkeypatch):
    """The VAE computes in float32, also in strips."""
    sd = StableDiffusion("tiny")
    x = random_latents(sd.autoencoder, 1, 8, 8).astype(mx.float16)
    assert sd.decode(x, tiled=True).dtype == mx.float32
    assert relative_l2(sd.decode(x, tiled=True), sd.decode(x)) <= 1e-5
