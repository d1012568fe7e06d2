"""`masked_picture.py` and options of masks: what is read, and one line for what is wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.cli.arguments import masked_picture
from stable_diffusion.cli.arguments.parse import image2image_parser, parse, txt2image_parser
from stable_diffusion.cli.settings import StartPicture

PICTURE = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
LEFT = np.zeros((70, 100), np.uint8)
LEFT[:, :40] = 255


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pictures and masks of every kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("p.png")
    Image.fromarray(np.dstack([PICTURE, 255 - LEFT])).save("alpha.png")
    Image.fromarray(np.dstack([PICTURE, LEFT | 255])).save("opaque.png")
    Image.fromarray(PICTURE[:20, :20]).save("small.png")
    Image.fromarray(LEFT).save("m.png")
    Image.fromarray(np.roll(LEFT, -3, axis=1)).save("m.jpg", quality=30)
    Image.fromarray(LEFT[::2, ::2]).save("half.png")
    Image.fromarray(LEFT[:, :90]).save("other.png")
    Image.fromarray(LEFT & 0).save("empty.png")
    Image.fromarray(LEFT | 255).save("full.png")
    Image.fromarray(LEFT // 255).save("labels.png")
    Path("text.png").write_text("white")
    Path("cut.png").write_bytes(Path("m.png").read_bytes()[:60])
    Path("nothing.png").touch()
    Path("folder").mkdir()
    os.mkfifo("pipe.png")


def read(*arguments: str, picture: str = "p.png") -> StartPicture:
    """Return the picture to start from, as a command line says."""
    start = parse(image2image_parser(), [picture, "a cat", *arguments]).start
    assert start is not None
    return start


def read_mask(*arguments: str, picture: str = "p.png") -> np.ndarray:
    repainting = read(*arguments, picture=picture).repainting
    assert repainting is not None
    return repainting.mask


def get_error(capsys: pytest.CaptureFixture, *arguments: str, picture: str = "p.png") -> str:
    """Return the error for a wrong command line, which has one line."""
    with pytest.raises(SystemExit) as stopped:
        read(*arguments, picture=picture)
    assert stopped.value.code == 2
    *_, usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage:") and len(line) < 400
    return line.partition(" error: ")[2]


def test_masks():
    assert np.array_equal(read_mask("--mask", "m.png"), LEFT)
    noisy = np.asarray(Image.open("m.jpg"))
    assert len(np.unique(noisy)) > 2
    assert np.array_equal(read_mask("--mask", "m.jpg"), np.roll(LEFT, -3, axis=1))
    assert np.array_equal(read_mask("--mask", "m.png", "--invert-mask"), 255 - LEFT)
    assert np.array_equal(read("--mask", "m.png").pixels, PICTURE)
    assert read().repainting is None
    blurred = read_mask("--mask=m.png", "--mask-blur=4")
    assert len(np.unique(blurred)) > 10 and (blurred[:, :20] == 255).all()
    assert not blurred[:, 60:].any()


def test_the_transparency_of_the_picture():
    """Hidden colours are not blended with white; ./alpha is a file of that name."""
    start = read("--mask", "alpha", picture="alpha.png")
    assert np.array_equal(start.pixels, PICTURE) and start.repainting.file == "alpha"
    assert np.array_equal(start.repainting.mask, LEFT)
    Path("m.png").rename("alpha")
    assert np.array_equal(read_mask("--mask=./alpha"), LEFT)


def test_a_mask_of_the_same_proportions_is_resized(capsys):
    assert np.array_equal(read_mask("--mask", "half.png") > 0, LEFT > 0)
    assert "Resized the mask half.png from 50x35 to 100x70\n" in capsys.readouterr().out


def test_a_size():
    """The picture and the mask are resized together; any size will do."""
    start = read("--mask=m.png", "--width=131", "--height=77", "--fit=crop")
    assert start.size == (131, 77) and start.own_size is None
    assert start.repainting.mask.shape == (77, 131)
    assert set(np.unique(start.repainting.mask)) == {0, 255}
    pixels = start.pixels.astype(int)
    expected = Image.open("p.png").resize((131, 77), Image.Resampling.LANCZOS, (0, 5.6, 100, 64.4))
    assert np.abs(pixels - np.asarray(expected)).mean() < 2
    padded = read("--mask=m.png", "--width=300", "--height=70", "--fit=pad")
    assert np.array_equal(padded.pixels[:, 100:200], PICTURE)
    assert (padded.repainting.mask[:, :140] == 255).all()
    assert not padded.repainting.mask[:, 140:].any()


def test_extending():
    start = read("--outpaint", "3,0,5,2")
    assert start.size == (108, 72) and start.own_size == (108, 72)
    inside = np.zeros((72, 108), bool)
    inside[:70, 3:103] = True
    assert np.array_equal(start.pixels[inside], PICTURE.reshape(-1, 3))
    assert np.array_equal(start.repainting.mask, np.where(inside, 0, 255))
    assert read("--outpaint=7").size == (114, 84)
    both = read_mask("--outpaint=0,0,9,0", "--mask=m.png")
    assert np.array_equal(both, np.pad(LEFT, ((0, 0), (0, 9)), constant_values=255))
    assert read("--outpaint=30", picture="small.png").size == (80, 80)


def test_a_part():
    """It may be small, and the size is that of the part."""
    start = read("--mask-crop=8", "--outpaint=1", picture="small.png")
    assert start.is_cropped and not start.is_padded and start.size == (22, 22)
    settings = parse(
        image2image_parser(),
        ["p.png", "x", "--mask", "m.png", "--mask-crop", "8", "--width", "64", "--height", "64"],
    )
    assert settings.start.size == (100, 70) and settings.requests[0].width == 64


def test_greys_blend_in_a_part():
    """They are pasted as they are, as in diffusers; the noise of a JPEG does not enlarge the part.

    Without a part to cut out they are black or white.
    """
    soft = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (70, 1))
    Image.fromarray(soft).save("soft.png")
    assert np.array_equal(read_mask("--mask=soft.png", "--mask-crop=8"), soft)
    inverted = read_mask("--mask=soft.png", "--mask-crop=8", "--invert-mask")
    assert np.array_equal(inverted, 255 - soft)
    assert np.array_equal(read_mask("--mask=soft.png"), np.where(soft >= 128, 255, 0))
    noisy = read_mask("--mask=m.jpg", "--mask-crop=8")
    assert set(np.unique(noisy[:, :30])) == {255} and set(np.unique(noisy[:, 44:90])) == {0}
    Image.fromarray(np.minimum(soft, 127)).save("dark.png")
    with pytest.raises(SystemExit):
        read("--mask=dark.png", "--mask-crop=8")


def test_a_full_mask_gets_a_warning():
    with pytest.warns(UserWarning, match="the mask has all of the picture"):
        read("--mask", "full.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mask missing.png", "missing.png: No such file"),
        ("--mask folder", "folder: Is a directory: name a picture in it"),
        ("--mask pipe.png", "pipe.png: a pipe or device, not a file"),
        ("--mask /dev/zero", "/dev/zero: a pipe or device, not a file"),
        ("--mask text.png", "text.png: "),
        ("--mask cut.png", "cut.png: the picture is damaged"),
        ("--mask nothing.png", "nothing.png: "),
        ("--mask https://a.b/m.png", "https://a.b/m.png is a web address: download the mask"),
        ("--mask other.png", "other.png: the mask has 90x70 pixels, and p.png has 100x70: give"),
        ("--mask empty.png", "empty.png: the mask is empty: white is repainted, and its brightest"),
        ("--mask labels.png", "its brightest grey is 1 of 255, where 128 is needed"),
        ("--mask full.png --invert-mask", "full.png: the mask is empty: all of it is white"),
        ("--mask alpha", "p.png: the mask is empty: no part of the picture is transparent"),
        ("--mask m.png --mask-blur 900", "nothing is left of the mask: give less --mask-blur"),
        ("--outpaint 0,0,0,8 --fit crop --width 64 --height 24", "left of the mask in 64x24: give"),
        ("--mask m.png --mask-blur -1", "must be from 0 to 1000, got -1"),
        ("--mask m.png --mask-blur 1001", "must be from 0 to 1000, got 1001"),
        ("--mask m.png --mask-crop x", "'x' is not an integer"),
        ("--mask m.png --mask-crop 8 --fit pad", "--fit and --mask-crop: leave one out"),
        ("--mask m.png --fit pad", "--fit needs --width and --height"),
        ("--invert-mask", "--invert-mask needs --mask"),
        ("--outpaint 8 --invert-mask", "--invert-mask needs --mask"),
        ("--mask-blur 3", "--mask-blur needs --mask or --outpaint"),
        ("--mask-crop 0", "--mask-crop needs --mask or --outpaint"),
        ("--outpaint 0", "must add pixels at one side at least, got 0"),
        ("--outpaint 1,2", "must be one number or four, LEFT,TOP,RIGHT,BOTTOM, got 1,2"),
        ("--outpaint=-8", "must be from 0 to 16384, got -8"),
        ("--outpaint 1,,2,3", "'' is not an integer"),
        ("--outpaint 16000", "p.png: 32100x32070 are too many pixels: at most 120 million"),
    ],
)
def test_what_is_wrong(capsys, words, message):
    assert message in get_error(capsys, *words.split())


def test_a_small_picture(capsys):
    error = get_error(capsys, "--mask=alpha", picture="small.png")
    assert error.startswith("small.png: each side must be at least 64 pixels, got 20x20: ")
    assert "no part of the picture is transparent" in get_error(
        capsys, "--mask=alpha", picture="opaque.png"
    )


def test_a_picture_that_is_too_large_is_not_read(monkeypatch):
    """`job.check_start`, which knows the model, refuses it."""
    monkeypatch.setattr(masked_picture, "MAX_PIXELS", 5000)
    monkeypatch.setattr(masked_picture, "read_channels", None)
    start = read("--mask", "m.png")
    assert start.size == (100, 70) and not start.pixels.any()


def test_the_other_script_has_no_masks(capsys):
    with pytest.raises(SystemExit):
        parse(txt2image_parser(), ["a cat", "--mask", "m.png"])
    assert "image2image.py" in capsys.readouterr().err
