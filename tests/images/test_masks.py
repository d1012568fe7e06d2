"""`masks.py`: masks of every kind are read, and parts are cut out and pasted as diffusers does."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from stable_diffusion.images import masks
from stable_diffusion.images.masks import Box, Margins
from stable_diffusion.utils.size import Size

HALVES = np.array([[255, 0], [255, 0]], np.uint8)  # what the pictures below mean as masks
PROCESSOR = VaeImageProcessor(vae_scale_factor=8)
MASK_PROCESSOR = VaeImageProcessor(
    vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)


def write_halves(mode: str, white: object, black: object) -> Image.Image:
    """Return a picture of 2×2 pixels whose left half has one colour, and the right one another."""
    image = Image.new(mode, (2, 2), black)
    image.paste(white, (0, 0, 1, 2))
    return image


def make_deep(kind: type, white: float) -> Image.Image:
    return Image.fromarray((HALVES / 255 * white).astype(kind))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", write_halves("L", 255, 0)),
        ("bits.png", write_halves("1", 1, 0)),
        ("colours.png", write_halves("RGB", (255, 255, 255), (0, 0, 0))),
        ("cmyk.tif", write_halves("CMYK", (0, 0, 0, 0), (0, 0, 0, 255))),
        ("strokes.png", write_halves("RGBA", (255, 255, 255, 255), (255, 255, 255, 0))),
        ("grey-alpha.png", write_halves("LA", (255, 255), (255, 0))),
        ("palette.png", write_halves("RGB", (255, 255, 255), (0, 0, 0)).convert("P")),
        ("deep.png", make_deep(np.uint16, 65535)),
        ("floats.tif", make_deep(np.float32, 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_masks_of_every_mode(tmp_path, name, image):
    """Transparent parts count as black, whatever their colour."""
    image.save(tmp_path / name)
    assert np.array_equal(masks.read_mask(tmp_path / name), HALVES)


def test_the_noise_of_lossy_formats_is_removed(tmp_path):
    """Greys far from black and white stay, and so do all greys in other formats."""
    greys = np.repeat(np.array([0, 16, 20, 128, 235, 239, 255], np.uint8), 8)  # blocks of a JPEG
    greys = np.tile(greys, (8, 1))
    for name in ("m.png", "m.jpg"):
        Image.fromarray(greys).save(tmp_path / name, quality=100)
    assert np.array_equal(masks.read_mask(tmp_path / "m.png"), greys)
    expected = np.where(greys == 16, 0, np.where(greys == 239, 255, greys))
    assert np.array_equal(masks.read_mask(tmp_path / "m.jpg"), expected)


def test_a_mask_is_rotated_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    write_halves("L", 255, 0).save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(masks.read_mask(tmp_path / "m.png"), HALVES.T)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.png", write_halves("RGBA", (9, 9, 9, 0), (9, 9, 9, 255)), HALVES),
        ("la.png", write_halves("LA", (9, 100), (9, 255)), np.where(HALVES, 155, 0)),
        ("none.png", write_halves("RGB", (9, 9, 9), (0, 0, 0)), 0 * HALVES),
        ("deep.png", make_deep(np.uint16, 65535), 0 * HALVES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transparency(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    assert np.array_equal(masks.read_transparency(tmp_path / name), expected)


def test_greys_are_cut_where_diffusers_cuts_them():
    greys = np.arange(256, dtype=np.uint8)[None]
    theirs = MASK_PROCESSOR.binarize(greys / 255)
    assert np.array_equal(masks.cut(greys), theirs * 255)


def test_blur():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:12, 8:20] = 255
    theirs = VaeImageProcessor.blur(Image.fromarray(mask), 3)
    assert np.array_equal(masks.blur(mask, 3), theirs)
    assert masks.blur(mask, 0) is mask


def test_pasting_keeps_what_is_outside_to_the_bit():
    """All pairs of levels, at the ends of the mask and between them."""
    levels = np.arange(256, dtype=np.uint8)
    new, old = (np.stack([x] * 3, axis=-1) for x in np.meshgrid(levels, levels))
    for level, expected in ((0, old), (255, new)):
        mask = np.full(new.shape[:2], level, np.uint8)
        assert np.array_equal(masks.paste(new, old, mask), expected)
    mask = np.full(new.shape[:2], 100, np.uint8)
    exact = (new * 100.0 + old * 155.0) / 255
    assert np.abs(masks.paste(new, old, mask) - exact).max() <= 0.5 + 1e-6


def test_extending():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    wide = masks.extend(picture, Margins(1, 0, 2, 3))
    assert wide.shape[:2] == (5, 5) and Margins(1, 0, 2, 3).extend(Size(2, 2)) == (5, 5)
    assert np.array_equal(wide[:2, 1:3], picture)
    assert (wide[:, 0] == wide[:, 1]).all() and (wide[2:] == wide[1]).all()
    mask = masks.extend(0 * picture[..., 0], Margins(1, 0, 2, 3), 255)
    assert mask.sum() == 255 * (25 - 4)
    assert masks.pad_to_multiple(picture, 8).shape == (8, 8, 3)


def make_random_part(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Size, int]:
    """Return a smooth picture, a mask of a rectangle in it, a size to draw in, and a padding."""
    width, height = (int(n) for n in generator.integers(30, 200, 2))
    small = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((width, height)))
    mask = np.zeros((height, width), np.uint8)
    x, y = generator.integers(0, width), generator.integers(0, height)
    mask[y : y + generator.integers(1, 40), x : x + generator.integers(1, 40)] = 255
    size = Size(*(8 * int(n) for n in generator.integers(4, 12, 2)))
    return picture, mask, size, int(generator.integers(0, 40))


@pytest.mark.parametrize("seed", range(12))
def test_a_part_is_cut_out_and_pasted_as_in_diffusers(seed):
    """The box is the same; pixels differ only by rounding, and where the part is extended."""
    picture, mask, size, padding = make_random_part(np.random.default_rng(seed))
    if seed % 2:
        mask = masks.blur(mask, 4)
    box = masks.find_crop_box(mask, size, padding)
    image, mask_image = Image.fromarray(picture), Image.fromarray(mask)
    assert box == PROCESSOR.get_crop_region(mask_image, *size, pad=padding)
    options = {"width": size.width, "height": size.height, "resize_mode": "fill"}

    theirs = PROCESSOR.preprocess(image, crops_coords=box, **options)[0].permute(1, 2, 0).numpy()
    ours = masks.enlarge_part(picture, box, size) / 127.5 - 1
    assert ours.shape == (size.height, size.width, 3)
    assert np.abs(ours - theirs).max() < 0.1 and np.abs(ours - theirs).mean() < 5e-3
    theirs = MASK_PROCESSOR.preprocess(mask_image, crops_coords=box, **options)[0, 0].numpy()
    assert np.array_equal(masks.cut(masks.enlarge_part(mask, box, size)) > 0, theirs > 0)

    drawn = np.asarray(Image.fromarray(picture[::-1]).resize(size))
    theirs = np.asarray(PROCESSOR.apply_overlay(mask_image, image, Image.fromarray(drawn), box))
    ours = masks.paste_part(drawn, picture, mask, box)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.array_equal(ours[mask == 0], picture[mask == 0])


def test_a_part_that_is_larger_than_the_picture():
    """It keeps its proportions, and is centred; what is added comes from its border."""
    picture = np.full((4, 400, 3), 90, np.uint8)
    mask = np.full((4, 400), 255, np.uint8)
    box = masks.find_crop_box(mask, Size(64, 64), 32)
    assert box == Box(0, 0, 400, 4)
    assert (masks.enlarge_part(picture, box, Size(64, 64)) == 90).all()
    pasted = masks.paste_part(np.full((64, 64, 3), 7, np.uint8), picture, mask, box)
    assert pasted.shape == picture.shape and (pasted == 7).all()


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty: all of it is black"):
        masks.find_crop_box(np.zeros((8, 8), np.uint8), Size(8, 8), 0)


def test_files_that_are_no_masks(tmp_path: Path):
    (tmp_path / "text.png").write_text("a mask")
    with pytest.raises(ValueError, match=r"text.png: "):
        masks.read_mask(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        masks.read_mask(tmp_path / "missing.png")
