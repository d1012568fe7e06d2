"""`parse.py`: the examples of the help work, and checks of whole command lines."""

import shlex
from collections.abc import Iterator

import pytest
from command_lines import PARSERS, parse_in_folder
from PIL import Image

from stable_diffusion.cli.arguments.parse import image2image_parser, parse, txt2image_parser
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.images.text_chunks import RECIPE, make_save_options

LAST_SEED = 2**64 - 1


def find_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the calls of the scripts in a text: the script and its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "python " in line else []
        if "python" in words and words[words.index("python") + 1] in PARSERS:
            script, *arguments = words[words.index("python") + 1 :]
            yield script, arguments


@pytest.mark.parametrize("script", PARSERS)
def test_examples_work(script, folder):
    found = list(find_commands(PARSERS[script]().epilog))
    assert len(found) >= 3
    for of_script, arguments in found:
        assert of_script == script
        args = parse_in_folder(folder, script, arguments)
        assert args is not None or arguments == ["--list-models"], arguments


def test_no_picture_has_a_seed_beyond_the_last(folder, capsys):
    """All seeds of a command line, a recipe and a prompts file are checked."""
    last, end = str(LAST_SEED), f"as seeds end at {LAST_SEED}: take a smaller one"
    assert parse_in_folder(
        folder, "txt2image.py", ["a", "--n_images=2", "--seed", str(LAST_SEED - 1)]
    )
    assert parse_in_folder(folder, "txt2image.py", ["a", "--n_images=2", "--seed", last]) is None
    said = f"--seed {last} is too large for 2 pictures, {end}, or --n_images 1\n"
    assert capsys.readouterr().err.endswith(said)

    recipe = Recipe(prompt="a", model="tiny", seed=LAST_SEED)
    options = make_save_options({RECIPE: recipe.to_json()}, "PNG")
    Image.new("RGB", (64, 64)).save(folder / "r.png", **options)
    parser = txt2image_parser()
    with pytest.raises(SystemExit):
        parse(parser, ["--from-image=r.png"])
    assert "is too large for 4 pictures" in capsys.readouterr().err
    (request,) = parse(parser, ["--from-image=r.png", "--n_images=1"]).requests
    assert request.seed == LAST_SEED

    (folder / "p.jsonl").write_text('{"prompt": "a", "n_images": 2}\n{"prompt": "b"}')
    with pytest.raises(SystemExit):
        parse(parser, ["--prompts-file=p.jsonl", f"--seed={LAST_SEED - 1}"])
    error = capsys.readouterr().err
    assert error.endswith(f"line 2: --seed {LAST_SEED + 1} is too large for 1 picture, {end}\n")
    args = parse(parser, ["--prompts-file=p.jsonl", f"--seed={LAST_SEED - 2}"])
    assert [request.seed for request in args.requests] == [LAST_SEED - 2, LAST_SEED]


@pytest.mark.parametrize(
    ("words", "vae", "prompt"),
    [
        (["--preview-vae", "a prompt"], True, "a prompt"),
        (["--preview-vae", "prompt"], True, "prompt"),
        (["--preview-vae", "taesd", "a prompt"], "taesd", "a prompt"),
        (["--preview_vae", "org/name@v1", "a prompt"], "org/name@v1", "a prompt"),
        (["--preview-vae", "a b.safetensors", "x"], "a b.safetensors", "x"),
        (["--preview-vae", "no.safetensors", "x"], "no.safetensors", "x"),
        (["--preview-vae", "vae", "x"], "vae", "x"),
        (["--preview-vae", "tiny", "x"], "tiny", "x"),
        (["--preview-vae", "folder"], True, "folder"),
        (["--preview-vae", "black or a/white cat"], True, "black or a/white cat"),
        (["--preview-vae=prompt", "x"], "prompt", "x"),
        (["--preview-vae", "--steps", "3", "x"], True, "x"),
        (["x", "--preview-vae"], True, "x"),
        (["--preview-vae", "--", "taesd"], True, "taesd"),
        (["x"], False, "x"),
    ],
    ids=str,
)
def test_a_value_that_may_be_left_out(tmp_path, monkeypatch, words, vae, prompt):
    """A prompt that follows `--preview-vae` stays the prompt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "taesd_decoder.safetensors").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a b.safetensors").touch()
    settings = parse(txt2image_parser(), ["--preview", "2", *words])
    assert settings.preview_vae == vae
    assert settings.requests[0].prompt == prompt


def test_a_picture_is_not_the_value(tmp_path, monkeypatch):
    """`image2image.py --preview-vae a/b.png` looks like a repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (64, 64)).save("a/b.png")
    settings = parse(image2image_parser(), ["--preview=2", "--preview-vae", "a/b.png", "x"])
    assert settings.preview_vae is True and settings.start.file == "a/b.png"
