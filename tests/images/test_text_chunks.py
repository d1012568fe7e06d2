"""Texts in picture files of every format, ours and those of other programs."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stable_diffusion.images.reading import read_picture
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE, read_texts
from stable_diffusion.images.writing import save_image

TEXTS = {PARAMETERS: "naïve 漢字 😀,\nSteps: 1", RECIPE: '{"schema": 1, "prompt": "\\ud800"}'}
PLAIN = {PARAMETERS: "a cat\nSteps: 1", RECIPE: '{"schema": 1}'}
USER_COMMENT, EXIF = 0x9286, 0x8769


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)


@pytest.mark.parametrize("texts", [TEXTS, PLAIN], ids=["unicode", "ascii"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_what_is_written_is_read(tmp_path, rgb, suffix, texts):
    save_image(tmp_path / f"a{suffix}", rgb, texts)
    assert read_texts(tmp_path / f"a{suffix}") == texts
    save_image(tmp_path / f"b{suffix}", rgb)
    assert read_texts(tmp_path / f"b{suffix}") == {}
    pictures = [read_picture(tmp_path / f"{name}{suffix}")[0] for name in "ab"]
    np.testing.assert_array_equal(*pictures)


def test_kinds_that_hold_less(tmp_path, rgb):
    save_image(tmp_path / "a.tif", rgb, TEXTS)
    assert read_texts(tmp_path / "a.tif") == {RECIPE: TEXTS[RECIPE]}
    save_image(tmp_path / "a.bmp", rgb, TEXTS)
    assert read_texts(tmp_path / "a.bmp") == {}


def test_the_keywords_that_galleries_look_for(tmp_path, rgb):
    save_image(tmp_path / "a.png", rgb, TEXTS)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"iTXtparameters\0")
    assert content[start:].partition(b"IDAT")[0].count("漢字".encode()) == 1
    save_image(tmp_path / "a.png", rgb, PLAIN)
    assert b"tEXtparameters\0a cat\nSteps: 1" in (tmp_path / "a.png").read_bytes()
    for name in ("a.jpg", "a.webp"):
        save_image(tmp_path / name, rgb, TEXTS)
        comment = b"UNICODE\0" + TEXTS[PARAMETERS].encode("utf-16-be")
        assert comment in (tmp_path / name).read_bytes()


def test_long_texts(tmp_path, rgb):
    """A JPEG holds 64 kB: the recipe has priority, and the picture is written in any case."""
    for name in ("a.png", "a.webp"):
        save_image(tmp_path / name, rgb, {PARAMETERS: "é" * 20_000, RECIPE: "{" * 20_000})
        assert {k: len(v) for k, v in read_texts(tmp_path / name).items()} == {
            PARAMETERS: 20_000,
            RECIPE: 20_000,
        }
    save_image(tmp_path / "a.jpg", rgb, {RECIPE: "{}", PARAMETERS: "é" * 40_000})
    assert read_texts(tmp_path / "a.jpg") == {RECIPE: "{}"}
    recipe, kept = {RECIPE: ""}, []
    for length in (65_300, *range(65_430, 65_470), 65_600):
        recipe[RECIPE] = "{" * length
        with warnings.catch_warnings(record=True, action="always") as warned:
            save_image(tmp_path / "a.jpg", rgb[:8, :8], recipe)
        kept.append(read_texts(tmp_path / "a.jpg") == recipe)
        assert kept[-1] is not bool(warned)
    assert kept[0] and not kept[-1] and sorted(kept, reverse=True) == kept


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "a 猫\nSteps: 1".encode("utf-16-be"), "a 猫\nSteps: 1"),
        (b"UNICODE\0" + "a 猫\nSteps: 1".encode("utf-16-le"), "a 猫\nSteps: 1"),
        (b"ASCII\0\0\0a cat", "a cat"),
        (b"UNICODE\0\xd8", "\ufffd"),
        (b"", None),
        (b"JIS\0\0\0\0\0x", None),
    ],
)
def test_comments_of_other_programs(tmp_path, rgb, comment, text):
    exif = Image.Exif()
    exif[EXIF] = {USER_COMMENT: comment}
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=exif)
    assert read_texts(tmp_path / "a.jpg") == ({} if text is None else {PARAMETERS: text})


def test_hostile_files(tmp_path, rgb):
    """Every file gives texts, or an error of one line."""
    picture = Image.fromarray(rgb)
    chunks = PngInfo()
    chunks.add_text(RECIPE, "x" * 3_000_000, zip=True)
    picture.save(tmp_path / "bomb.png", pnginfo=chunks)
    chunks = PngInfo()
    chunks.add(b"iTXt", b"parameters\0\1\0\0\0not zlib")
    chunks.add(b"eXIf", b"MM\0*\0\0\0\x08\0\xff" + b"\x87i\0\x04" * 50)
    picture.save(tmp_path / "chunks.png", pnginfo=chunks)
    (tmp_path / "text.png").write_text("hello")
    save_image(tmp_path / "whole.jpg", rgb, TEXTS)
    whole = (tmp_path / "whole.jpg").read_bytes()
    names = ["bomb.png", "chunks.png", "text.png"]
    generator = np.random.default_rng(0)
    for i in range(200):
        content = bytearray(whole)
        for at in generator.integers(20, 300, 4):
            content[at] = generator.integers(256)
        (tmp_path / f"{i}.jpg").write_bytes(content)
        names.append(f"{i}.jpg")
    for name in names:
        try:
            assert read_texts(tmp_path / name).keys() <= {PARAMETERS, RECIPE}
        except ValueError as error:
            assert str(error).startswith(str(tmp_path / name))
    with pytest.raises(ValueError, match="not a picture"):
        read_texts(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "nothing.png")
    picture.save(tmp_path / "a.eps")  # what Pillow does not draw itself
    with pytest.raises(ValueError, match="not a picture"):
        read_texts(tmp_path / "a.eps")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="a pipe or device, not a file"):
        read_texts(tmp_path / "pipe.png")
