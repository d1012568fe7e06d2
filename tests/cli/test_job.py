"""Pictures to make: what suits the model, and what has no effect."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import image2image
import txt2image
from stable_diffusion.cli import job
from stable_diffusion.cli.arguments import parse, start_picture
from stable_diffusion.cli.job import CompleteJob, UsageError, check_start, warn_of_no_guidance
from stable_diffusion.cli.settings import Repainting, StartPicture
from stable_diffusion.cli.terminal import progress
from stable_diffusion.images import arrays
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.utils.size import Size

NO_PIXELS = np.zeros((0, 0, 3), np.float32)
JOB = CompleteJob("a", seed=1, width=64, height=64, steps=4, cfg=7.5, sampler="euler")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"negative_prompt": "x", "cfg": 1.0}, "--negative_prompt has"),
        ({"guidance_rescale": 0.7, "cfg": 0.0}, "--guidance-rescale has"),
        (
            {"negative_prompt": "x", "guidance_rescale": 0.7, "cfg": 0.0},
            "--negative_prompt and --guidance-rescale have",
        ),
        ({"negative_prompt": "x", "guidance_rescale": 0.7, "cfg": 1.1}, None),
        ({"cfg": 0.0}, None),
        ({"cfg_range": (0.2, 1.0), "cfg": 1.0}, "--cfg-range has"),
        ({"cfg_range": (0.2, 1.0), "cfg": 1.1}, None),
    ],
)
def test_what_needs_guidance(recwarn, options, said):
    jobs = [replace(JOB, cfg=7.5, negative_prompt="y"), replace(JOB, **options)]
    warn_of_no_guidance(jobs, load_model_config("tiny"))
    warned = [str(warning.message) for warning in recwarn]
    assert warned == (
        [] if said is None else [f"{said} no effect without guidance: give --cfg more than 1"]
    )


def test_a_unet_that_takes_the_guidance_as_a_number():
    config = load_model_config("tiny")
    config = replace(config, unet=replace(config.unet, time_cond_proj_dim=256))
    with pytest.warns(UserWarning, match="--negative_prompt has no effect with this model, whose"):
        warn_of_no_guidance([replace(JOB, negative_prompt="y")], config)


def test_what_does_not_suit_the_model_names_the_line(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "width": 60, "height": 64}')
    arguments = [f"--prompts-file={tmp_path / 'p.jsonl'}", "--model=tiny"]
    assert txt2image.main([*arguments, f"--output={tmp_path / 'd'}/"]) == 2
    assert "line 2: --width must be a multiple of" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def run_from_picture(path: Path, size: tuple[int, int], *options: str) -> int:
    """Run the script with a picture of this size, and the embedded model."""
    Image.new("RGB", size, "navy").save(path / "start.png")
    arguments = [str(path / "start.png"), "a star", "--model=tiny", "--steps=2", "--n_images=1"]
    return image2image.main([*arguments, f"--output={path / 'o.png'}", *options])


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        ((1600, 1200), "--width 64 --height 48"),
        ((1200, 1600), "--width 48 --height 64"),
        ((2500, 2500), "--width 64 --height 64"),  # more than is started from with any model
    ],
)
def test_a_picture_that_is_too_large_for_the_model(tmp_path, capsys, monkeypatch, size, fitting):
    """The error comes before weights are read, and suggests options that work."""
    monkeypatch.setattr(progress, "read_weights", None)
    for module in (arrays, job, start_picture):  # of a picture that is started from
        monkeypatch.setattr(module, "MAX_PIXELS", 2000 * 2000)
    assert run_from_picture(tmp_path, size) == 2
    *_, line = capsys.readouterr().err.splitlines()
    about = f"error: {tmp_path / 'start.png'} has {size[0]}x{size[1]} pixels, about "
    assert line.startswith(about) and " times as many as the model is made for (64x64): " in line
    assert f": add {fitting}, or another --width and --height" in line
    monkeypatch.undo()
    assert run_from_picture(tmp_path, size, *fitting.split()) == 0
    assert " times as many" not in capsys.readouterr().err


def test_a_picture_that_is_large_for_the_model(tmp_path, capsys):
    """There is a warning unless the user gives the size."""
    assert run_from_picture(tmp_path, (192, 128)) == 0
    assert (
        f"warning: {tmp_path / 'start.png'} has 192x128 pixels, about 6 times as many as the model "
        "is made for (64x64): it takes long, and objects may appear twice; "
        "--width 72 --height 48 suits the model"
    ) in capsys.readouterr().err.splitlines()
    assert run_from_picture(tmp_path, (192, 128), "--width=192", "--height=128") == 0
    assert run_from_picture(tmp_path, (127, 127)) == 0  # brought down to 64x64
    assert "times as many" not in capsys.readouterr().err


def test_how_large_a_picture_may_be(tmp_path):
    """The limits depend on the size of the model and on the number of pixels."""

    def check(side: int, usual: int) -> None:
        defaults = SimpleNamespace(size=(usual, usual))
        config = SimpleNamespace(defaults=defaults, autoencoder=SimpleNamespace(factor=8))
        check_start(StartPicture("a.png", NO_PIXELS, Size(side, side)), config)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(640, 512)
        check(1408, 1024)
    for side, usual in ((768, 512), (1408, 512), (2880, 1024), (1024, 64)):
        with pytest.warns(UserWarning, match=f"--width {usual} --height {usual} suits the model"):
            check(side, usual)
    for side, usual in ((1472, 512), (2944, 1024), (1088, 64), (4160, 2048)):
        with pytest.raises(UsageError, match=f"add --width {usual} --height {usual},"):
            check(side, usual)


def test_the_usual_strength():
    """A part is painted from noise alone; a whole picture keeps something of the first one."""
    repainting = Repainting(NO_PIXELS[..., 0])
    assert job.find_default_strength(StartPicture("a.png", NO_PIXELS, repainting=repainting)) == 1
    assert job.find_default_strength(StartPicture("a.png", NO_PIXELS)) == 0.9
    assert job.find_default_strength(None) is None


def test_a_tilde_that_the_shell_has_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    settings = parse.parse(parse.image2image_parser(), ["~/start.png", "a star"])
    assert settings.start.file == str(tmp_path / "start.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "start.png").rename(tmp_path / "~" / "start.png")
    settings = parse.parse(parse.image2image_parser(), ["~/start.png", "a"])
    assert settings.start.file == "~/start.png"
