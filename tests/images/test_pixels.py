"""Modes of Pillow, transparency, levels of grey, and the orientation of EXIF."""

import struct
import zlib

import numpy as np
import pytest
from picture_arrays import HEIGHT, RGB, WIDTH, assert_close, blend_with_white, read_image, scale
from PIL import Image

from stable_diffusion.images.pixels import ORIENTATION, SAMPLE_FORMAT
from stable_diffusion.images.reading import load_image, read_size
from stable_diffusion.images.writing import save_image

HALF_STEP = 0.5 / 127.5  # half of one 8-bit level, on the scale of [-1, 1]


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "CMYK"])
def test_opaque_modes_equal_pillows_conversion(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    path = tmp_path / ("a.png" if mode in ("L", "1", "P") else "a.tif")
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert_close(read_image(path), scale(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_blended_with_white(tmp_path, mode):
    colours = RGB if mode == "RGBA" else RGB[..., :1].repeat(3, axis=-1)
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    channels = [*np.moveaxis(colours, -1, 0)[: len(mode) - 1], alpha]
    Image.fromarray(np.dstack(channels)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == mode
    assert_close(read_image(tmp_path / "a.png"), blend_with_white(colours, alpha))


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (32, 0, 64, 64))
    image.save(tmp_path / "a.png", transparency=0)
    expected = np.ones((64, 64, 3), np.float32)
    expected[:, 32:] = [-1, -1, 1]
    assert_close(read_image(tmp_path / "a.png"), expected)


def test_transparent_colour_of_a_plain_picture(tmp_path):
    Image.new("RGB", (64, 64), (0, 255, 0)).save(tmp_path / "a.png", transparency=(0, 255, 0))
    assert_close(read_image(tmp_path / "a.png"), np.ones((64, 64, 3), np.float32))


@pytest.mark.parametrize("brightest", [65535, 30000, 200])
def test_grey_of_16_bits_keeps_them(tmp_path, brightest):
    grey = np.linspace(0, brightest, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = (grey[..., None] / 65535 * 2 - 1).astype(np.float32).repeat(3, axis=-1)
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(grey).save(tmp_path / name)
        assert_close(read_image(tmp_path / name), expected)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "i.tif")
    with Image.open(tmp_path / "i.tif") as saved:
        assert saved.mode == "I"
    if brightest > 255:
        assert_close(read_image(tmp_path / "i.tif"), expected)


@pytest.mark.parametrize("least", [0, -5])
def test_bytes_in_integers_of_32_bits(tmp_path, least):
    """They are as bright as after Pillow's conversion to RGB, which diffusers uses."""
    grey = np.linspace(least, 255, 64 * 64).astype(np.int32).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as saved:
        expected = scale(np.asarray(saved.convert("RGB")))
    assert_close(read_image(tmp_path / "a.tif"), expected)
    assert expected.max() == 1 and abs(expected.mean()) < 0.1


@pytest.mark.parametrize("brightest", [255, 65535, 2**32 - 1])
def test_unsigned_integers(tmp_path, brightest):
    """Pillow reads their upper half as negative numbers."""
    grey = np.linspace(0, brightest, 64 * 64).astype(np.uint32).reshape(64, 64)
    Image.fromarray(grey.view(np.int32)).save(tmp_path / "a.tif")
    signed, unsigned = (struct.pack("<HHLL", SAMPLE_FORMAT, 3, 1, sign) for sign in (2, 1))
    content = (tmp_path / "a.tif").read_bytes()
    assert content.count(signed) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(signed, unsigned))
    expected = (grey[..., None] / brightest * 2 - 1).astype(np.float32).repeat(3, axis=-1)
    assert_close(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_negative_grey_is_black(tmp_path, dtype):
    """Resizing mixes pixels: values below black must not darken their neighbours."""
    grey = np.full((128, 128), 200, dtype)
    for name, black in (("negative.tif", -100_000), ("black.tif", 0)):
        grey[::4, ::4] = black
        Image.fromarray(grey).save(tmp_path / name)
    negative, black = (
        load_image(tmp_path / name, (64, 64))[0] for name in ("negative.tif", "black.tif")
    )
    assert_close(negative, black)
    assert black.mean() > 0.2


@pytest.mark.parametrize("white", [1, 255, 65535, 1e6])
def test_grey_of_floats(tmp_path, white):
    grey = np.linspace(0, white, 64 * 64, dtype=np.float32).reshape(64, 64)
    grey[0, :2] = [-1, np.nan]
    Image.fromarray(grey).save(tmp_path / "a.tif")
    expected = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected[0, :2] = -1
    assert_close(read_image(tmp_path / "a.tif"), expected[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    rotate = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    expected = scale(rotate(RGB))
    assert_close(read_image(tmp_path / "a.png"), expected)
    assert read_size(tmp_path / "a.png") == (expected.shape[1], expected.shape[0])
    assert load_image(tmp_path / "a.png")[1] == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("damage", [b"MM\0*\xff\xff\xff\xff", b"", b"II*\0" + b"\xff" * 40])
def test_corrupt_exif_does_not_matter(tmp_path, damage):
    save_image(tmp_path / "a.png", RGB)
    whole = (tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + damage
    chunk = len(damage).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    assert_close(read_image(tmp_path / "a.png"), scale(RGB))


def test_infinite_floats_are_as_bright_as_the_brightest_finite_one(tmp_path):
    grey = np.full((64, 64), 0.5, np.float32)
    grey[0, :3] = [np.inf, -np.inf, 1]
    Image.fromarray(grey).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image[0, :4, 0], [1, -1, 1, 0], atol=1e-6)


def test_resizing_equals_pillows_lanczos(tmp_path):
    save_image(tmp_path / "a.png", RGB)
    for size in ((64, 64), (200, 136)):
        expected = Image.fromarray(RGB).resize(size, Image.Resampling.LANCZOS)
        resized, _ = load_image(tmp_path / "a.png", size)
        assert_close(
            resized, scale(np.asarray(expected)), atol=2.01 * HALF_STEP
        )  # Pillow rounds after each axis
    edge = np.where(np.arange(128) < 64, 0, 255).astype(np.uint8)
    save_image(tmp_path / "b.png", np.broadcast_to(edge[None, :, None], (128, 128, 3)))
    resized, _ = load_image(tmp_path / "b.png", (200, 200))
    assert resized.min() == -1 and resized.max() == 1  # ringing is clipped


@pytest.mark.parametrize("orientation", [1, 6])
def test_crop_of_a_rotated_picture(tmp_path, orientation):
    """The sides that are cut off are those of the upright picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(RGB, -1) if orientation == 6 else RGB
    size = (upright.shape[1] - 16, upright.shape[0])  # 8 pixels less at the left and right
    assert_close(load_image(tmp_path / "a.png", size, fit="crop")[0], scale(upright[:, 8:-8]))
