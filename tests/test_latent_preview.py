"""A linear function that stands for the decoder, to show pictures while they are made."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import psnr

from stable_diffusion import StableDiffusion
from stable_diffusion.images.arrays import to_uint8
from stable_diffusion.latent_preview import LinearDecoder, make_pink_noise

PROMPT = "a small red circle left of a big blue star on a yellow background"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    """Load the embedded model."""
    return StableDiffusion("tiny")


@pytest.fixture(scope="module")
def early(sd) -> tuple[mx.array, mx.array, np.ndarray]:
    """Return x_t and the estimate of x_0 after 2 of 10 steps, and the final pictures."""
    latents = sd.generate_latents(PROMPT, n_images=2, num_steps=10, seed=0)
    steps = [(x_t, latents.estimate) for x_t in latents]
    return *steps[1], to_uint8(np.array(sd.decode(steps[-1][0])))


def decode_whole(sd: StableDiffusion, latents: mx.array) -> np.ndarray:
    """Return the pictures of latents as the VAE decodes them."""
    return to_uint8(np.array(sd.decode(latents)))


def make_linear_decoder(sd: StableDiffusion) -> LinearDecoder:
    """Return a linear decoder that is fitted to the model's VAE."""
    config = sd.config.autoencoder
    return LinearDecoder(sd.decode, config.latent_channels, config.factor)


def test_pink_noise():
    """It has unit variance, is always the same, and at half the frequency four times the power."""
    noise = make_pink_noise((64, 16, 16, 3))
    assert noise.shape == (64, 16, 16, 3) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert np.array_equal(noise, make_pink_noise((64, 16, 16, 3)))
    power = (np.abs(np.fft.fft2(noise, axes=(1, 2))) ** 2).mean(axis=(0, 3))
    assert power[2, 0] / power[4, 0] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_linear_decoder_is_found(channels):
    """It makes 2×2 pixels from a latent and its neighbours, in the right places."""
    rng = np.random.default_rng(0)
    kernel = mx.array(rng.normal(0, 0.02, (2 * 2 * 3, 3, 3, channels)).astype(np.float32))

    def decode(z: mx.array) -> mx.array:
        b, h, w, _ = z.shape
        x = mx.conv2d(mx.pad(z, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge"), kernel) + 0.5
        return x.reshape(b, h, w, 2, 2, 3).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, 3)

    latents = mx.array(rng.standard_normal((2, 5, 7, channels)).astype(np.float32))
    found = LinearDecoder(decode, channels, factor=2)(latents)
    assert found.shape == (2, 10, 14, 3) and found.dtype == np.uint8
    assert abs(found.astype(int) - to_uint8(np.array(decode(latents)))).max() <= 2


def test_a_preview_looks_like_the_picture(sd, early):
    """The correlation is 0.87; with the colour channels shifted it is low."""
    _, estimate, pictures = early
    look = make_linear_decoder(sd)(estimate)
    assert np.corrcoef(look.ravel(), pictures.ravel())[0, 1] >= 0.8
    other = np.roll(pictures, 1, axis=-1)
    assert np.corrcoef(look.ravel(), other.ravel())[0, 1] < 0.5


def test_the_estimate_shows_more_than_the_latents(sd, early):
    x_t, estimate, pictures = early
    assert psnr(decode_whole(sd, estimate), pictures) >= psnr(decode_whole(sd, x_t), pictures) + 5


def test_the_last_estimate_is_where_the_steps_end(sd):
    latents = sd.generate_latents(PROMPT, num_steps=3, seed=0)
    assert latents.estimate is None
    for x_t in latents:
        assert latents.estimate.shape == x_t.shape
    assert mx.allclose(latents.estimate, x_t, atol=1e-5).item()


def test_latents_that_are_not_finite_are_black(sd):
    """A preview does not fail: whether to go on is decided by `overflow`."""
    assert make_linear_decoder(sd)(mx.full((1, 8, 8, 8), mx.nan)).max() == 0
