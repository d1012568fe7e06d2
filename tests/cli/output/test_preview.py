"""`preview.py`: a linear function that stands for the decoder, and the file that it fills."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from oracle import psnr
from PIL import Image

import image2image
import txt2image
from stable_diffusion import StableDiffusion, latent_preview
from stable_diffusion.cli.output.preview import Preview
from stable_diffusion.images.arrays import to_uint8
from stable_diffusion.latent_preview import LinearDecoder, make_pink_noise

PROMPT = "a small red circle left of a big blue star on a yellow background"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion("tiny")


@pytest.fixture(scope="module")
def early(sd) -> tuple[mx.array, mx.array, np.ndarray]:
    """x_t and the estimate of x_0 after 2 of 10 steps, and the pictures in the end."""
    latents = sd.generate_latents(PROMPT, n_images=2, num_steps=10, seed=0)
    steps = [(x_t, latents.estimate) for x_t in latents]
    return *steps[1], to_uint8(np.array(sd.decode(steps[-1][0])))


def whole(sd: StableDiffusion, latents: mx.array) -> np.ndarray:
    return to_uint8(np.array(sd.decode(latents)))


def linear(sd: StableDiffusion) -> LinearDecoder:
    config = sd.config.autoencoder
    return LinearDecoder(sd.decode, config.latent_channels, config.factor)


def test_pink_noise():
    """Of unit variance, always the same, and four times the power at half the frequency."""
    noise = make_pink_noise((64, 16, 16, 3))
    assert noise.shape == (64, 16, 16, 3) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert np.array_equal(noise, make_pink_noise((64, 16, 16, 3)))
    power = (np.abs(np.fft.fft2(noise, axes=(1, 2))) ** 2).mean(axis=(0, 3))
    assert power[2, 0] / power[4, 0] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_linear_decoder_is_found(channels):
    """One that makes 2×2 pixels of a latent and its neighbours, in the right places."""
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
    """Measured: a correlation of 0.87, where colours of neighbours at random have none."""
    _, estimate, pictures = early
    look = linear(sd)(estimate)
    assert np.corrcoef(look.ravel(), pictures.ravel())[0, 1] >= 0.8
    other = np.roll(pictures, 1, axis=-1)
    assert np.corrcoef(look.ravel(), other.ravel())[0, 1] < 0.5


def test_the_estimate_shows_more_than_the_latents(sd, early):
    x_t, estimate, pictures = early
    assert psnr(whole(sd, estimate), pictures) >= psnr(whole(sd, x_t), pictures) + 5


def test_the_last_estimate_is_where_the_steps_end(sd):
    latents = sd.generate_latents(PROMPT, num_steps=3, seed=0)
    assert latents.estimate is None
    for x_t in latents:
        assert latents.estimate.shape == x_t.shape
    assert mx.allclose(latents.estimate, x_t, atol=1e-5).item()


def draw(output: Path, *options: str, script=txt2image, inputs=(PROMPT,)) -> np.ndarray:
    arguments = [*map(str, inputs), "--model", "tiny", "--n_images", "2", "--seed", "1"]
    assert script.main([*arguments, "--output", str(output), *options]) == 0
    return np.asarray(Image.open(output))


@pytest.fixture
def written(monkeypatch) -> list[tuple[Path, np.ndarray]]:
    """Every preview, as its file has it."""
    found = []

    def save_image(path: Path, image: np.ndarray, save=latent_preview.save_image) -> None:
        save(path, image)
        found.append((path, np.asarray(Image.open(path))))

    monkeypatch.setattr(latent_preview, "save_image", save_image)
    return found


def test_previews_change_nothing(tmp_path, written):
    """Steps 2 and 4 of 6 are shown, not 6; in the end the file is gone."""
    usual = draw(tmp_path / "a.png", "--steps", "6")
    picture = draw(tmp_path / "b.png", "--steps", "6", "--preview", "2")
    assert np.array_equal(picture, usual)
    assert [path for path, _ in written] == [tmp_path / "b.preview.png"] * 2
    assert all(image.shape == picture.shape for _, image in written)
    assert not np.array_equal(written[0][1], written[1][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_by_the_whole_vae(tmp_path, written):
    """The last but one step shows nearly what will be; nearer than a linear function does."""
    picture = draw(tmp_path / "o.png", "--steps", "5", "--preview", "4")
    draw(tmp_path / "o.png", "--steps", "5", "--preview", "4", "--preview-vae")
    (_, linear), (_, whole) = written
    assert psnr(whole, picture) >= 30 >= 20 >= psnr(linear, picture) >= 10


def test_beside_pictures_in_a_folder(tmp_path, written):
    """A folder that is not there yet; from a picture, too."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "i.png")
    inputs = [tmp_path / "i.png", PROMPT, "--strength", "0.5", "--steps", "4", "--preview", "1"]
    arguments = [*map(str, inputs), "--model", "tiny", "--output", f"{tmp_path / 'new'}/"]
    assert image2image.main([*arguments, "--n_images", "1"]) == 0
    assert [path for path, _ in written] == [tmp_path / "new/now.preview.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["0001.png"]


def test_rows_that_do_not_come_out_even(tmp_path):
    """Three pictures of a batch, where the grid of all will have two rows."""
    path = tmp_path / "p.png"
    it = Preview(path, 1, 2, lambda x: np.zeros((len(x), 8, 8, 3), np.uint8))
    it.show(1, 2, mx.zeros((3, 1, 1, 4)))
    assert Image.open(path).size == (3 * 24, 24)
    it.remove()
    it.remove()
    assert not path.exists()


def test_what_is_not_finite_is_shown(sd):
    """As black: whether to go on is not a preview's to say."""
    assert linear(sd)(mx.full((1, 8, 8, 8), mx.nan)).max() == 0
