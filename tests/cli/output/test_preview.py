"""The file that shows pictures while they are being made."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import psnr
from PIL import Image
from tiny_vaes import make_tiny_vae, write_folder

import image2image
import txt2image
from stable_diffusion import StableDiffusion
from stable_diffusion.cli.output import preview
from stable_diffusion.cli.output.preview import Preview
from stable_diffusion.images.arrays import make_grid, to_uint8

PROMPT = "a small red circle left of a big blue star on a yellow background"


def draw(output: Path, *options: str, script=txt2image, inputs=(PROMPT,)) -> np.ndarray:
    """Run the script for two pictures, and return their grid."""
    arguments = [*map(str, inputs), "--model", "tiny", "--n_images", "2", "--seed", "1"]
    assert script.main([*arguments, "--output", str(output), *options]) == 0
    return np.asarray(Image.open(output))


@pytest.fixture
def written(monkeypatch) -> list[tuple[Path, np.ndarray]]:
    """Collect the previews that are written, each as its file shows it."""
    found = []

    def save_image(path: Path, image: np.ndarray, save=preview.save_image) -> None:
        save(path, image)
        found.append((path, np.asarray(Image.open(path))))

    monkeypatch.setattr(preview, "save_image", save_image)
    return found


def test_previews_change_nothing(tmp_path, written):
    """Steps 2 and 4 of 6 are shown, but not 6; at the end the file is deleted."""
    usual = draw(tmp_path / "a.png", "--steps", "6")
    picture = draw(tmp_path / "b.png", "--steps", "6", "--preview", "2")
    assert np.array_equal(picture, usual)
    assert [path for path, _ in written] == [tmp_path / "b.preview.png"] * 2
    assert all(image.shape == picture.shape for _, image in written)
    assert not np.array_equal(written[0][1], written[1][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_whole_vae_decodes_it(tmp_path, written):
    """After the last step but one the VAE shows almost the picture, a linear decoder less so."""
    picture = draw(tmp_path / "o.png", "--steps", "5", "--preview", "4")
    draw(tmp_path / "o.png", "--steps", "5", "--preview", "4", "--preview-vae")
    (_, linear), (_, whole) = written
    assert psnr(whole, picture) >= 30 >= 20 >= psnr(linear, picture) >= 10


def test_a_tiny_vae_decodes_it(checkpoint, tmp_path, written):
    """It equals diffusers' decoding of the estimate; pictures stay as they are."""
    vae = write_folder(tmp_path / "vae")
    model = ["--model", str(checkpoint("sd-1")), "--steps", "3", "--width", "64", "--height", "64"]
    usual = draw(tmp_path / "a.png", *model)
    # The prompt is last, so that the VAE is the value of the option.
    words = [*model, "--preview", "2", "--preview-vae", str(vae)]
    arguments = ["--n_images", "2", "--seed", "1", "--output", str(tmp_path / "b.png")]
    assert txt2image.main([*arguments, *words, PROMPT]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), usual)
    [(_, shown)] = written

    sd = StableDiffusion(checkpoint("sd-1"))
    latents = sd.generate_latents(PROMPT, n_images=2, num_steps=3, seed=1, latent_size=(8, 8))
    for _, x in zip(range(2), latents, strict=False):
        mx.eval(x)
    estimate = torch.from_numpy(np.array(latents.estimate)).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = make_tiny_vae().decode(estimate).sample.permute(0, 2, 3, 1).numpy()
    assert psnr(shown, make_grid(to_uint8(theirs / 2 + 0.5), 1)) >= 45

    draw(tmp_path / "c.png", *model, "--preview", "2", "--vae", str(vae))
    assert psnr(written[-1][1], shown) >= 45  # the tiny VAE of the pictures decodes previews, too


def test_beside_pictures_in_a_folder(tmp_path, written):
    """The folder does not exist before, and the picture starts from another one."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "i.png")
    inputs = [tmp_path / "i.png", PROMPT, "--strength", "0.5", "--steps", "4", "--preview", "1"]
    arguments = [*map(str, inputs), "--model", "tiny", "--output", f"{tmp_path / 'new'}/"]
    assert image2image.main([*arguments, "--n_images", "1"]) == 0
    assert [path for path, _ in written] == [tmp_path / "new/now.preview.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["0001.png"]


def test_a_batch_that_does_not_fill_the_rows(tmp_path):
    """A batch of three pictures has one row, even if the grid of all has two."""
    path = tmp_path / "p.png"
    it = Preview(path, 1, 2, lambda x: np.zeros((len(x), 8, 8, 3), np.uint8))
    it.show(1, 2, mx.zeros((3, 1, 1, 4)))
    assert Image.open(path).size == (3 * 24, 24)
    it.remove()
    it.remove()
    assert not path.exists()
