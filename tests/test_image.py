"""`image.py`: every mode that Pillow opens, sizes, grids and safe saving."""

import contextlib
import os
import warnings
import zlib

import numpy as np
import pytest
from attacks.pictures import png
from PIL import EpsImagePlugin, Image

from stable_diffusion.image import (
    check_output,
    load_image,
    make_grid,
    save_image,
    to_uint8,
)
from stable_diffusion.picture import ORIENTATION, opened, read_picture

HALF_STEP = 0.5 / 127.5  # half of one 8-bit level, on the scale of [-1, 1]
WIDTH, HEIGHT = 96, 80


@pytest.fixture
def rgb() -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: no two directions or channels alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 2, y * 3, 255 - x - y], axis=-1).astype(np.uint8)


def read_image(path: os.PathLike) -> np.ndarray:
    """At its own size."""
    return read_picture(path)[0]


def scaled(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float32) / 127.5 - 1


def assert_close(image: np.ndarray, expected: np.ndarray, atol: float = 1e-6) -> None:
    assert image.dtype == np.float32 and image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_rgb(tmp_path, rgb, suffix):
    path = tmp_path / f"a{suffix}"
    save_image(path, rgb)
    assert_close(read_image(path), scaled(rgb))


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "CMYK"])
def test_opaque_modes_equal_pillows_conversion(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    path = tmp_path / ("a.png" if mode in ("L", "1", "P") else "a.tif")
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert_close(read_image(path), scaled(np.asarray(image.convert("RGB"))))


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return (2 * (colours / 255 * opacity + (1 - opacity)) - 1).astype(np.float32)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(tmp_path, rgb, mode):
    colours = rgb if mode == "RGBA" else rgb[..., :1].repeat(3, axis=-1)
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    channels = [*np.moveaxis(colours, -1, 0)[: len(mode) - 1], alpha]
    Image.fromarray(np.dstack(channels)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == mode
    assert_close(read_image(tmp_path / "a.png"), over_white(colours, alpha))


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
    for name in ("a.png", "a.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert_close(read_image(tmp_path / name), expected)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "i.tif")
    with Image.open(tmp_path / "i.tif") as saved:
        assert saved.mode == "I"
    assert_close(read_image(tmp_path / "i.tif"), expected)


@pytest.mark.parametrize("white", [1, 255, 65535, 1e6])
def test_grey_of_floats(tmp_path, white):
    grey = np.linspace(0, white, 64 * 64, dtype=np.float32).reshape(64, 64)
    grey[0, :2] = [-1, np.nan]
    Image.fromarray(grey).save(tmp_path / "a.tif")
    expected = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected[0, :2] = -1
    assert_close(read_image(tmp_path / "a.tif"), expected[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rgb, orientation):
    turn = {
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
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    expected = scaled(turn(rgb))
    assert_close(read_image(tmp_path / "a.png"), expected)
    assert load_image(tmp_path / "a.png")[1] == (expected.shape[1], expected.shape[0])


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert_close(image, np.broadcast_to(np.float32([1, -1, -1]), (64, 64, 3)))


def test_what_is_no_picture(tmp_path, rgb):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png"):
        with pytest.raises(ValueError, match=rf"{name}: not a picture"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_damaged_pictures(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    save_image(tmp_path / f"a{suffix}", noise)
    whole = (tmp_path / f"a{suffix}").read_bytes()
    for length in (len(whole) // 3, len(whole) // 2):
        (tmp_path / f"cut{suffix}").write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=rf"cut\{suffix}: (the picture is damaged|not a picture)"
        ):
            read_image(tmp_path / f"cut{suffix}")


def test_too_large_or_too_small(tmp_path, rgb, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000, b""))
    (tmp_path / "wide.png").write_bytes(png(20_000, 6_001, b""))
    (tmp_path / "none.ppm").write_bytes(b"P6 0 0 255 ")
    with pytest.raises(ValueError, match=r"wide\.png: .* \(20000x6001 pixels, at most 120 m"):
        read_image(tmp_path / "wide.png")
    for name in ("bomb.png", "none.ppm"):
        with pytest.raises(ValueError, match=f"{name}: "):
            read_image(tmp_path / name)
    save_image(tmp_path / "a.png", rgb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", rgb.size // 3 // 4)
    with pytest.raises(ValueError, match=r"a\.png: the picture is too large"):
        read_image(tmp_path / "a.png")


def test_what_pillow_warns_of_is_not_said(tmp_path, rgb, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", rgb.size // 3 - 1)
    save_image(tmp_path / "a.png", rgb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(read_image(tmp_path / "a.png"), scaled(rgb))


def test_20000_pixels_wide(tmp_path):
    """Brought down to what is asked for; without that, too much to start from."""
    black = Image.new("L", (20_000, 1_000))
    black.save(tmp_path / "a.png")
    image, size = load_image(tmp_path / "a.png", (128, 64))
    assert size == (20_000, 1_000)
    assert_close(image, np.full((64, 128, 3), -1, np.float32))
    with pytest.raises(ValueError, match=r"a\.png: 20000x1000 pixels are too many to start from"):
        load_image(tmp_path / "a.png")


def test_no_other_program_is_run(tmp_path, rgb, monkeypatch):
    """Pillow draws EPS with Ghostscript, which runs what the file says."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Image.fromarray(rgb).save(tmp_path / "a.eps")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what it has found before
    with pytest.raises(ValueError, match=r"a\.eps: not a picture"):
        read_image(tmp_path / "a.eps")
    assert not (tmp_path / "ran").exists()
    with Image.open(tmp_path / "a.eps") as image, contextlib.suppress(Exception):
        image.load()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null"])
def test_pipes_and_devices(tmp_path, kind):
    """A pipe that nobody writes to would be waited for, for ever."""
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").symlink_to(kind)
    with pytest.raises(ValueError, match=r"a\.png: a pipe or device, not a file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("damage", [b"MM\0*\xff\xff\xff\xff", b"", b"II*\0" + b"\xff" * 40])
def test_corrupt_exif_does_not_matter(tmp_path, rgb, damage):
    save_image(tmp_path / "a.png", rgb)
    whole = (tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + damage
    chunk = len(damage).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    assert_close(read_image(tmp_path / "a.png"), scaled(rgb))


def test_infinite_floats_are_as_bright_as_the_brightest(tmp_path):
    grey = np.full((64, 64), 0.5, np.float32)
    grey[0, :3] = [np.inf, -np.inf, 1]
    Image.fromarray(grey).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image[0, :4, 0], [1, -1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (64, 64)), ((127, 200), (64, 192)), ((640, 129), (640, 128))]
)
def test_sides_come_down_to_a_multiple(tmp_path, size, expected):
    Image.new("RGB", size, "navy").save(tmp_path / "a.png")
    image, original = load_image(tmp_path / "a.png")
    assert original == size
    assert image.shape == (expected[1], expected[0], 3)


def test_a_side_under_the_multiple(tmp_path):
    Image.new("RGB", (63, 200)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: each side .* at least 64 pixels, got 63x200"):
        load_image(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", multiple=21)[0].shape == (189, 63, 3)
    assert load_image(tmp_path / "a.png", size=(128, 64))[0].shape == (64, 128, 3)


def test_resizing_equals_pillows_lanczos(tmp_path, rgb):
    save_image(tmp_path / "a.png", rgb)
    for size in ((64, 64), (200, 136)):
        expected = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
        resized, _ = load_image(tmp_path / "a.png", size)
        assert_close(
            resized, scaled(np.asarray(expected)), atol=2.01 * HALF_STEP
        )  # Pillow rounds after each axis
    edge = np.where(np.arange(128) < 64, 0, 255).astype(np.uint8)
    save_image(tmp_path / "b.png", np.broadcast_to(edge[None, :, None], (128, 128, 3)))
    resized, _ = load_image(tmp_path / "b.png", (200, 200))
    assert resized.min() == -1 and resized.max() == 1  # ringing is clipped


@pytest.fixture
def fitted(tmp_path, rgb):
    """The picture `rgb` at a size, by a fit."""
    save_image(tmp_path / "a.png", rgb)
    return lambda size, fit: load_image(tmp_path / "a.png", size, fit=fit)[0]


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (48, 160), (33, 57), (96, 80), (1, 90)])
def test_fit(rgb, fitted, size):
    """A picture of two slopes keeps them where it is cropped or padded, and its middle."""
    image, (width, height) = scaled(rgb), size
    centre = image[HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1].mean((0, 1))
    for fit in ("stretch", "crop", "pad"):
        assert fitted(size, fit).shape == (height, width, 3)
        if size == (WIDTH, HEIGHT):
            assert_close(fitted(size, fit), image)
    cropped = fitted(size, "crop")
    top, left = (height - 1) // 2, (width - 1) // 2
    middle = cropped[top : height // 2 + 1, left : width // 2 + 1].mean((0, 1))
    np.testing.assert_allclose(middle, centre, atol=0.02)
    if min(size) > 16:
        scale = max(width / WIDTH, height / HEIGHT)
        inner = cropped[8:-8, 8:-8, 0]  # red grows by 2 levels a pixel, to the right
        np.testing.assert_allclose(np.diff(inner, axis=1), 2 / 127.5 / scale, atol=0.004)


def test_pad_repeats_the_border(rgb, fitted):
    wide = fitted((2 * WIDTH + 1, HEIGHT), "pad")
    assert_close(wide[:, 48 : 48 + WIDTH], scaled(rgb))
    assert (wide[:, :48] == wide[:, 48:49]).all() and (wide[:, 48 + WIDTH :] == wide[:, -1:]).all()
    tall = fitted((WIDTH // 2, HEIGHT), "pad")
    assert_close(tall[20:60], fitted((WIDTH // 2, HEIGHT // 2), "stretch"))
    assert (tall[:20] == tall[20]).all() and (tall[60:] == tall[59]).all()
    with pytest.raises(ValueError, match="fit must be one of stretch, crop, pad, got 'fill'"):
        fitted((64, 64), "fill")


@pytest.mark.parametrize("orientation", [1, 6])
def test_crop_of_a_picture_that_lies(tmp_path, rgb, orientation):
    """What is left out is told after it has been stood upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(rgb, -1) if orientation == 6 else rgb
    size = (upright.shape[1] - 16, upright.shape[0])  # as high as it is, 8 pixels less each side
    assert_close(load_image(tmp_path / "a.png", size, fit="crop")[0], scaled(upright[:, 8:-8]))


def test_to_uint8_rounds_and_clips():
    levels = np.arange(256, dtype=np.float32) / 255
    np.testing.assert_array_equal(to_uint8(levels), np.arange(256))
    np.testing.assert_array_equal(to_uint8(np.float32([-0.1, 1.1, 0.4999 / 255])), [0, 255, 0])
    assert to_uint8(np.float32([0.999]))[0] == 255  # cutting off would give 254
    assert to_uint8(levels).dtype == np.uint8


def test_to_uint8_equals_diffusers():
    import torch
    from diffusers.image_processor import VaeImageProcessor

    pictures = np.random.default_rng(0).uniform(-0.2, 1.2, (2, 40, 48, 3)).astype(np.float32)
    decoded = torch.from_numpy(pictures * 2 - 1).permute(0, 3, 1, 2)
    expected = VaeImageProcessor().postprocess(decoded, output_type="pil")
    expected = np.stack([np.asarray(picture) for picture in expected])
    ours = to_uint8((pictures * 2 - 1) / 2 + 0.5)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 6])
def test_grid(n_rows):
    images = np.random.default_rng(0).integers(1, 256, (6, 10, 12, 3), dtype=np.uint8)
    grid = make_grid(images, n_rows)
    n_columns = 6 // n_rows
    assert grid.shape == (n_rows * 26, n_columns * 28, 3) and grid.dtype == np.uint8
    for i, image in enumerate(images):
        y, x = i // n_columns * 26 + 8, i % n_columns * 28 + 8
        np.testing.assert_array_equal(grid[y : y + 10, x : x + 12], image)
    assert np.count_nonzero(grid) == images.size  # all else is black


def test_a_single_picture_has_no_border(rgb):
    np.testing.assert_array_equal(make_grid(rgb[None], 1), rgb)


@pytest.mark.parametrize("n_rows", [0, 4, -1, 12])
def test_rows_must_divide(n_rows):
    with pytest.raises(ValueError, match="n_rows must divide the 6 images"):
        make_grid(np.zeros((6, 4, 4, 3), np.uint8), n_rows)


def test_saving_replaces_whole_files(tmp_path, rgb, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_image(path, rgb)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]
    monkeypatch.undo()
    with pytest.raises((TypeError, ValueError)):
        save_image(path, np.zeros((2, 2, 7), np.float32))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]
    save_image(path, rgb)
    assert_close(read_image(path), scaled(rgb))
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff"])
def test_known_suffixes(tmp_path, rgb, suffix):
    check_output(tmp_path / f"a{suffix}")
    assert not os.listdir(tmp_path)
    save_image(tmp_path / f"a{suffix}", rgb)
    difference = np.abs(read_image(tmp_path / f"a{suffix}") - scaled(rgb))
    assert difference.mean() < 0.02


def test_unusable_outputs(tmp_path):
    for name in ("a", "a.xyz", "a.png.txt"):
        with pytest.raises(ValueError, match=r"must end in one of \.png, \.jpg"):
            check_output(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path / "folder.png")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match="is not writable"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.bmp", "a.tif"])
def test_files_are_not_mapped_into_memory(tmp_path, rgb, name):
    """One that is cut while it is mapped ends the process: Pillow maps BMP, libtiff TIFF."""
    path = tmp_path / name
    Image.fromarray(rgb[..., 0]).save(path)
    with opened(path) as image:
        with pytest.raises(OSError):
            image.fp.fileno()  # by which libtiff would map it
        image.load()
        assert getattr(image, "map", None) is None
    with Image.open(path) as image:  # as it would be by name
        image.load()
        assert image.map is not None
