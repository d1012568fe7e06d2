"""Runs of many pictures, some of which exist already."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from oracle import psnr
from ours import ROOT
from PIL import Image

import image2image
import txt2image

SAME = 50  # dB
LINES = """
{"prompt": "a red circle", "seed": 3}
{"prompt": "a blue star", "cfg": 1, "steps": 3, "n_images": 2, "sampler": "ddim", "seed": 1}
{"prompt": "a green ring", "seed": 9, "negative_prompt": "a red circle"}
{"prompt": "a green ring", "seed": 9, "width": 32, "height": 64, "output": "narrow.webp"}
"""


def read(path: Path) -> np.ndarray:
    """Return the pixels of a file."""
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


def test_lines_are_what_calls_are(tmp_path, capsys):
    """Each line makes the picture of a call with its options; the second time none is made."""
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
    """Existing pictures are kept, with a warning if something else is asked for now."""
    file, folder = tmp_path / "p.txt", tmp_path / "d"
    arguments = ["--model=tiny", "--steps=1", f"--prompts-file={file}", f"--output={folder}/"]
    file.write_text("a red circle\na blue star\n")
    assert txt2image.main(arguments) == 0
    assert txt2image.main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    file.write_text("a red circle\na green star\n")
    assert txt2image.main(arguments) == 0
    error = capsys.readouterr().err
    assert f"warning: {folder / '0002.png'} was made from another prompt" in error
    assert txt2image.main([*arguments, "--cfg=3"]) == 0
    assert "0001.png and 1 more were made from another" in capsys.readouterr().err
    assert txt2image.main([*arguments, "--quantize"]) == 0
    assert "0001.png and 1 more were made from another" in capsys.readouterr().err


def test_lines_of_pictures_to_start_from(tmp_path):
    """At strength 0 the prompt makes no difference."""
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "i.png")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red circle", "strength": 0}\n{"prompt": "a blue star", "strength": 0}\n'
        '{"prompt": "a blue star", "strength": 1}\n'
    )
    arguments = [f"{tmp_path / 'i.png'}", f"--prompts-file={tmp_path / 'p.jsonl'}", "--model=tiny"]
    assert image2image.main([*arguments, "--steps=4", f"--output={tmp_path / 'd'}/"]) == 0
    kept, same, other = (read(tmp_path / "d" / f"000{i}.png") for i in (1, 2, 3))
    assert np.array_equal(kept, same) and psnr(kept, other) < SAME - 20


def test_killed_and_started_again(tmp_path, capsys):
    """The finished pictures are complete and kept, and the others are made."""
    n, folder = 6, tmp_path / "d"
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


def test_files_of_killed_programs_are_removed(tmp_path):
    """These are files of the pictures, the grid and the preview of this run, and no others."""
    token = "0123456789abcdef"
    names = ("0001.png", "other.png", "now.preview.png", "g.png")
    for name in names:
        (tmp_path / f".{name}.{token}.partial").touch()
    arguments = ["a star", "--model=tiny", "--steps=1", "--n_images=1", f"--output={tmp_path}/"]
    assert txt2image.main([*arguments, f"--grid={tmp_path / 'g.png'}"]) == 0
    assert sorted(os.listdir(tmp_path)) == [f".other.png.{token}.partial", "0001.png", "g.png"]


def test_a_grid_of_pictures_that_exist(tmp_path, capsys):
    """It is written without a model."""
    (tmp_path / "p.txt").write_text("a star\na heart\n")
    arguments = [f"--prompts-file={tmp_path / 'p.txt'}", f"--output={tmp_path / 'd'}/"]
    assert txt2image.main([*arguments, "--model=tiny", "--steps=1"]) == 0
    arguments += ["--model=/nowhere", f"--grid={tmp_path / 'g.png'}"]
    assert txt2image.main(arguments) == 0
    assert read(tmp_path / "g.png").shape == (80, 160, 3)
