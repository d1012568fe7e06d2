"""What is made at once, and what a run plans; many pictures, some of which are there."""

import os
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import psnr
from ours import ROOT
from PIL import Image

import image2image
import txt2image
from stable_diffusion.cli.arguments import parse
from stable_diffusion.cli.job import Job, UsageError, check_start_size, warn_of_no_guidance
from stable_diffusion.cli.plan import Plan, batches
from stable_diffusion.cli.terminal import progress
from stable_diffusion.device import memory

SAME = 50  # dB
JOB = Job("a", seed=1, width=64, height=64, steps=4)


def shares(jobs: list[Job], size: int, n_shares: int = 1) -> list[list[int]]:
    """The seeds of each batch."""
    found = batches(jobs, lambda _: size, n_shares)
    return [[job.seed for job in batch.jobs] for batch in found]


def test_batches_are_even_and_share_their_settings():
    many = [replace(JOB, prompt=str(i), negative_prompt=str(-i), seed=i) for i in range(7)]
    assert shares(many, 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert shares(many, 8) == [[*range(7)]]
    assert shares(many, 8, n_shares=2) == [[0, 1, 2], [3, 4, 5, 6]]
    assert shares(many[:2], 8, n_shares=4) == [[0], [1]]
    mixed = [replace(job, steps=4 + job.seed % 2) for job in many]
    assert shares(mixed, 8) == [[0, 2, 4, 6], [1, 3, 5]]


def test_long_prompts_are_alone():
    """Beside a longer one they would get more windows than by themselves."""
    jobs = [replace(JOB, long_prompt=True, prompt=p, seed=i) for i, p in enumerate("aba")]
    assert shares(jobs, 8) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"negative_prompt": "x", "cfg": 1.0}, "--negative_prompt"),
        ({"guidance_rescale": 0.7, "cfg": 0.0}, "--guidance-rescale"),
        (
            {"negative_prompt": "x", "guidance_rescale": 0.7, "cfg": 0.0},
            "--negative_prompt and --guidance-rescale",
        ),
        ({"negative_prompt": "x", "guidance_rescale": 0.7, "cfg": 1.1}, None),
        ({"cfg": 0.0}, None),
    ],
)
def test_what_needs_guidance(recwarn, options, said):
    warn_of_no_guidance([replace(JOB, cfg=7.5, negative_prompt="y"), replace(JOB, **options)])
    warned = [str(warning.message) for warning in recwarn]
    assert warned == (
        []
        if said is None
        else [f"there is no guidance for {said} to work through: give --cfg more than 1"]
    )


def test_memory_decides_how_many_at_once(monkeypatch):
    plan = Plan([], None, None, batch_size=0, pixels_at_once=3 * 512 * 512)
    sizes = [64, 512, 768, 1024]
    assert [plan.at_once(replace(JOB, width=n, height=n)) for n in sizes] == [8, 3, 1, 1]
    assert replace(plan, batch_size=5).at_once(JOB) == 5
    monkeypatch.setattr(memory, "read_total_memory", lambda: 16e9)
    assert memory.choose_batch_pixels() == 512 * 512  # of a CPU, whatever its memory
    monkeypatch.setattr(memory.mx, "default_device", lambda: memory.mx.Device(memory.mx.gpu))
    assert memory.choose_batch_pixels() // 512**2 == 2


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_files_equal_the_grid(tmp_path, capsys):
    usual = ["a red circle", "--model=tiny", "--steps=2", "--n_images=3", "--seed=5"]
    files = tmp_path / "{seed}-{index}-{model}.png"
    assert txt2image.main([*usual, f"--output={tmp_path / 'o.png'}"]) == 0
    assert txt2image.main([*usual, f"--output={files}", "--batch-size=2"]) == 0
    assert capsys.readouterr().out.count("Wrote ") == 4
    for i in range(3):
        column = read(tmp_path / "o.png")[8:-8, 80 * i + 8 : 80 * i + 72]
        assert psnr(read(tmp_path / f"{5 + i}-000{i + 1}-tiny.png"), column) >= SAME
    assert txt2image.main([*usual, f"--output={files}"]) == 2
    assert "and 2 more exist: --force overwrites" in capsys.readouterr().err


LINES = """
{"prompt": "a red circle", "seed": 3}
{"prompt": "a blue star", "cfg": 1, "steps": 3, "n_images": 2, "sampler": "ddim", "seed": 1}
{"prompt": "a green ring", "seed": 9, "negative_prompt": "a red circle"}
{"prompt": "a green ring", "seed": 9, "width": 32, "height": 64, "output": "narrow.webp"}
"""


def test_lines_are_what_calls_are(tmp_path, capsys):
    """Batches of different prompts, steps, samplers and sizes; the second time none is made."""
    (tmp_path / "p.jsonl").write_text(LINES)
    usual = ["--model=tiny", "--steps=2"]
    many = [*usual, f"--prompts-file={tmp_path / 'p.jsonl'}", f"--output={tmp_path / 'd'}/"]
    assert txt2image.main(many) == 0
    alone = {
        "0003.png": ["a blue star", "--cfg=1", "--steps=3", "--sampler=ddim", "--seed=2"],
        "0004.png": ["a green ring", "--seed=9", "--negative-prompt=a red circle"],
        "narrow.webp": ["a green ring", "--seed=9", "--width=32", "--height=64"],
    }
    assert sorted(os.listdir(tmp_path / "d")) == sorted([*alone, "0001.png", "0002.png"])
    for name, options in alone.items():
        output = f"--output={tmp_path / 'o.png'}"
        assert txt2image.main([*usual, "--n_images=1", *options, output]) == 0
        assert psnr(read(tmp_path / "d" / name), read(tmp_path / "o.png")) >= SAME

    (tmp_path / "d" / "0002.png").write_bytes(b"mine")
    capsys.readouterr()
    assert txt2image.main(many) == 0
    assert capsys.readouterr().out == "Skipped 5 of 5 pictures, which exist\n"
    assert (tmp_path / "d" / "0002.png").read_bytes() == b"mine"


def test_a_prompts_file_that_was_changed(tmp_path, capsys):
    """What exists is kept; where it is not what is asked for now, that is said."""
    file, folder = tmp_path / "p.txt", tmp_path / "d"
    arguments = ["--model=tiny", "--steps=1", f"--prompts-file={file}", f"--output={folder}/"]
    file.write_text("a red circle\na blue star\n")
    assert txt2image.main(arguments) == 0
    assert txt2image.main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    file.write_text("a red circle\na green star\n")
    assert txt2image.main(arguments) == 0
    error = capsys.readouterr().err
    assert f"warning: {folder / '0002.png'} was made of another prompt" in error
    assert txt2image.main([*arguments, "--cfg=3"]) == 0
    assert "0001.png and 1 more were made of another" in capsys.readouterr().err
    assert txt2image.main([*arguments, "--quantize"]) == 0
    assert "0001.png and 1 more were made of another" in capsys.readouterr().err


def test_lines_of_pictures_to_start_from(tmp_path):
    """At strength 0 the prompt does not matter."""
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "i.png")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red circle", "strength": 0}\n{"prompt": "a blue star", "strength": 0}\n'
        '{"prompt": "a blue star", "strength": 1}\n'
    )
    arguments = [f"{tmp_path / 'i.png'}", f"--prompts-file={tmp_path / 'p.jsonl'}", "--model=tiny"]
    assert image2image.main([*arguments, "--steps=4", f"--output={tmp_path / 'd'}/"]) == 0
    kept, same, other = (read(tmp_path / "d" / f"000{i}.png") for i in (1, 2, 3))
    assert np.array_equal(kept, same) and psnr(kept, other) < SAME - 20


def test_what_does_not_suit_the_model_names_the_line(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "width": 60, "height": 64}')
    arguments = [f"--prompts-file={tmp_path / 'p.jsonl'}", "--model=tiny"]
    assert txt2image.main([*arguments, f"--output={tmp_path / 'd'}/"]) == 2
    assert "line 2: --width must be a multiple of" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_killed_and_started_again(tmp_path, capsys):
    """What was finished is kept, whole; the rest is made."""
    n, folder = 10, tmp_path / "d"
    (tmp_path / "p.txt").write_text("\n".join(f"a red circle {i}" for i in range(n)))
    arguments = ["--model=tiny", "--steps=2", "--batch-size=1", f"--output={folder}/"]
    arguments += [f"--prompts-file={tmp_path / 'p.txt'}"]
    command = [sys.executable, "txt2image.py", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **quiet) as process:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.png"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    before = {file.name: file.read_bytes() for file in folder.glob("*.png")}
    assert 2 <= len(before) < n
    assert txt2image.main(arguments) == 0
    assert f"Skipped {len(before)} of {n} pictures" in capsys.readouterr().out
    assert sorted(os.listdir(folder)) == [f"{i:04}.png" for i in range(1, n + 1)]
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert len({read(file).tobytes() for file in folder.iterdir()}) == n


def start_from(path: Path, size: tuple[int, int], *options: str) -> int:
    """Run the script with a picture of this size, and the embedded model."""
    Image.new("RGB", size, "navy").save(path / "start.png")
    arguments = [str(path / "start.png"), "a star", "--model=tiny", "--steps=2", "--n_images=1"]
    return image2image.main([*arguments, f"--output={path / 'o.png'}", *options])


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        ((1600, 1200), "--width 64 --height 48"),
        ((1200, 1600), "--width 48 --height 64"),
        ((5000, 5000), "--width 64 --height 64"),  # more than is started from with any model
    ],
)
def test_a_picture_that_is_too_large_for_the_model(tmp_path, capsys, monkeypatch, size, fitting):
    """It is refused before weights are read, with options that suit it."""
    monkeypatch.setattr(progress, "read_weights", None)
    assert start_from(tmp_path, size) == 2
    *_, line = capsys.readouterr().err.splitlines()
    about = f"error: {tmp_path / 'start.png'} has {size[0]}x{size[1]} pixels, some "
    assert line.startswith(about) and " times as many as the model is made for (64x64): " in line
    assert f": add {fitting}, or another --width and --height" in line
    monkeypatch.undo()
    assert start_from(tmp_path, size, *fitting.split()) == 0
    assert " times as many" not in capsys.readouterr().err


def test_a_picture_that_is_large_for_the_model(tmp_path, capsys):
    """A warning where nobody has said that it shall be so large."""
    assert start_from(tmp_path, (192, 128)) == 0
    assert (
        "warning: {} has 192x128 pixels, some 6 times as many as the model is made for (64x64): it "
        "takes long, and things may come out twice; --width 72 --height 48 suits the model"
    ).format(tmp_path / "start.png") in capsys.readouterr().err.splitlines()
    assert start_from(tmp_path, (192, 128), "--width=192", "--height=128") == 0
    assert start_from(tmp_path, (127, 127)) == 0  # brought down to 64x64
    assert "times as many" not in capsys.readouterr().err


def test_how_large_a_picture_may_be(tmp_path):
    """By the pixels of the model, or in all."""

    def check(side: int, usual: int) -> None:
        defaults = SimpleNamespace(size=(usual, usual))
        config = SimpleNamespace(defaults=defaults, autoencoder=SimpleNamespace(factor=8))
        check_start_size(Namespace(image_size=(side, side), image_file="a.png"), config)

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


def test_a_tilde_that_the_shell_has_left(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    args = parse.parse(parse.image2image_parser(), ["~/start.png", "a star"])
    assert args.image_file == str(tmp_path / "start.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "start.png").rename(tmp_path / "~" / "start.png")
    assert parse.parse(parse.image2image_parser(), ["~/start.png", "a"]).image_file == "~/start.png"
