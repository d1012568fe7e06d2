"""`--control`, `--control-range` and `--control-canny` on a command line, and in recipes."""

import os
import sys

import numpy as np
import pytest
from command_lines import parse_in_folder
from PIL import Image

from stable_diffusion.cli.arguments import control_values
from stable_diffusion.cli.arguments.parse import image2image_parser, parse, txt2image_parser
from stable_diffusion.cli.controls import make_controls, warn_of_pictures
from stable_diffusion.cli.main import txt2image
from stable_diffusion.cli.recipe.control_text import describe_controls, name_ranges
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.record import _Choices
from stable_diffusion.cli.settings import Settings
from stable_diffusion.cli.start import make_start
from stable_diffusion.control import LoadedControl
from stable_diffusion.utils.size import Size


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with a picture, a.png, the working directory."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("a.png")
    return tmp_path


def read(folder, *arguments: str) -> Settings:
    """Return the settings of a command line of `txt2image.py`."""
    return parse(txt2image_parser(), ["a ring", *arguments])


@pytest.mark.parametrize(
    ("text", "model", "kind", "file", "scale"),
    [
        ("canny=a.png", "canny", None, "a.png", 1),
        ("canny=a.png:0.75", "canny", None, "a.png", 0.75),
        ("org/name@v2=a.png:2", "org/name@v2", None, "a.png", 2),
        ("org/name@canny=a.png", "org/name", "canny", "a.png", 1),
        ("org/name@v2@6=a.png", "org/name@v2", "6", "a.png", 1),
        ("union@lineart=a.png", "union", "lineart", "a.png", 1),
        (r"C:\nets\x.safetensors=a.png:1", r"C:\nets\x.safetensors", None, "a.png", 1),
        (r"canny=C:\x.png", "canny", None, r"C:\x.png", 1),
        ("canny=with space=1:2@3.png", "canny", None, "with space=1:2@3.png", 1),
        ("canny=with space=1:2@3.png:0.5", "canny", None, "with space=1:2@3.png", 0.5),
        ("x=y=with space=1:2@3.png:0.5", "x=y", None, "with space=1:2@3.png", 0.5),
        ("canny=b:1", "canny", None, "b:1", 1),
        ("net@canny=a.png", "net@canny", None, "a.png", 1),
        ("canny=a.png:1e-1", "canny", None, "a.png", 0.1),
        ("canny=missing:a.png", "canny", None, "missing:a.png", 1),
        (" canny =a.png", "canny", None, "a.png", 1),
    ],
)
def test_parts(folder, text, model, kind, file, scale):
    """Existing files decide where a name ends."""
    for name in ("with space=1:2@3.png", "b:1"):
        Image.new("RGB", (8, 8)).save(folder / name, "PNG")
    (folder / "net@canny").mkdir()
    assert control_values.parse_control(text) == (model, kind, file, scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "canny"], "must be MODEL=IMAGE or MODEL=IMAGE:SCALE, such as"),
        (["--control", "=a.png"], "must be MODEL=IMAGE"),
        (["--control", "canny="], "must be MODEL=IMAGE"),
        (["--control", "canny=a.png:x"], "'x' is not a number"),
        (["--control", "canny=a.png:11"], "must be from 0 to 10, got 11"),
        (["--control", "canny=a.png:-1"], "must be from 0 to 10, got -1"),
        (["--control", "canny=a.png:nan"], "must be from 0 to 10, got nan"),
        (["--control", "union@cany=a.png"], "got 'cany': did you mean canny?"),
        (["--control", "https://huggingface.co/o/n=a.png"], "is a web address: give o/n"),
        (["--control", "canny=https://x.org/a.png"], "https://x.org/a.png: "),
        (["--control", "canny=b.png"], "No such file or directory: did you mean a.png?"),
        (["--control", "canny=."], "Is a directory"),
        (["--control", "canny=-"], "cannot be read from standard input"),
        (["--control", "canny=text.png"], "text.png: "),
        (["--control", "canny=cut.png"], "the picture is damaged"),
        (["--control-range", "0-1"], "--control-range needs --control"),
        (["--control-canny"], "--control-canny needs --control"),
        (["--control", "canny=a.png", "--control-range", "1"], "must be START-END, such as 0-0.5"),
        (["--control", "canny=a.png", "--control-range", "0.5-0.5"], "must begin before it ends"),
        (["--control", "canny=a.png", "--control-range", "0-1.5"], "must be from 0 to 1, got 1.5"),
        (["--control", "canny=a.png", "--control-range", "0-.-"], "must be START-END"),
        (["--control", "canny=a.png", "--control-range", "0-1..2"], "'1..2' is not a number"),
        (
            ["--control", "canny=a.png", "--control-range", "0-1", "--control-range", "0-0.5"],
            "--control-range is given 2 times and --control 1",
        ),
        (["--control", "canny=a.png", "--control-canny=200,100"], "the first must be the lower"),
        (["--control", "canny=a.png", "--control-canny=x"], "must be LOW,HIGH, such as 100,200"),
        (["--control", "canny=a.png", "--control-canny"], "pip install opencv-python-headless"),
        (["--controlnet", "x"], "write --control MODEL=IMAGE:SCALE, such as"),
    ],
)
def test_wrong_usage(folder, capsys, monkeypatch, arguments, message):
    """It ends the program with one line, before anything is loaded."""
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    with pytest.raises(SystemExit) as stopped:
        read(folder, *arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in said
    assert said.splitlines()[-1].count("error: ") == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("names", "types", "expected"),
    [
        (["depth"], [""], [True]),
        (["canny", "depth"], ["", ""], [True, False]),
        (["union", "union"], ["@depth", "@lineart"], [False, True]),
        (["nets/My_Canny.safetensors", "depth"], ["", ""], [True, False]),
    ],
)
def test_whose_edges_are_drawn(folder, monkeypatch, names, types, expected):
    monkeypatch.setitem(sys.modules, "cv2", object())
    words = [f"--control={name}{kind}=a.png" for name, kind in zip(names, types, strict=True)]
    settings = read(folder, *words, "--control-canny")
    assert [each.canny == (100, 200) for each in settings.controls] == expected
    thresholds = [each.canny for each in read(folder, *words, "--control-canny=5,6").controls]
    assert [each == (5, 6) for each in thresholds] == expected
    with pytest.raises(SystemExit):
        read(folder, "--control=depth=a.png", "--control=tile=a.png", "--control-canny")


def test_ranges_and_recipes(folder):
    """What a recipe says is parsed as the same controls again."""
    words = ["--control=canny=a.png:0.3", "--control=union@depth=a.png"]
    settings = read(folder, *words, "--control-range=0.25-0.5", "--control-range=0-1")
    assert [(each.start, each.end) for each in settings.controls] == [(0.25, 0.5), (0, 1)]
    choices = _Choices.from_settings(settings)
    assert choices.control == ("canny=a.png:0.3", "union@depth=a.png:1")
    assert choices.control_range == ("0.25-0.5", "0-1")
    assert len(set(choices.control_sha256)) == 1
    again = [f"--control={text}" for text in choices.control]
    again += [f"--control-range={text}" for text in choices.control_range]
    assert _Choices.from_settings(read(folder, *again)) == choices
    for ranges, expected in [([], ()), (["0-1"], ()), (["0.00001-1"], ("0.00001-1",))]:
        given = [f"--control-range={each}" for each in ranges]
        assert name_ranges(read(folder, *words, *given).controls) == expected
    recipe = Recipe(
        control=choices.control, control_range=choices.control_range, control_canny="1,2"
    )
    described = describe_controls(recipe)
    assert "Module: canny" in described["ControlNet 0"]
    assert "Module: none, Model: union@depth, " in described["ControlNet 1"]
    pinned = f"org/name/x.safetensors@{'0f' * 20}@canny=a.png:1"
    assert (
        "Model: x.safetensors@canny, "
        in describe_controls(Recipe(control=(pinned,)))["ControlNet 0"]
    )
    assert list(described) == ["ControlNet 0", "ControlNet 1"]
    assert "Model: canny, Weight: 0.3" in described["ControlNet 0"]
    assert "Guidance Start: 0.25, Guidance End: 0.5" in described["ControlNet 0"]


class FakeLoaded(LoadedControl):
    """A control network that is never computed."""

    def __init__(self) -> None:
        self.name, self.types, self._network = "fake", (), object()


def test_pictures_of_the_size_that_is_drawn(folder):
    """With a mask the control picture shows all of the picture, of which a part may be drawn."""
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (128, 1))] * 3, -1)).save("ramp.png")
    mask = np.zeros((128, 128), np.uint8)
    mask[:32, 96:] = 255
    Image.fromarray(mask).save("mask.png")
    words = ["ramp.png", "a ring", "--mask", "mask.png", "--control", "canny=ramp.png"]
    networks = {"canny": FakeLoaded()}
    for crop, levels in [([], (0, 255)), (["--mask-crop", "0"], (192, 255))]:
        settings = parse(image2image_parser(), [*words, *crop])
        size = Size(64, 64) if crop else Size(128, 128)
        start = make_start(settings.start, size, 8)
        (control,) = make_controls(settings.controls, networks, size, start)
        drawn = np.array(control.image)
        assert drawn.shape == start.pixels.shape
        shown = (drawn[32, 0, 0] * 255, drawn[32, -1, 0] * 255)
        assert np.abs(np.subtract(shown, levels)).max() < 5


def test_edges_are_drawn_at_each_size(folder, monkeypatch):
    """A second pass has edges of its own, of the picture as it is in the file."""
    monkeypatch.setitem(sys.modules, "cv2", object())
    drawn = []

    def draw_edges(picture, low, high):
        drawn.append(picture.shape)
        return picture

    monkeypatch.setattr("stable_diffusion.cli.controls.draw_edges", draw_edges)
    words = ["--model=tiny", "--steps=1", "--width=32", "--height=32", "--hires=1.5"]
    words += ["--control=outline=a.png", "--control-canny", "--output=b.png"]
    assert txt2image(["a ring", *words]) == 0
    assert drawn[-2:] == [(32, 32, 3), (48, 48, 3)]


def test_pictures_that_steer_little(folder):
    """Other proportions, and pictures of one colour, are said once."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save("noise.png")
    flat, fine = (
        read(folder, f"--control=canny={name}").controls for name in ("a.png", "noise.png")
    )
    sizes = [Size(64, 64), Size(65, 64), Size(64, 64)]
    with pytest.warns(UserWarning) as warned:
        warn_of_pictures(flat, sizes)
        warn_of_pictures(fine, [*sizes, Size(128, 64), Size(64, 128)])
    assert [str(each.message) for each in warned] == [
        "a.png has one colour: it steers little",
        "noise.png has other proportions than the pictures: it is stretched from 64x64 to 128x64",
    ]


def test_both_scripts_and_all_kinds_of_pictures(folder):
    """Pictures are upright, blended with white, and reduced if they are enormous."""
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save("b.png", exif=exif)
    (control,) = parse(image2image_parser(), ["a.png", "a", "--control", "canny=b.png"]).controls
    assert control.pixels.shape == (16, 8, 3) and (control.pixels == 1).all()
    assert control.pixels.dtype == np.float32
    Image.new("1", (8000, 4000)).save("large.png")
    (control,) = read(folder, "--control", "canny=large.png").controls
    height, width, _ = control.pixels.shape
    assert height * width <= 4096**2 and width == pytest.approx(2 * height, abs=2)
    os.environ["HOME"], home = str(folder), os.environ["HOME"]
    try:
        assert read(folder, "--control", "canny=~/a.png").controls[0].file == str(folder / "a.png")
    finally:
        os.environ["HOME"] = home


def test_the_prompt_after_canny_is_no_threshold(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", object())
    settings = parse_in_folder(
        folder, "txt2image.py", ["--control=canny=a.png", "--control-canny", "a ring"]
    )
    assert settings.controls[0].canny == (100, 200) and settings.requests[0].prompt == "a ring"
    words = ["--control=canny=a.png", "--control-canny", "50,70", "a ring"]
    assert parse(txt2image_parser(), words).controls[0].canny == (50, 70)
