"""The scripts with models for inpainting and editing: what they need, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kinds import EDITING, INPAINTING
from PIL import Image

import image2image
import txt2image
from stable_diffusion.cli.job import CompleteJob, Job, warn_of_no_guidance
from stable_diffusion.cli.model_task import GivenPictures, require_inputs
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.config.task import IMAGE_GUIDANCE
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE, read_texts
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import StableDiffusion

EDIT = ["--model=instruct-pix2pix"]


@pytest.fixture
def picture(tmp_path, monkeypatch) -> str:
    """Write a picture and a mask into the working folder, and return the name of the picture."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("i.png")
    Image.new("L", (64, 64), 255).save("m.png")
    return "i.png"


def test_no_network_steers_an_editing_model():
    options = [Job("a", seed=1)]
    require_inputs("x", "text", options, GivenPictures(has_image=True, has_control=True))
    with pytest.raises(ValueError, match="^x edits a picture .* leave --control out$"):
        require_inputs("x", "editing", options, GivenPictures(has_image=True, has_control=True))


def find_error(main, words: list[str], capsys) -> str:
    """Return the line that a script ends with; its status is that of wrong usage."""
    try:
        status = main(words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (
            txt2image,
            ["--model=sd-1-5-inpainting"],
            "sd-1-5-inpainting repaints a part of a picture: use image2image.py, and --mask FILE",
        ),
        (
            image2image,
            ["--model=diffusers/stable-diffusion-xl-1.0-inpainting-0.1"],
            "inpainting-0.1 repaints a part of a picture: say which with --mask FILE, white where",
        ),
        (txt2image, EDIT, "instruct-pix2pix edits a picture as the prompt says: use image2image"),
        (image2image, [*EDIT, "--strength=0.9"], "instruct-pix2pix has no --strength: --image-cfg"),
        (image2image, [*EDIT, "--mask=m.png"], "edits the whole picture: leave --mask out"),
        (
            image2image,
            ["--model=tiny", "--image-cfg=2"],
            "tiny does not take --image-cfg, which",
        ),
        (image2image, [*EDIT, "--image-cfg=-1"], "must be from 0 to"),
        (txt2image, ["--model=tiny", "--image-cfg=2"], "--image-cfg, which is for image2image.py"),
    ],
)
def test_known_models_are_refused_before_anything_is_loaded(
    picture, monkeypatch, capsys, script, words, message
):
    monkeypatch.setattr(StableDiffusion, "__init__", lambda *_: pytest.fail("loaded"))
    words = [*words, *([picture] if script is image2image else []), "a fire"]
    assert message in find_error(script.main, words, capsys)


@pytest.mark.parametrize(
    ("kind", "script", "words", "message"),
    [
        (INPAINTING, txt2image, [], "repaints a part of a picture: use image2image.py"),
        (INPAINTING, image2image, [], "repaints a part of a picture: say which with --mask FILE"),
        (EDITING, txt2image, [], "edits a picture as the prompt says: use image2image.py"),
        (EDITING, image2image, ["--strength=1"], "has no --strength"),
        ("", image2image, ["--image-cfg=1"], "does not take --image-cfg"),
    ],
)
def test_other_models_are_refused_by_their_config(
    picture, checkpoint, monkeypatch, capsys, kind, script, words, message
):
    monkeypatch.setattr(StableDiffusion, "__init__", lambda *_: pytest.fail("loaded"))
    words = [*words, f"--model={checkpoint(f'sd-1{kind}')}"]
    words += [*([picture] if script is image2image else []), "a fire"]
    assert message in find_error(script.main, words, capsys)


def test_a_line_of_a_prompts_file_is_named(picture, capsys):
    Path("p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "strength": 0.5}\n')
    words = [*EDIT, "--prompts-file=p.jsonl", picture]
    error = find_error(image2image.main, words, capsys)
    assert "p.jsonl, line 2: instruct-pix2pix has no --strength" in error


def test_an_edited_picture_is_made_again(picture, checkpoint):
    """The recipe has --image-cfg, and no strength; the web UI's words are there, too."""
    words = [f"--model={checkpoint(f'sd-1{EDITING}')}", "--image-cfg=2.5", "--steps=2", "--seed=7"]
    words += ["--n_images=1", "--output=o.png", picture, "make it red"]
    assert image2image.main(words) == 0
    texts = read_texts(Path("o.png"))
    recipe = Recipe.from_json(texts[RECIPE], "o.png")
    assert (recipe.image_cfg, recipe.strength, recipe.cfg) == (2.5, None, 7.5)
    assert ", Image CFG scale: 2.5, " in texts[PARAMETERS]
    assert image2image.main(["--from-image=o.png", "--output=again.png", picture]) == 0
    made, again = (np.asarray(Image.open(file)) for file in ("o.png", "again.png"))
    assert np.array_equal(made, again) and made.std() > 10
    assert image2image.main(["--from-image=o.png", "--image-cfg=5", "--output=x.png", picture]) == 0
    assert not np.array_equal(np.asarray(Image.open("x.png")), made)


JOB = Job("a", seed=1)


def test_defaults_of_a_job(checkpoint):
    config = load_model_config(checkpoint("sd-1"))
    editing = replace(config, unet=replace(config.unet, in_channels=8))
    job = JOB.with_defaults(editing)
    assert (job.image_cfg, job.strength, job.steps) == (IMAGE_GUIDANCE, None, 100)
    assert replace(JOB, image_cfg=3.0).with_defaults(editing).image_cfg == 3.0
    assert JOB.with_defaults(config).image_cfg is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_cfg": 0.5}, ["--image-cfg 0.5 is less than 1, which means no guidance at all"]),
        ({"image_cfg": 1.5, "negative_prompt": "x"}, []),
        ({"image_cfg": 2.5, "cfg": 1.0}, ["--image-cfg has no effect without guidance"]),
        ({"image_cfg": 1.5, "cfg": 1.0}, []),
        (
            {"image_cfg": 1.5, "cfg": 1.0, "negative_prompt": "x"},
            ["no effect without guidance: give --cfg more than 1, and --image-cfg at least 1"],
        ),
    ],
)
def test_what_needs_guidance(checkpoint, recwarn, options, said):
    config = load_model_config(checkpoint("sd-1"))
    editing = replace(config, unet=replace(config.unet, in_channels=8))
    usual = {"width": 64, "height": 64, "steps": 4, "cfg": 7.5, "sampler": "euler"}
    warn_of_no_guidance([CompleteJob("a", seed=1, **usual | options)], editing)
    warned = [str(each.message) for each in recwarn]
    assert len(warned) == len(said)
    assert all(part in line for part, line in zip(said, warned, strict=True))
