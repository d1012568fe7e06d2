"""`--from-image`: pictures are made again from their recipes, and wrong recipes are refused."""

import json
import shlex
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import image2image
import txt2image
from stable_diffusion.cli.arguments.from_image import read_options
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE, read_texts
from stable_diffusion.images.writing import save_image

TINY = ["--model", "tiny", "--steps", "3", "--n_images", "1", "--seed", "5"]
CIRCLE = "a red circle on a blue background"
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_{}.lora_{}.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a LoRA, a learned word and a picture to start from."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)

    def write(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {key: mx.array(generator.normal(size=shape)) for key, shape in shapes.items()}
        mx.save_safetensors(str(folder / name), tensors)

    names = [(to, way) for to in "kv" for way in ("down", "up")]
    shapes = {"down": (2, 128), "up": (128, 2)}
    write("a.safetensors", {LAYER.format(to, way): shapes[way] for to, way in names})
    write("word.safetensors", {"emb_params": (2, 128)})
    picture = generator.integers(0, 256, (80, 112, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "start.png")
    mask = np.zeros((80, 112), np.uint8)
    mask[20:50, 30:80] = 255
    Image.fromarray(mask).save(folder / "m.png")
    return folder


def run_script(*arguments: object, start: Path | None = None) -> int:
    """Run image2image.py if there is a picture to start from, otherwise txt2image.py."""
    if start is None:
        return txt2image.main([str(a) for a in arguments])
    return image2image.main([str(start), *(str(a) for a in arguments)])


def get_usage_error(
    capsys: pytest.CaptureFixture, *arguments: object, start: Path | None = None
) -> str:
    """Return the error for a wrong command line, which is one line after the usage."""
    with pytest.raises(SystemExit) as stopped:
        run_script(*arguments, start=start)
    assert stopped.value.code == 2
    *_, usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage:") and len(line) < 500
    return line


def read_pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def read_recipe(file: Path) -> Recipe:
    return Recipe.from_json(read_texts(file)[RECIPE], str(file))


def write_picture_with(file: Path, **changes: object) -> Path:
    """Write a picture with a recipe that differs in these values from a usual one."""
    recipe = {"schema": 1, "prompt": CIRCLE, "model": "tiny", "n_images": 1, "steps": 2} | changes
    recipe = {name: value for name, value in recipe.items() if value is not None}
    save_image(file, np.zeros((64, 64, 3), np.uint8), {RECIPE: json.dumps(recipe)})
    return file


START = "from a picture"
RECIPES = {  # where to write, and options
    "ancestral": "o.png --sampler=euler-a --width=96 --height=72 --cfg=4 --negative_prompt='a\nb'",
    "ddim": "o.webp --sampler=ddim --schedule=linspace --guidance-rescale=0.7 --eta=0.5 "
    "--prompt-weights --negative-prompt=(a:2) --clip-skip=1 --seed=123456789012 "
    "--reuse=2 --cfg-range=1e-5-0.7",
    "files": "o.png --lora=a.safetensors:0.7 --lora=a.safetensors:-0.2 "
    "--embedding='<ring>=word.safetensors' --negative-prompt='a <ring>'",
    "half": f"o.tif -q --float16 --cfg=4 --long-prompt --negative-prompt='{'a star, ' * 30}'",
    "one of three": "made/ --n_images=3",
    "grid": "o.jpg --n_images=2 --n_rows=2",
    START: "o.webp --strength=0.7 --fit=crop --width=96 --height=64",
    f"{START}, as it is": "o.png --strength=0.9",
    f"{START}, a part": "o.png --mask=m.png --invert-mask --mask-blur=2 --mask-crop=4 --cfg=1",
    f"{START}, extended": "o.png --outpaint=9,0,0,3 --mask=./m.png --strength=0.7 --cfg=1",
}


def test_options_of_the_other_script_are_left_out(tmp_path):
    """A second pass is, which would be the size of another picture; a warning says so."""
    file = str(write_picture_with(tmp_path / "o.png", hires=2.0, hires_strength=0.5))
    message = "was made with --hires, --hires-strength, which image2image.py does not have: left"
    with pytest.warns(UserWarning, match=message):
        found = read_options(file, "image2image.py", {})
    assert found["steps"] == 2 and "hires" not in found
    assert read_options(file, "txt2image.py", {})["hires"] == 2


@pytest.mark.parametrize("name", RECIPES)
def test_made_again(folder, tmp_path, monkeypatch, name):
    """No pixel is off by more than one level."""
    monkeypatch.chdir(folder)
    output, *options = shlex.split(RECIPES[name])
    start = folder / "start.png" if name.startswith(START) else None
    assert run_script(*TINY, CIRCLE, *options, "--output", f"{tmp_path}/{output}", start=start) == 0
    file = tmp_path / output
    if file.is_dir():
        file = file / "0003.png"
        assert read_recipe(file).seed == 7
    again = tmp_path / f"again{file.suffix}"
    assert run_script("--from-image", file, "--output", again, start=start) == 0
    assert np.abs(read_pixels(file) - read_pixels(again)).max() <= 1
    assert read_texts(file) == read_texts(again)
    assert read_pixels(file).std() > 10


def test_recipes_have_what_was_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    options = ["--lora", "a.safetensors", "--embedding", f"<x>={folder}/word.safetensors"]
    options += ["--clip-skip", "1", "--output", tmp_path / "o.png", "--strength", "0.6"]
    assert run_script(*TINY, "\udcff (circle)", *options, start=folder / "start.png") == 0
    recipe = read_recipe(tmp_path / "o.png")
    assert recipe.prompt == "\udcff (circle)" and recipe.image == "start.png"
    assert (recipe.model, recipe.revision, recipe.steps, recipe.cfg) == ("tiny", None, 3, 2.0)
    assert (recipe.sampler, recipe.schedule, recipe.strength) == ("euler", "trailing", 0.6)
    assert (recipe.width, recipe.height, recipe.fit) == (64, 64, "stretch")
    assert recipe.lora == ("a.safetensors:1.0",)
    assert recipe.embedding == (f"<x>={folder}/word.safetensors",)
    assert all(len(sum) == 64 for sum in (*recipe.lora_sha256, recipe.image_sha256))
    text = read_texts(tmp_path / "o.png")[PARAMETERS]
    assert text.startswith("? (circle)\nSteps: 3, Sampler: Euler, ") and str(folder) not in text


def test_options_override(folder, tmp_path, capsys):
    """So do switches, lists, and options that depend on a given one."""
    made = write_picture_with(
        tmp_path / "made.png",
        **{"sampler": "dpm++2m", "schedule": "karras", "n_images": 2, "n_rows": 2, "cfg": 3.0},
        **{
            "quantize": True,
            "unet_bits": 4,
            "prompt_weights": True,
            "negative_prompt": "a star",
            "seed": 9,
        },
        lora=["nowhere.safetensors:1"],
        width=96,
        height=64,
    )
    options = ["--no-quantize", "--no-prompt-weights", "--lora", f"{folder}/a.safetensors:0.5"]
    options += ["--sampler", "ddim", "--n_images", "1", "--negative-prompt", "", "--height", "96"]
    again = tmp_path / "again.png"
    assert run_script("--from-image", made, "a star", *options, "--output", again) == 0
    recipe = read_recipe(again)
    assert recipe == Recipe(
        **{"prompt": "a star", "negative_prompt": "", "model": "tiny", "seed": 9, "cfg": 3.0},
        **{"steps": 2, "sampler": "ddim", "schedule": "trailing", "width": 96, "height": 96},
        **{"n_images": 1, "n_rows": 1, "guidance_rescale": 0.0, "clip_skip": 0, "float16": False},
        **{"quantize": False, "prompt_weights": False, "long_prompt": False},
        lora=(f"{folder}/a.safetensors:0.5",),
        lora_sha256=recipe.lora_sha256,
        version=recipe.version,
    )


def test_timesteps_are_in_the_recipe(tmp_path):
    """They replace the steps, and what is given replaces them."""
    made = write_picture_with(tmp_path / "made.png", steps=None, timesteps=[999, 9], eta=None)
    for options, timesteps, steps in (
        ((), (999, 9), None),
        (("--timesteps=500",), (500,), None),
        (("--steps=1",), (), 1),
        (("--schedule=simple", "--steps=1"), (), 1),
        (("--sampler=ddim", "--eta=0.5", "--steps=1"), (), 1),
    ):
        again = tmp_path / f"again{steps}{len(options)}{len(timesteps)}.png"
        assert run_script("--from-image", made, *options, "--output", again) == 0
        recipe = read_recipe(again)
        assert (recipe.timesteps, recipe.steps) == (timesteps, steps)
        assert recipe.eta == (0.5 if "--eta=0.5" in options else None)


def test_without_metadata(tmp_path, capsys):
    file = tmp_path / "o.png"
    assert run_script(*TINY, CIRCLE, "--output", file, "--no-metadata") == 0
    assert read_texts(file) == {} and not Image.open(file).info
    assert f"{file} has no recipe in it" in get_usage_error(capsys, "--from-image", file)


def test_a_grid_of_several_recipes_has_none(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\na blue star\n")
    options = ["--prompts-file", tmp_path / "prompts.txt", "--output", f"{tmp_path}/o/"]
    options += ["--model", "tiny", "--steps", "2", "--grid", tmp_path / "grid.png"]
    assert run_script(*options) == 0
    assert read_texts(tmp_path / "grid.png") == {}
    prompts = [read_recipe(file).prompt for file in sorted((tmp_path / "o").glob("*.png"))]
    assert prompts == ["a red star", "a blue star"]


def test_files_that_have_changed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    start = tmp_path / "start.png"
    Image.open(folder / "start.png").save(start)
    lora = ["--lora", "a.safetensors:0.5"]
    assert run_script(*TINY, CIRCLE, *lora, "--output", "made.png", start=start) == 0
    capsys.readouterr()
    Image.new("RGB", (80, 112)).save(start)
    tensors = mx.load("a.safetensors")
    mx.save_safetensors("a.safetensors", {key: 2 * value for key, value in tensors.items()})
    assert run_script("--from-image", "made.png", start=start) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warned == [
        "warning: a.safetensors has changed since made.png was made with it",
        f"warning: {start} has changed since made.png was made with it",
    ]
    (tmp_path / "a.safetensors").unlink()
    line = get_usage_error(capsys, "--from-image", "made.png", start=start)
    assert "made.png: the recipe's lora: no such LoRA file: a.safetensors" in line
    line = get_usage_error(capsys, "--from-image", "made.png")
    assert line.endswith(
        "made.png was made from a picture, start.png: run image2image.py start.png "
        "--from-image made.png"
    )


@pytest.mark.parametrize(
    ("name", "picture", "says"),
    [
        ("house.png;curl x|sh", "'house.png;curl x|sh'", "house.png;curl x|sh"),
        ("$(touch x).png", "'$(touch x).png'", "$(touch x).png"),
        ("--output=x", "./--output=x", "--output=x"),
        ("a\u202egnp.exe", "PICTURE", r"a\u202egnp.exe"),
        ("a\nb\x1b[2J", "PICTURE", r"a b\x1b[2J"),
        ("", "PICTURE", ""),
    ],
)
def test_a_command_that_is_safe_to_paste(tmp_path, monkeypatch, capsys, name, picture, says):
    """A name in a file cannot run commands, and cannot pose as an option or another name."""
    monkeypatch.chdir(tmp_path)
    write_picture_with(Path("a b.png"), strength=0.5, image=name)
    assert get_usage_error(capsys, "--from-image", "a b.png").endswith(
        f"a b.png was made from a picture, {says}: run image2image.py {picture} "
        "--from-image 'a b.png'"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "the recipe's steps: must be from 1 to 100000, got 0"),
        ({"steps": 10**5}, "steps must be from 1 to 1000, got 100000"),
        ({"width": 10**9, "height": 64}, "the recipe's width: must be from 1 to 16384"),
        ({"n_images": 10**9}, "the recipe's n_images: must be from 1 to 100000"),
        ({"width": 64}, "--width and --height go together"),
        ({"cfg": 10**400}, "the recipe is damaged: 1000"),
        ({"cfg": -1}, "the recipe's cfg: must be from 0 to 1000"),
        ({"seed": -1}, "the recipe's seed: must be from 0 to"),
        ({"sampler": "\n" * 999}, "the recipe's sampler: invalid choice"),
        ({"sampler": "ddim", "schedule": "karras"}, "sampler ddim has no schedule 'karras'"),
        ({"clip_skip": 99}, "--clip-skip must be from 0 to 2 for this model"),
        ({"lora": ["a.safetensors:nan"]}, "the recipe's lora: no such LoRA file"),
        ({"embedding": ["x"]}, "the recipe's embedding: must be NAME=FILE, got 'x'"),
        ({"fit": "crop", "model": "/nowhere"}, "there is no folder /nowhere"),
        ({"model": None}, "does not say which model made it: give --model"),
        ({"prompt": None}, "a prompt is required"),
        ({"output": "/tmp/o.png"}, "the recipe is damaged: it: output = '/tmp/o.png' is not"),
    ],
)
def test_wrong_recipes(tmp_path, capsys, changes, message):
    """The error is one line, and comes before weights are read."""
    file = write_picture_with(tmp_path / "made.png", **changes)
    try:
        assert run_script("--from-image", file, "--output", tmp_path / "o.png") in (1, 2)
    except SystemExit as stopped:
        assert stopped.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line and len(line) < 600
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, {"image_cfg": 1.2}),
        ({"model": "sd-1-5"}, {}),
        ({"model": "instruct-pix2pix"}, {"image_cfg": 1.2}),
        ({"model": "a/b.safetensors"}, {"image_cfg": 1.2}),
        ({"model": "a/b.safetensors", "strength": 0.5}, {}),
    ],
)
def test_guidance_by_the_picture_is_for_some_models(tmp_path, given, used):
    """Another model than that of the recipe may not take it."""
    edited = write_picture_with(tmp_path / "a.png", image_cfg=1.2, model="instruct-pix2pix")
    found = read_options(str(edited), "image2image.py", {"image": "a.png", **given})
    assert {name: found[name] for name in ("image_cfg", "strength") if name in found} == used
    other = write_picture_with(tmp_path / "b.png", strength=0.3)
    found = read_options(str(other), "image2image.py", {"model": "instruct-pix2pix"})
    assert "strength" not in found


def test_options_that_exclude_each_other(tmp_path, capsys):
    file = write_picture_with(tmp_path / "made.png")
    line = get_usage_error(capsys, "--from-image", file, "--prompts-file", "x.txt")
    assert "--from-image and --prompts-file: leave one out" in line
    assert "No such file" in get_usage_error(capsys, "--from-image", tmp_path / "nothing.png")
    assert "--fit needs --width and --height" in get_usage_error(
        capsys, "x", "--fit=pad", start=file
    )


def test_a_picture_of_automatic1111(tmp_path, capsys):
    text = (
        f"{CIRCLE} <lora:fur:1>\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 7, Size: 64x64, "
        "Model: someones-model, Version: v1.7.0"
    )
    file = tmp_path / "made.png"
    save_image(file, np.zeros((64, 64, 3), np.uint8), {PARAMETERS: text})
    assert "does not say which model made it" in get_usage_error(capsys, "--from-image", file)
    output = tmp_path / "o.png"
    assert run_script("--from-image", file, "--model=tiny", "--n_images=1", "--output", output) == 0
    recipe = read_recipe(output)
    assert (recipe.prompt, recipe.sampler, recipe.seed) == (CIRCLE, "euler-a", 7)
    assert recipe.prompt_weights and recipe.long_prompt and recipe.cfg == 3.0
    warned = capsys.readouterr().err
    assert f"warning: {file} was made with the model someones-model" in warned
    assert f"warning: {file}: not understood: <lora:fur:1>" in warned


def test_a_mask(folder, tmp_path, monkeypatch, capsys):
    """The recipe names it, with its content; the web UI's text does not, and it is asked for."""
    monkeypatch.chdir(tmp_path)
    for name in ("start.png", "m.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    start = Path("start.png")
    options = ["--mask=m.png", "--mask-crop=4", "--invert-mask", "--mask-blur=1", "--cfg=1"]
    options.append("--schedule=sgm-uniform")  # the text has no trailing spacing
    assert run_script(*TINY, CIRCLE, *options, "--output=o.png", start=start) == 0
    recipe = read_recipe(Path("o.png"))
    assert (recipe.mask, recipe.mask_crop, recipe.mask_blur) == ("m.png", 4, 1)
    assert recipe.invert_mask and len(recipe.mask_sha256) == 64 and recipe.strength == 1
    text = read_texts(Path("o.png"))[PARAMETERS]
    assert "Mask mode: Inpaint not masked, Mask blur: 1, Inpaint area: Only masked, " in text
    save_image(Path("web.png"), np.zeros((64, 64, 3), np.uint8), {PARAMETERS: text})
    message = "web.png was made with a mask, which it does not name: add --mask FILE"
    assert message in get_usage_error(capsys, "--from-image=web.png", start=start)
    again = ["--from-image=web.png", "--mask=m.png", "--invert-mask", "--n_images=1"]
    assert run_script(*again, "--output=b.png", start=start) == 0
    assert "not understood" not in capsys.readouterr().err
    assert np.abs(read_pixels(Path("b.png")) - read_pixels(Path("o.png"))).max() <= 1
    Image.new("L", (112, 80), "white").save("m.png")
    Path("o.png").rename("first.png")
    message = "m.png: the mask is empty: all of it is white, and --invert-mask repaints the rest"
    assert message in get_usage_error(capsys, "--from-image=first.png", start=start)
    Path("m.png").unlink()
    assert "m.png" in get_usage_error(capsys, "--from-image=first.png", start=start)
