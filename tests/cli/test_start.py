"""`start.py`: what the networks get of a picture, and that the rest of it stays to the bit."""

from pathlib import Path

import numpy as np
import pytest
from oracle import psnr
from ours import pictures
from PIL import Image

import image2image
from stable_diffusion import StableDiffusion
from stable_diffusion.cli.arguments.parse import image2image_parser, parse
from stable_diffusion.cli.settings import Repainting, StartPicture
from stable_diffusion.cli.start import make_start
from stable_diffusion.images.masks import blur
from stable_diffusion.utils.size import Size

SIZE = Size(64, 64)
SAME = 50  # dB at least between equal pictures
CAT = "a photo of a cat"
TINY = ["--model=tiny", "--steps=2", "--cfg=1", "--n_images=1", "--seed=1"]
KINDS = {  # of pictures: file name, and mode
    *(("p.png", "RGB"), ("p.png", "L"), ("p.png", "P"), ("p.png", "1"), ("p.png", "RGBA")),
    *(("p.tif", "CMYK"), ("p.webp", "RGB"), ("p.jpg", "RGB"), ("p.gif", "P"), ("p.bmp", "RGB")),
}
OPTIONS = (
    "",
    "--mask-blur=3",
    "--mask-crop=5",
    "--mask-crop=0 --mask-blur=2",
    "--outpaint=3,0,9,1",
)


def write_files(generator: np.random.Generator, name: str, mode: str) -> np.ndarray:
    """Write a picture and a random mask, and return the mask as booleans."""
    width, height = (int(n) for n in generator.integers(64, 150, 2))
    small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height)).convert(mode).save(name)
    mask = generator.random((height, width)) < 0.02
    x, y = generator.integers(0, width - 20), generator.integers(0, height - 20)
    mask[y : y + 40, x : x + 30] = True
    Image.fromarray(mask).save("m.png")
    return mask


def read_rgb(name: str | Path) -> np.ndarray:
    """Return the colours of a picture; transparent ones blended with white."""
    image = Image.open(name)
    if image.mode == "RGBA":
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[
            ..., :3
        ]
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("seed", range(20))
def test_pixels_outside_the_mask_stay_to_the_bit(seed, tmp_path, monkeypatch):
    """Whatever the networks draw, for pictures of any size and mode."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(seed)
    name, mode = sorted(KINDS)[seed % len(KINDS)]
    options = OPTIONS[seed % len(OPTIONS)]
    mask = write_files(generator, name, mode)
    start = make_start(
        parse(image2image_parser(), [name, "a cat", "--mask=m.png", *options.split()]).start,
        SIZE,
        8,
    )
    height, width, _ = start.pixels.shape
    assert height % 8 == width % 8 == 0 and start.mask.shape == (height, width)
    assert ("crop" in options) == ((width, height) == SIZE)
    drawn = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = start.finish(drawn)
    assert (len(np.unique(start.paste_mask)) > 2) == ("blur" in options)
    if "crop" not in options:
        weight = start.paste_mask[..., None] / 255
        mixed = drawn[: len(weight), : weight.shape[1]] * weight + start.original * (1 - weight)
        assert np.abs(result - mixed).max() <= 0.5 + 1e-6
    if "outpaint" in options:
        assert result.shape == (mask.shape[0] + 1, mask.shape[1] + 12, 3)
        result = result[: mask.shape[0], 3 : 3 + mask.shape[1]]
    assert result.shape[:2] == mask.shape
    outside = ~mask
    if "blur" in options:  # the blur reaches three times its radius
        outside = start.paste_mask == 0
        assert outside.any()
    assert np.array_equal(result[outside], read_rgb(name)[outside])
    assert (result[mask] != read_rgb(name)[mask]).any()


def test_what_the_networks_get(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = write_files(np.random.default_rng(1), "p.png", "RGB")
    start = make_start(parse(image2image_parser(), ["p.png", "a", "--mask=m.png"]).start, SIZE, 8)
    height, width = mask.shape
    pixels = np.round((start.pixels + 1) * 127.5)
    assert np.array_equal(pixels[:height, :width], read_rgb("p.png"))
    assert np.array_equal(start.mask[:height, :width], mask)
    assert (pixels[height:, :width] == pixels[height - 1, :width]).all()
    plain = make_start(parse(image2image_parser(), ["p.png", "a"]).start, SIZE, 8)
    assert plain.mask is None and plain.finish(pixels) is pixels


def test_a_mask_that_no_latent_belongs_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(np.random.default_rng(1), "p.png", "RGB")
    mask = Image.new("1", Image.open("p.png").size)
    mask.putpixel((13, 13), 1)
    mask.save("m.png")
    assert image2image.main(["p.png", "a", "--mask=m.png", *TINY]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: the mask is too small for the model, which")


def test_pictures_of_a_run(tmp_path, monkeypatch):
    """Batches, grids and previews have the input outside the mask; the seeds differ inside."""
    monkeypatch.chdir(tmp_path)
    mask = write_files(np.random.default_rng(2), "p.png", "RGB")
    words = ["p.png", "a red circle", "--mask=m.png", *TINY, "--n_images=2", "--preview=1"]
    previews = []
    monkeypatch.setattr(
        "stable_diffusion.cli.output.preview.save_image", lambda _, pixels: previews.append(pixels)
    )
    assert image2image.main([*words, "--output=o/", "--grid=g.png", "--batch-size=2"]) == 0
    first, second = (read_rgb(f"o/000{i}.png") for i in (1, 2))
    grid = read_rgb("g.png")
    picture = read_rgb("p.png")
    width = picture.shape[1]
    assert len(previews) == 1
    for pixels in (grid, previews[0]):
        for left in (8, 24 + width):
            part = pixels[8 : 8 + len(mask), left : left + width]
            assert np.array_equal(part[~mask], picture[~mask])
    assert np.array_equal(first[~mask], picture[~mask])
    assert (first[mask] != second[mask]).any() and (first[mask] != picture[mask]).any()


@pytest.mark.parametrize(
    ("kind", "strength", "radius"),
    [("sd-1", 0.5, 0), ("sd-1", 1.0, 3), ("sd-1-inpainting", 0.8, 0)],
)
def test_a_part_equals_that_of_diffusers(checkpoint, oracle, kind, strength, radius):
    """It is cut out, drawn in another size, and pasted, as with `padding_mask_crop`."""
    y, x = np.mgrid[0:1:70j, 0:1:100j]
    picture = (np.stack([x, y, x * y], axis=-1) * 255).round().astype(np.uint8)
    mask = np.zeros((70, 100), np.uint8)
    mask[15:40, 50:90] = 255
    mask = blur(mask, radius)
    repainting = Repainting(mask, crop=6)
    start = make_start(StartPicture("p.png", picture, repainting=repainting), Size(48, 32), 8)
    sd = StableDiffusion(checkpoint(kind))
    latents = sd.generate_latents_from_image(
        start.pixels, CAT, num_steps=2, cfg_weight=4, strength=strength, seed=7, mask=start.mask
    )
    ours = start.finish(pictures(sd, latents)[0])
    theirs = oracle(kind).painted_part(
        picture,
        mask,
        CAT,
        seed=7,
        padding_mask_crop=6,
        width=48,
        height=32,
        strength=strength,
        guidance_scale=4.0,
        num_inference_steps=2,
    )
    part = mask > 0
    assert psnr(ours[part], theirs[part]) >= SAME
    assert np.array_equal(ours[~part], picture[~part])
    assert theirs[part].std() > 20
