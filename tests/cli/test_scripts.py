"""The two scripts as a user runs them, and their errors of usage."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import UNET_FILE, edit
from oracle import psnr
from ours import python
from PIL import Image

import image2image
import txt2image

SAME = 50  # dB


def read(path: Path) -> np.ndarray:
    """Return the pixels of a file."""
    return np.asarray(Image.open(path))


def run_txt2image(folder: Path, output: Path, *options: str, prompt: str = "a photo") -> int:
    """Run the script with a checkpoint, and return its exit status."""
    arguments = ["--model", folder, "--seed=7", "--steps=3", "--output", output, *options]
    return txt2image.main([prompt, *map(str, arguments)])


@pytest.mark.parametrize(("kind", "guidance"), [("sd-2-v", 5.0), ("sdxl-turbo", 0.0)])
def test_txt2image_equals_diffusers(checkpoint, oracle, kind, guidance, tmp_path):
    """The pictures are not square; two kinds of models run without guidance."""
    output = tmp_path / "o.png"
    options = ["--cfg", guidance, "--n_images", "2", "--width", "96", "--height", "56"]
    assert run_txt2image(checkpoint(kind), output, *map(str, options)) == 0
    theirs = oracle(kind).pictures(
        "a photo",
        seeds=[7, 8],
        num_inference_steps=3,
        guidance_scale=guidance,
        width=96,
        height=56,
    )
    grid = read(output)
    assert grid.shape == (56 + 16, 2 * (96 + 16), 3)
    for i, expected in enumerate(theirs):
        left = 8 + i * (96 + 16)
        picture = grid[8:-8, left : left + 96]
        assert psnr(picture, expected) >= SAME
        assert picture.std() >= 30


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_image2image_equals_diffusers(checkpoint, oracle, kind, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "i.png")
    arguments = ["--model", checkpoint(kind), "--strength", "0.6", "--cfg", "4", "--seed", "3"]
    arguments += ["--n_images", "1", "--steps", "5", "--output", tmp_path / "o.png"]
    assert image2image.main([str(tmp_path / "i.png"), "a fire", *map(str, arguments)]) == 0
    theirs = oracle(kind).pictures_from_image(
        picture.astype(np.float32) / 127.5 - 1,
        "a fire",
        seeds=[3],
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=4,
    )
    assert psnr(read(tmp_path / "o.png"), theirs[0]) >= SAME


def test_as_a_program(checkpoint, tmp_path, capsys):
    """In a process of its own, with the defaults, one makes four pictures and prints the seed."""
    options = ["-v", "-q", "--model", str(checkpoint("sd-1")), "--steps", "1", "--n-rows", "2"]
    options += ["--output", str(tmp_path / "o.png"), "--", "--a"]
    done = python("txt2image.py", *options)
    assert done.returncode == 0, done.stderr
    assert "Seed: " in done.stdout
    assert "float32" in done.stdout
    assert "Peak memory, denoising:" in done.stdout
    assert "100%" in done.stderr  # the progress bar
    assert read(tmp_path / "o.png").shape == (2 * 80, 2 * 80, 3)

    options = ["--model", str(checkpoint("sd-1")), "--steps", "2"]
    options += ["--output", str(tmp_path / "p.png")]
    assert image2image.main([str(tmp_path / "o.png"), "a photo", *options]) == 0
    out = capsys.readouterr().out
    assert "Resized" in out and "from 160x160 to 128x128" in out
    assert read(tmp_path / "p.png").shape == (144, 4 * 144, 3)


def test_hyphens_or_underscores(checkpoint, tmp_path):
    options = "--n_images=2 --n_rows=2 --negative_prompt=x --decoding_batch_size=2 --preload_models"
    options += " --steps=1"
    for i, spelt in enumerate((options, options.replace("_", "-"))):
        assert run_txt2image(checkpoint("sd-1"), tmp_path / f"{i}.png", *spelt.split()) == 0
    assert np.array_equal(read(tmp_path / "0.png"), read(tmp_path / "1.png"))


def test_decoding_batch_size_does_not_matter(checkpoint, tmp_path):
    for size in ("1", "2", "4"):
        options = ["--decoding_batch_size", size, "--n_images", "3", "--steps", "1"]
        assert run_txt2image(checkpoint("sdxl-turbo"), tmp_path / f"{size}.png", *options) == 0
    assert psnr(read(tmp_path / "1.png"), read(tmp_path / "2.png")) >= SAME
    assert psnr(read(tmp_path / "1.png"), read(tmp_path / "4.png")) >= SAME


def test_zero_means_zero(checkpoint, oracle, tmp_path):
    """`--seed 0` and `--cfg 0` are values, not the absence of one."""
    options = ["--cfg", "0", "--seed", "0", "--n_images", "1"]
    assert run_txt2image(checkpoint("sd-2"), tmp_path / "o.png", *options) == 0
    theirs = oracle("sd-2").pictures("a photo", seeds=[0], num_inference_steps=3, guidance_scale=0)
    assert psnr(read(tmp_path / "o.png"), theirs[0]) >= SAME


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n_images", "4", "--n_rows", "3"], "--n_rows 3 does not divide --n_images 4"),
        (["--n_images", "0"], "must be from 1 to 100000, got 0"),
        (["--steps", "0"], "must be from 1 to 100000, got 0"),
        (["--steps", "many"], "'many' is not an integer"),
        (["--cfg", "nan"], "must be from 0 to 1000, got nan"),
        (["--seed", "-1"], "must be from 0 to"),
        (["--width", "64"], "--width and --height go together"),
        (["--width", "8192", "--height", "4096"], "--height 4096 make more than 16777216 pixels"),
        (["--steps", "9" * 400], "must be from 1 to 100000, got 999"),
        (["--low-memory", "--preload-models"], "are opposites: leave one out"),
        (["--preview-vae"], "--preview-vae needs --preview N"),
        (["of", "a", "cat"], "arguments: of a cat: put quotes around a prompt of several words"),
        (["-x"], "unrecognized arguments: -x\n"),
        (["--strength", "0.5"], "arguments: --strength, which is for image2image.py"),
        (["--fit=crop"], "arguments: --fit, which is for image2image.py"),
        (["--output", "pictures"], "there is no such folder: pictures/ makes it"),
        (["--sampler", "restart"], "invalid choice: 'restart'"),
        (["--schedule", "sgm"], "invalid choice: 'sgm'"),
        (
            ["--sampler", "ddim", "--schedule", "karras"],
            "sampler ddim has no schedule 'karras', only trailing, leading, linspace",
        ),
        (["--guidance-rescale", "1.1"], "must be from 0 to 1, got 1.1"),
        (["--reuse", "0"], "argument --reuse: must be from 1 to 100000, got 0"),
        (["--reuse", "1.5"], "argument --reuse: '1.5' is not an integer"),
        (["--cfg-range", "0.5"], "must be START-END, such as 0.1-0.7, got '0.5'"),
        (["--cfg-range", "0.7-0.1"], "must begin before it ends, got '0.7-0.1'"),
        (["--output", "no/such/folder/o.png"], "no/such/folder does not exist"),
        (["--output", "picture.txt"], "the name must end in one of .png"),
        (["--colour", "red"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(capsys, options, message):
    """The status is 2, with one line, before the model, which does not exist, is opened."""
    try:
        status = txt2image.main(["a photo", "--model", "/nowhere", *options])
    except SystemExit as stopped:  # by argparse
        status = stopped.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "60", "--height", "64"], "error: --width must be a multiple of 8, got 60"),
        (["--steps", "1001"], "error: steps must be from 1 to 1000, got 1001"),
        (["--sampler", "lcm", "--steps", "51"], "error: steps must be from 1 to 50, got 51"),
    ],
)
def test_values_that_do_not_suit_the_model(checkpoint, tmp_path, capsys, options, message):
    """The status is 2, before the weights, which do not exist, are opened."""
    for name in ("unet", "vae", "text_encoder", "scheduler"):
        (tmp_path / name).mkdir()
        for config in (checkpoint("sd-1") / name).glob("*.json"):
            (tmp_path / name / config.name).symlink_to(config)
    (tmp_path / "model_index.json").symlink_to(checkpoint("sd-1") / "model_index.json")
    output = tmp_path / "o.png"
    assert txt2image.main(["x", "--model", str(tmp_path), "--output", str(output), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "missing.png"),
        ("text.png", b"hello", "not a picture"),
        ("small.png", (63, 100), "each side must be at least 64 pixels, got 63x100"),
    ],
)
def test_pictures_that_cannot_be_used(tmp_path, capsys, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        Image.new("RGB", content).save(tmp_path / name)
    with pytest.raises(SystemExit) as stopped:
        image2image.main([str(tmp_path / name), "a photo", "--model", "/nowhere"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_broken_checkpoint(copy, tmp_path, capsys):
    """One line names everything that is wrong, the status is 1, and no file is written."""
    folder = copy("sdxl")

    def spoil(tensors):
        del tensors["conv_norm_out.bias"]
        tensors["surplus"] = np.zeros(1, np.float32)
        tensors["conv_in.bias"] = tensors["conv_in.bias"][1:]

    edit(folder / UNET_FILE, spoil)
    assert run_txt2image(folder, tmp_path / "o.png") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert all(key in line for key in ("conv_norm_out.bias", "surplus", "conv_in.bias [31]"))
    assert not (tmp_path / "o.png").exists()


def test_results_that_are_not_finite(copy, tmp_path, capsys):
    folder = copy("sd-1")

    def overflow(tensors):
        tensors["conv_out.bias"][0] = np.inf

    edit(folder / UNET_FILE, overflow)
    assert run_txt2image(folder, tmp_path / "o.png") == 1
    assert "the latents are not finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_no_model(tmp_path, capsys):
    """Without a network, and with an empty cache, one line says what to do."""
    assert run_txt2image("sdxl", tmp_path / "o.png") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: stabilityai/sdxl-turbo is")
    assert error.count("\n") == 1


def test_a_long_prompt_is_cut_with_a_warning(checkpoint, tmp_path, capsys):
    options = ["--n_images", "1", "--cfg", "1"]
    prompt = "word " * 80 + "the end"
    assert run_txt2image(checkpoint("sd-1"), tmp_path / "o.png", *options, prompt=prompt) == 0
    error = capsys.readouterr().err
    assert "warning: the prompt has more than 77 tokens" in error and "the end" in error
