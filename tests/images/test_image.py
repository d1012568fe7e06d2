"""`image.py`: every mode that Pillow opens, sizes, grids and safe saving."""

import contextlib
import os
import re
import shlex
import struct
import sys
import warnings
import zlib
from types import ModuleType

import numpy as np
import pytest
from attacks.pictures import png
from PIL import EpsImagePlugin, Image, ImageFile, TiffImagePlugin

from stable_diffusion.images.arrays import find_similar_size, make_grid, round_size_down, to_uint8
from stable_diffusion.images.pixels import HEIF, ORIENTATION, SAMPLE_FORMAT
from stable_diffusion.images.reading import (
    load_image,
    open_picture,
    read_picture,
    read_size,
)
from stable_diffusion.images.unreadable import RAW, is_heic
from stable_diffusion.images.writing import check_output, save_image
from stable_diffusion.utils.wording import describe_error

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
    """They are as bright as Pillow's conversion to RGB, and so diffusers, makes them."""
    grey = np.linspace(least, 255, 64 * 64).astype(np.int32).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as saved:
        expected = scaled(np.asarray(saved.convert("RGB")))
    assert_close(read_image(tmp_path / "a.tif"), expected)
    assert expected.max() == 1 and abs(expected.mean()) < 0.1


@pytest.mark.parametrize("brightest", [255, 65535, 2**32 - 1])
def test_integers_without_a_sign(tmp_path, brightest):
    """Pillow takes the upper half of them for negative."""
    grey = np.linspace(0, brightest, 64 * 64).astype(np.uint32).reshape(64, 64)
    Image.fromarray(grey.view(np.int32)).save(tmp_path / "a.tif")
    signed, unsigned = (struct.pack("<HHLL", SAMPLE_FORMAT, 3, 1, sign) for sign in (2, 1))
    content = (tmp_path / "a.tif").read_bytes()
    assert content.count(signed) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(signed, unsigned))
    expected = (grey[..., None] / brightest * 2 - 1).astype(np.float32).repeat(3, axis=-1)
    assert_close(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_negative_grey_is_black_also_beside_other_pixels(tmp_path, dtype):
    """Resizing mixes pixels: what is below black must not darken those around it."""
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
    assert read_size(tmp_path / "a.png") == (expected.shape[1], expected.shape[0])
    assert load_image(tmp_path / "a.png")[1] == (expected.shape[1], expected.shape[0])


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert_close(image, np.broadcast_to(np.float32([1, -1, -1]), (64, 64, 3)))


def test_what_is_no_picture(tmp_path, rgb):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "noise.png").write_bytes(np.random.default_rng(0).bytes(3000))
    for name in ("text.png", "empty.png", "noise.png"):
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


@pytest.mark.parametrize(
    ("size", "n_pixels", "multiple", "expected"),
    [
        ((4032, 3024), 512 * 512, 64, (512, 384)),  # 4:3 to the pixel
        ((3024, 4032), 512 * 512, 64, (384, 512)),
        ((1920, 1080), 1024 * 1024, 64, (1344, 768)),
        ((6000, 4000), 512 * 512, 64, (576, 384)),
        ((3000, 3000), 768 * 768, 64, (768, 768)),
        ((4032, 3024), 64 * 64, 8, (64, 48)),
    ],
)
def test_similar_size(size, n_pixels, multiple, expected):
    assert find_similar_size(size, n_pixels, multiple) == expected


def test_similar_sizes_of_any_proportions():
    """Never far from as many pixels, nor longer than an option may be."""
    for width in (64, 100, 777, 5000, 100_000):
        for height in (64, 129, 3001, 100_000):
            for side, multiple in ((64, 8), (512, 64), (1024, 64)):
                size = find_similar_size((width, height), side**2, multiple)
                assert size == round_size_down(size, multiple) and max(size) <= 16 * side
                assert 1 / 3 < size[0] * size[1] / side**2 < 3
                if max(width, height) < 10 * min(width, height):
                    assert 0.7 < size[0] / size[1] / (width / height) < 1.4


def ftyp(*brands: bytes) -> bytes:
    """What an ISO base media file begins with; the second brand is a version."""
    return (8 + 4 * len(brands)).to_bytes(4, "big") + b"ftyp" + b"".join(brands) + bytes(64)


FOREIGN = {  # what files of these kinds begin with, and what is said
    "codestream.jxl": (
        b"\xff\x0a" + bytes(range(64)),
        "JPEG XL",
    ),
    "container.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
    "a.svg": (
        b'<?xml version="1.0"?><!-- <html> -->\n<svg width="1">',
        "SVG",
    ),
    "doctype.svg": (b'<!DOCTYPE svg PUBLIC "a" [<!ENTITY b "c">]>\n<s:svg xmlns:s="a">', "SVG"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
    "a.ps": (b"%!PS-Adobe-3.0\n", "PostScript"),
    "preview.eps": (b"\xc5\xd0\xd3\xc6" + bytes(range(40)), "PostScript"),
    "a.mp4": (ftyp(b"isom", b"\0\0\2\0", b"mp41"), "video"),
    "a.mov": (ftyp(b"qt  ", b"\0\0\0\0", b"qt  "), "video"),
    "a.webm": (b"\x1a\x45\xdf\xa3" + bytes(range(40)), "video"),
    "a.avi": (b"RIFF\x24\0\0\0AVI LIST", "video"),
    "a.cr3": (ftyp(b"crx ", b"\0\0\0\1", b"isom"), "raw"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "raw"),
    "a.orf": (b"IIRO\x08\0\0\0", "raw"),
    "404.png": (b"\n<!doctype HTML>\n<title>404", "HTML"),
    "html.png": (b"<!-- a --><HTML><svg></svg>", "HTML"),
    "denied.png": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied', "XML"),
    "error.png": (b'{"error": "rate limit"}', "JSON"),
    "list.png": (b'[{"id": 1}]', "JSON"),
    "utf-16.png": ("<html><p>é".encode("utf-16"), "HTML"),
    "cut.png": ("é".encode() * 40 + b"\xc3", "but text"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a", "git lfs pull"),
    "annex.png": (b"../.git/annex/objects/aa/bb/MD5E-s1--c.png", "git annex get"),
    "nothing.png": (b"", "empty file"),
    "zeros.png": (bytes(70_000), "only zeros"),
    "a.zip": (b"PK\x03\x04" + bytes(range(40)), "archive"),
    "a.exr": (b"\x76\x2f\x31\x01" + bytes(range(40)), "OpenEXR"),
    "a.dcm": (bytes(128) + b"DICM", "DICOM"),
}


@pytest.mark.parametrize("suffix", ["", ".jpg"])
@pytest.mark.parametrize("name", FOREIGN)
def test_other_kinds_of_files_are_named(tmp_path, monkeypatch, name, suffix):
    """By what is in them, not by their suffix."""
    monkeypatch.chdir(tmp_path)
    content, message = FOREIGN[name]
    (tmp_path / f"{name}{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{name}{suffix}: .*{message}") as raised:
        read_image(f"{name}{suffix}")
    assert str(raised.value).count(": ") > 1 or "(" in str(raised.value)  # what to do


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("a.svg", "rsvg-convert -o 'my file-1.png' 'my file.jpg'"),
        ("container.jxl", "djxl 'my file.jpg' 'my file-1.png'"),
        ("a.mp4", "ffmpeg -i 'my file.jpg' -frames:v 1 'my file-1.png'"),
    ],
)
def test_commands_are_ready_to_paste(tmp_path, monkeypatch, kind, command):
    """With the file's own name, and the name of none that is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my file.png").touch()
    (tmp_path / "my file.jpg").write_bytes(FOREIGN[kind][0])
    with pytest.raises(ValueError, match=re.escape(f"({command})")):
        read_image("my file.jpg")


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("dng.jpg", {50706: b"\1\4\0\0"}),
        ("nef.tif", {254: 1, 330: 8}),
        ("pentax.pef", {}),
    ],
)
def test_raw_files_of_cameras(tmp_path, rgb, name, tags):
    """They are TIFFs, of which Pillow would read a preview of a few pixels."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    Image.fromarray(rgb).save(tmp_path / name, "TIFF", tiffinfo=info)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path / name}: {RAW}')}$"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("tag", [259, 262])
@pytest.mark.parametrize("order", ["little", "big"])
def test_raw_files_that_pillow_does_not_know(tmp_path, tag, order):
    """Their directory may be anywhere in them."""
    value = {259: 34713, 262: 32803}[tag]
    begin = {"little": b"II*\0", "big": b"MM\0*"}[order] + (100_000).to_bytes(4, order)
    entry = b"".join(n.to_bytes(size, order) for n, size in ((tag, 2), (3, 2), (1, 4), (value, 2)))
    directory = (1).to_bytes(2, order) + entry + bytes(6)
    (tmp_path / "a.tif").write_bytes(begin.ljust(100_000, b"\0") + directory)
    with pytest.raises(ValueError, match=RAW):
        read_image(tmp_path / "a.tif")


HEIC = ftyp(b"heic", b"\0\0\0\0", b"mif1", b"heic")


def test_brands_of_heic():
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        assert is_heic(ftyp(brand, bytes(4), b"miaf"))
    assert is_heic(ftyp(b"miaf", bytes(4), b"heic"))
    assert not is_heic(ftyp(b"avif", bytes(4), b"mif1"))
    assert not is_heic(ftyp(b"mif1", bytes(4), b"miaf", b"avif"))
    assert not is_heic(ftyp(b"isom", bytes(4))) and not is_heic(b"heic")


def test_heic_without_its_package(tmp_path, monkeypatch):
    """The command has the file's own name, and overwrites none."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.chdir(tmp_path)
    for name, converted in (("a b.heic", "'a b.jpg'"), ("c.jpg", "c-1.jpg"), ("-d.heic", "-d.jpg")):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(ValueError, match=r"HEIC.*pip install pillow-heif") as raised:
            read_image(name)
        dot = "./" if name.startswith("-") else ""
        source = shlex.quote(f"{dot}{name}")
        command = f"sips -s format jpeg {source} --out {dot}{converted}"
        assert str(raised.value).startswith(f"{name}: HEIC") and command in str(raised.value)


@pytest.fixture
def heif_opener(monkeypatch, rgb):
    """A stand-in for pillow-heif: it reads this picture, which its container has turned."""

    class HeifImageFile(ImageFile.ImageFile):
        format = HEIF

        def _open(self) -> None:
            image = Image.fromarray(rgb)
            self._size, self._mode = image.size, "RGB"
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            self.info["exif"] = exif.tobytes()
            self.tile = []

        def load(self):
            self._im = self.im = Image.fromarray(rgb).im
            return super().load()

    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    package = ModuleType("pillow_heif")
    package.register_heif_opener = lambda: Image.register_open(
        HEIF, HeifImageFile, lambda prefix: prefix[4:8] == b"ftyp"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", package)


def test_heic_with_its_package(tmp_path, rgb, heif_opener, monkeypatch):
    """It is not turned once more, and no larger than other pictures may be."""
    (tmp_path / "a.jpg").write_bytes(HEIC)
    assert_close(read_image(tmp_path / "a.jpg"), scaled(rgb))
    assert read_size(tmp_path / "a.jpg") == (WIDTH, HEIGHT)
    monkeypatch.setattr("stable_diffusion.images.reading.MAX_FILE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ValueError, match=r"a\.jpg: the picture is too large"):
        read_image(tmp_path / "a.jpg")


def test_real_heic(tmp_path, rgb):
    """Upright, and over white where it is transparent."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(rgb).save(tmp_path / "a.heic", quality=100, exif=exif.tobytes())
    assert np.abs(read_image(tmp_path / "a.heic") - scaled(np.rot90(rgb, -1))).mean() < 0.03
    assert read_size(tmp_path / "a.heic") == (HEIGHT, WIDTH)
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "b.heic", quality=100)
    assert np.abs(read_image(tmp_path / "b.heic") - over_white(rgb, alpha)).mean() < 0.03
    whole = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"cut\.heic: (HEIC that pillow-heif|the picture is dam)"):
        read_image(tmp_path / "cut.heic")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-", "-: a picture cannot be read from standard input: save it in a file"),
        (
            "https://a.org/b/c%20d.jpg?e=1#f",
            "curl -L -o 'c d.jpg' 'https://a.org/b/c%20d.jpg?e=1#f'",
        ),
        ("HTTP://a.org", "curl -L -o picture HTTP://a.org"),
        ("https:/a.org/b.png", "pictures are not downloaded here: download it first (curl"),
        ("file:///b/c%20d.jpg", "name the file ('/b/c d.jpg')"),
        (f"data:image/png;base64,{'A' * 5000}", "an address, not a file"),
        ("s3://a/b.png", "an address, not a file"),
    ],
)
def test_what_is_no_file(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_image(name)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "holiday.jpeg").touch()
    (tmp_path / "notes.txt").touch()

    def complaint(name: os.PathLike | str) -> str:
        with pytest.raises(OSError) as raised:
            read_image(name)
        return describe_error(raised.value)

    missing = "No such file or directory"
    wrong, right = tmp_path / "Holidays.jpg", tmp_path / "holiday.jpeg"
    assert complaint(wrong) == f"{wrong}: {missing}: did you mean {right}?"
    assert complaint(tmp_path / "xyz.png") == f"{tmp_path / 'xyz.png'}: {missing}"
    nowhere = tmp_path / "nowhere" / "a.png"
    assert complaint(nowhere) == f"{nowhere}: {missing}: there is no folder {nowhere.parent}"
    assert complaint(right / "a.png").endswith(f"Not a directory: there is no folder {right}")
    assert complaint(tmp_path) == f"{tmp_path}: Is a directory: name a picture in it"
    assert complaint("") == f"'': {missing}: name a picture"
    monkeypatch.chdir(tmp_path)
    assert complaint("holidy.jpeg") == f"holidy.jpeg: {missing}: did you mean holiday.jpeg?"


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
    with open_picture(path) as image:
        with pytest.raises(OSError):
            image.fp.fileno()  # by which libtiff would map it
        image.load()
        assert getattr(image, "map", None) is None
    with Image.open(path) as image:  # as it would be by name
        image.load()
        assert image.map is not None
