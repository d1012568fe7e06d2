"""Opening picture files: damaged, large and hostile ones, and what is not a file."""

import contextlib
import os
import warnings

import numpy as np
import pytest
from attacks.pictures import png
from picture_arrays import RGB, assert_close, read_image, scale
from PIL import EpsImagePlugin, Image

from stable_diffusion.images.reading import load_image, open_picture
from stable_diffusion.images.writing import save_image


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert_close(image, np.broadcast_to(np.float32([1, -1, -1]), (64, 64, 3)))


def test_files_that_are_not_pictures(tmp_path):
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


def test_too_large_or_too_small(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000, b""))
    (tmp_path / "wide.png").write_bytes(png(20_000, 6_001, b""))
    (tmp_path / "none.ppm").write_bytes(b"P6 0 0 255 ")
    with pytest.raises(ValueError, match=r"wide\.png: .* \(20000x6001 pixels, at most 120 m"):
        read_image(tmp_path / "wide.png")
    for name in ("bomb.png", "none.ppm"):
        with pytest.raises(ValueError, match=f"{name}: "):
            read_image(tmp_path / name)
    save_image(tmp_path / "a.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.size // 3 // 4)
    with pytest.raises(ValueError, match=r"a\.png: the picture is too large"):
        read_image(tmp_path / "a.png")


def test_warnings_of_pillow_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.size // 3 - 1)
    save_image(tmp_path / "a.png", RGB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(read_image(tmp_path / "a.png"), scale(RGB))


def test_20000_pixels_wide(tmp_path):
    """It can be reduced to a size that is given, but is too large without one."""
    black = Image.new("L", (20_000, 1_000))
    black.save(tmp_path / "a.png")
    image, size = load_image(tmp_path / "a.png", (128, 64))
    assert size == (20_000, 1_000)
    assert_close(image, np.full((64, 128, 3), -1, np.float32))
    with pytest.raises(ValueError, match=r"a\.png: 20000x1000 pixels are too many to start from"):
        load_image(tmp_path / "a.png")


def test_no_other_program_is_run(tmp_path, monkeypatch):
    """Pillow draws EPS with Ghostscript, which runs programs in the file."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Image.fromarray(RGB).save(tmp_path / "a.eps")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers where it is
    with pytest.raises(ValueError, match=r"a\.eps: not a picture"):
        read_image(tmp_path / "a.eps")
    assert not (tmp_path / "ran").exists()
    with Image.open(tmp_path / "a.eps") as image, contextlib.suppress(Exception):
        image.load()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null"])
def test_pipes_and_devices(tmp_path, kind):
    """Reading a pipe that nobody writes to would never return."""
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").symlink_to(kind)
    with pytest.raises(ValueError, match=r"a\.png: a pipe or device, not a file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.bmp", "a.tif"])
def test_files_are_not_mapped_into_memory(tmp_path, name):
    """If a mapped file is truncated, the process is killed: Pillow maps BMP, libtiff TIFF."""
    path = tmp_path / name
    Image.fromarray(RGB[..., 0]).save(path)
    with open_picture(path) as image:
        with pytest.raises(OSError):
            image.fp.fileno()  # libtiff would map the file through it
        image.load()
        assert getattr(image, "map", None) is None
    with Image.open(path) as image:  # Pillow maps a file that it opens by name
        image.load()
        assert image.map is not None
