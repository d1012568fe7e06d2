"""`--hires` and `--upscale`: whole runs with the embedded model, and wrong usage."""

from pathlib import Path

import numpy as np
import pytest
from oracle import psnr
from ours import pictures
from PIL import Image
from upscalers import write_upscaler

import image2image
import txt2image
from stable_diffusion import StableDiffusion, overflow
from stable_diffusion.cli import denoise, generate, larger
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.terminal.progress import Progress
from stable_diffusion.faults import Fault
from stable_diffusion.hires import start_second_pass
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE, read_texts
from stable_diffusion.model_io.upscaler_file import open_upscaler
from stable_diffusion.rrdbnet import enlarge

SAME = 50  # dB
TEXT = ["a red circle", "--model=tiny", "--seed=5", "--steps=4", "--width=32", "--height=32"]
HIRES = ["--hires=1.5", "--hires-strength=0.5", "--hires-upscale=lanczos"]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def read_recipe(path: Path) -> Recipe:
    return Recipe.from_json(read_texts(path)[RECIPE], path.name)


def make_by_library(n_images: int) -> np.ndarray:
    """Return the pictures of `TEXT` and `HIRES`."""
    sd = StableDiffusion("tiny")
    first = sd.generate_latents(TEXT[0], n_images, 4, seed=5, latent_size=(4, 4))
    *_, x_0 = first
    return pictures(sd, start_second_pass(sd, first, x_0, 1.5, 0.5, upscale="lanczos"))


def test_a_second_pass_and_an_upscaler(tmp_path, capsys, monkeypatch):
    """The pictures are those of the library, in whatever batches, and their recipes make them."""
    monkeypatch.setattr(denoise, "count_pictures", lambda _, __, size, ___: 96 // size.width)
    upscaler = tmp_path / "up.safetensors"
    write_upscaler(upscaler)
    made = tmp_path / "{index}.png"
    run = [*TEXT, *HIRES, "--n_images=3", f"--output={made}", f"--upscale={upscaler}"]
    parts: list[float] = []
    monkeypatch.setattr(Progress, "count_enlarged", lambda _, part: parts.append(part))
    assert txt2image.main([*run, "--preview=1"]) == 0
    assert abs(sum(parts) - 3) < 1e-9
    network = open_upscaler("up", upscaler).load()
    for i, picture in enumerate(make_by_library(3), 1):
        file = tmp_path / f"000{i}.png"
        assert read(file).shape == (96, 96, 3)
        assert psnr(read(file), enlarge(network, picture)) >= SAME

    recipe, text = read_recipe(file), read_texts(file)[PARAMETERS]
    assert (recipe.width, recipe.hires, recipe.hires_strength) == (32, 1.5, 0.5)
    assert (recipe.hires_steps, recipe.hires_upscale) == (None, "lanczos")
    assert recipe.upscale == str(upscaler) and len(recipe.upscale_sha256) == 64
    assert "Size: 32x32" in text and "Hires upscale: 1.5, Hires steps: 2, Hires upscaler" in text
    again = tmp_path / "again.png"
    assert txt2image.main([f"--from-image={file}", f"--output={again}"]) == 0
    assert psnr(read(again), read(file)) >= SAME
    write_upscaler(upscaler, scale=4)
    again.unlink()
    assert txt2image.main([f"--from-image={file}", f"--output={again}"]) == 0
    assert f"{upscaler} has changed since {file} was made" in capsys.readouterr().err
    assert read(again).shape == (192, 192, 3)


def test_half_precision_that_overflows_in_the_second_pass(tmp_path, monkeypatch, capsys):
    """Its steps are run again in float32, from the same enlarged picture and noise."""
    run = [*TEXT, "--hires=1.5", "--sampler=euler-a", "--n_images=2", "--batch-size=1", "--float16"]
    assert txt2image.main([*run, f"--output={tmp_path}/a{{index}}.png"]) == 0
    found = iter([None, None, None, Fault.NOT_FINITE])  # of texts, latents, texts, latents
    find_fault = overflow._find_fault
    monkeypatch.setattr(
        overflow, "_find_fault", lambda *each: next(found, None) or find_fault(*each)
    )
    capsys.readouterr()
    assert txt2image.main([*run, f"--output={tmp_path}/b{{index}}.png"]) == 0
    assert "again in float32" in capsys.readouterr().err
    assert next(found, "all are used") == "all are used"
    first, second = ([read(file) for file in sorted(tmp_path.glob(f"{x}*.png"))] for x in "ab")
    assert len(first) == len(second) == 2
    assert all(psnr(a, b) >= 35 for a, b in zip(first, second, strict=True))


def test_lines_of_a_prompts_file(tmp_path):
    """Each line has a second pass of its own, or none; a network may enlarge for it."""
    upscaler = tmp_path / "up.safetensors"
    write_upscaler(upscaler)
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "hires": 2, "hires_steps": 1, "width": 16, "height": 24}\n'
        f'{{"prompt": "b", "hires": 1.5, "hires_upscale": "{upscaler}", "hires_strength": 0.5}}\n'
        '{"prompt": "c"}\n'
    )
    run = ["--model=tiny", "--steps=2", f"--prompts-file={tmp_path / 'p.jsonl'}"]
    assert txt2image.main([*run, f"--output={tmp_path / 'd'}/", "--float16"]) == 0
    sizes = [Image.open(file).size for file in sorted((tmp_path / "d").iterdir())]
    assert sizes == [(32, 48), (96, 96), (64, 64)]
    recipe = read_recipe(tmp_path / "d" / "0002.png")
    assert recipe.hires_upscale == str(upscaler) and len(recipe.hires_upscale_sha256) == 64
    assert read_recipe(tmp_path / "d" / "0003.png").hires_strength is None


def test_an_upscaler_is_read_once_and_freed(tmp_path, monkeypatch):
    """Batches share it; when no later batch needs it, it is freed."""
    upscaler = tmp_path / "up.safetensors"
    write_upscaler(upscaler)
    small = '"width": 16, "height": 16'
    (tmp_path / "p.jsonl").write_text(
        f'{{"prompt": "a", "hires": 2, "hires_upscale": "{upscaler}", "n_images": 2, {small}}}\n'
        f'{{"prompt": "b", {small}}}\n'
    )
    opened, kept = [], []

    def open_counted(name, file):
        opened.append(name)
        return open_upscaler(name, file)

    def denoise_batch(run, *arguments):
        latents = denoise.denoise_batch(run, *arguments)
        kept.append(list(run.upscalers))
        return latents

    monkeypatch.setattr(larger, "open_upscaler", open_counted)
    monkeypatch.setattr(generate, "denoise_batch", denoise_batch)
    run = ["--model=tiny", "--steps=2", "--batch-size=1", f"--prompts-file={tmp_path / 'p.jsonl'}"]
    assert txt2image.main([*run, f"--output={tmp_path / 'd'}/"]) == 0
    assert opened == [str(upscaler)]
    assert kept == [[str(upscaler)], [], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hires=1"], "argument --hires: must be more than 1 and at most 4, got 1"),
        (["--hires=0"], "argument --hires: must be more than 1 and at most 4, got 0"),
        (["--hires=nan"], "argument --hires: must be more than 1 and at most 4, got nan"),
        (["--hires=100"], "argument --hires: must be more than 1 and at most 4, got 100"),
        (["--hires=big"], "argument --hires: 'big' is not a number"),
        (["--hires=2", "--hires-strength=0"], "must be above 0, got 0: it would run no step"),
        (["--hires-strength=0.5"], "--hires-strength 0.5 needs --hires SCALE"),
        (["--hires-upscale=latent"], "--hires-upscale latent needs --hires SCALE"),
        (
            ["--hires=2", "--hires-upscale=lanczo"],
            "'lanczo' is neither latent nor lanczos nor the .safetensors file of an upscaler: did "
            "you mean lanczos?",
        ),
        (["--hires=2", "--hires-steps=900"], "--hires-steps: 900 steps at strength 0.7 are the"),
        (
            ["--hires=2", "--hires-steps=2", "--timesteps=999,499"],
            "--timesteps and --hires-steps 2: leave one out",
        ),
        (
            ["--hires=4", "--width=2048", "--height=2048"],
            "--hires 4 of 2048x2048 makes more than 16777216 pixels",
        ),
        (["--hires=1.05"], "--hires: 64x64 times 1.05 is 64x64, as sides are multiples of 8"),
        (["--upscale=no.safetensors"], "no such upscaler file: no.safetensors"),
        (["--upscale=a.pth"], "a.pth is a pickle, and pickles are never loaded"),
        (["--hires=2", "--hires-upscale=b.safetensors"], "b.safetensors is cut short"),
        (["--hires=2", "--hires-upscale=c.safetensors"], "missing: conv_hr.bias"),
        (["--upscale=c.safetensors"], "missing: conv_hr.bias"),
        (["--hires-fix=2"], "--hires-fix: use --hires"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, options, message):
    """One line, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(b"PK\x03\x04")
    Path("b.safetensors").write_bytes((99).to_bytes(8, "little") + b"{}")
    write_upscaler(Path("c.safetensors"), **{"conv_hr.bias": None})
    try:
        status = txt2image.main(["a red circle", "--model=tiny", *options])
    except SystemExit as ending:
        status = ending.code
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said
    assert message in said.splitlines()[-1]


def test_the_other_script_has_no_second_pass(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        image2image.main([str(tmp_path / "a.png"), "a", "--hires=2"])
    said = capsys.readouterr().err
    assert said.endswith("unrecognized arguments: --hires, which is for txt2image.py\n")
