"""`--help`: grouped, with defaults and examples that work."""

import argparse
import ast
import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from ours import ROOT
from PIL import Image

from stable_diffusion.cli.arguments.options import GROUPS, all_options
from stable_diffusion.cli.arguments.other_names import (
    ABSENT,
    ABSENT_BEGINNINGS,
    CONTROL,
    EXPLANATIONS,
    IMAGE,
    MASKS,
    SAME,
    SAME_BEGINNINGS,
)
from stable_diffusion.cli.arguments.parse import image2image_parser, parse, txt2image_parser
from stable_diffusion.cli.convert import _parser as convert_parser
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.settings import Settings
from stable_diffusion.images.text_chunks import RECIPE, make_save_options

PARSERS = {"txt2image.py": txt2image_parser, "image2image.py": image2image_parser}
A_RECIPE = Recipe(prompt="a photo", model="tiny")
FILE = re.compile(r"[\w./-]+\.(?:png|jpg|webp|safetensors|txt|jsonl)\b")


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The calls of the scripts in a text, each with its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "python " in line else []
        if "python" in words and words[words.index("python") + 1] in PARSERS:
            script, *arguments = words[words.index("python") + 1 :]
            yield script, arguments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse_in(folder: Path, script: str, arguments: list[str]) -> Settings | None:
    """As the script does, where the files that are named exist; None where it ends the program."""
    for name in FILE.findall(" ".join(arguments)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (folder / name).write_text("a photo\n")
        elif name.endswith("jsonl"):
            (folder / name).write_text('{"prompt": "a photo"}\n')
        else:
            options = make_save_options({RECIPE: A_RECIPE.to_json()}, "PNG")
            Image.new("RGB", (64, 64)).save(folder / name, "PNG", **options)
    with contextlib.suppress(SystemExit):
        return parse(PARSERS[script](), arguments)
    return None


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Yield the parser's options, each with the title of its group."""
    for group in parser._action_groups:
        yield from ((group.title, action) for action in group._group_actions)


# --- --help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", PARSERS)
@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_the_screen(script, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = PARSERS[script]().format_help().splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines[0]) <= 60  # not all options in brackets


@pytest.mark.parametrize("script", PARSERS)
def test_help_is_grouped(script):
    text = PARSERS[script]().format_help()
    groups = [title for title, rows in GROUPS.items() if any(script in r.scripts for r in rows)]
    places = [text.index(f"\n{title}:\n") for title in [*groups, "examples"]]
    assert places == sorted(places)
    assert "optional arguments:" not in text and "\noptions:" not in text
    assert "README.md" in text


@pytest.mark.parametrize("script", PARSERS)
def test_every_option_says_its_default(script):
    """A default that is a value is shown as that value."""
    text = " ".join(PARSERS[script]().format_help().split())
    for option in all_options(script):
        if option.is_positional or not option.has_value:
            continue
        assert option.shown_default not in (None, "", "None"), option.name
        if option.default not in (None, "", (), 0):
            assert option.shown_default == str(option.default)
        assert f"{option.help} (default: {option.shown_default})" in text


@pytest.mark.parametrize("script", PARSERS)
def test_examples_work(script, folder):
    found = list(commands(PARSERS[script]().epilog))
    assert len(found) >= 3
    for of_script, arguments in found:
        assert of_script == script
        args = parse_in(folder, script, arguments)
        assert args is not None or arguments == ["--list-models"], arguments


def test_an_option_in_the_wrong_is_told_first(capsys):
    """Not the prompt that it swallowed."""
    for words in (["--step", "3"], ["--list-model"], ["a", "--no-such-thing=1"]):
        with pytest.raises(SystemExit) as stopped:
            parse(txt2image_parser(), words)
        assert stopped.value.code == 2
        assert "unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--step", "3"], "--steps"),
        (["--n-image=3"], "--n_images"),
        (["--guidance-scaling", "3"], "--guidance-rescale"),
        (["--list_model"], "--list-models"),
        (["--sampler", "euler_a"], "euler-a"),
        (["--schedule", "karas"], "karras"),
        (["--prediction-type", "v"], None),
        (["--xyz"], None),
    ],
)
def test_did_you_mean(capsys, words, meant):
    with pytest.raises(SystemExit) as stopped:
        parse(txt2image_parser(), ["a photo", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2  # usage, and this
    assert error.endswith(f": did you mean {meant}?\n" if meant else "\n")
    assert meant or "did you mean" not in error


def explained(script: str, words: list[str], capsys) -> str:
    """The error for options of other programs, after the word itself."""
    with pytest.raises(SystemExit) as stopped:
        parse(PARSERS[script](), words)
    assert stopped.value.code == 2
    _, line = capsys.readouterr().err.splitlines()
    (word,) = {word.partition("=")[0] for word in words if word.startswith("-")}
    start, _, said = line.partition(f"unrecognized arguments: {word}")
    assert start == f"{start.split(': ')[0]}: error: "
    return said


def test_each_option_of_another_program_has_one_meaning():
    names = [name for theirs in [*SAME.values(), *ABSENT.values()] for name in theirs.split()]
    assert len(names) == len(set(names)) > 250
    for start in [*SAME_BEGINNINGS, *ABSENT_BEGINNINGS]:
        assert not any(name.startswith(start) for name in names if len(name) > 2), start
    assert EXPLANATIONS.keys() <= set(names)


@pytest.mark.parametrize("script", PARSERS)
def test_what_other_programs_call_the_options(script, capsys):
    """Whatever the spelling, the answer ends with an option that exists, or says there is none."""
    known = {name for _, action in options(PARSERS[script]()) for name in action.option_strings}
    both = PARSERS["image2image.py"]()
    of_pictures = {name for _, action in options(both) for name in action.option_strings}
    pairs = [(name, ours) for ours, theirs in SAME.items() for name in theirs.split()]
    pairs += [(f"{start}xyz", ours) for start, ours in SAME_BEGINNINGS.items()]
    pairs += [(name, None) for theirs in ABSENT.values() for name in theirs.split()]
    pairs += [(f"{start}xyz", None) for start in ABSENT_BEGINNINGS]
    for name, ours in pairs:
        dashes = "-" if len(name) == 1 else "--"
        spellings = {f"{dashes}{name}", f"{dashes}{name.replace('-', '_')}", f"{dashes}{name}=x"}
        assert not {word.partition("=")[0] for word in spellings} & known
        for word in spellings:
            said = explained(script, ["a photo", word], capsys)
            if ours is None:
                assert said.startswith(": there is no such option: "), word
            else:
                assert said.split()[-1] == ours in of_pictures, word
                assert (ours in known) != (": it is for image2image.py, and" in said), word


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a cat"], "there is no such option: write the prompt alone, in quotes"),
        (["-n", "blurry"], "here it is --negative_prompt"),
        (["-W512"], "here it is --width"),
        (["-H", "64"], "here it is --height"),
        (["-s42"], "here it is --seed"),
        (["--Num_Inference-Steps=4"], "here it is --steps"),
        (["--guidance", "3"], "here it is --cfg"),
        (["--negative", "x"], "here it is --negative_prompt"),
        (["--no_half"], "here it is --no-float16"),
        (["--denoise=.5"], "it is for image2image.py, and here it is --strength"),
        (["--scheduler=x"], f"{EXPLANATIONS['scheduler']} --schedule"),
        (["--controlnet-strength", "1"], f"there is no such option: {CONTROL}"),
        (["--mask_image", "1"], f"there is no such option: {MASKS}"),
        (["--image", "a.png"], f"there is no such option: {IMAGE}"),
    ],
)
def test_the_sense_is_right(capsys, words, said):
    assert explained("txt2image.py", words, capsys) == f": {said}"


def test_what_is_behind_the_end_of_options_is_a_prompt(folder):
    assert parse_in(folder, "txt2image.py", ["--", "--guidance"]).requests[0].prompt == "--guidance"
    assert parse_in(folder, "txt2image.py", ["-p a cat"]).requests[0].prompt == "-p a cat"
    assert parse_in(folder, "txt2image.py", ["-qv", "a"]).quantize is True


def test_messages_spell_options_as_the_help_does():
    known = set()
    for parser in (*(make() for make in PARSERS.values()), convert_parser()):
        known |= {
            next(name for name in action.option_strings if name.startswith("--"))
            for _, action in options(parser)
            if action.option_strings
        }
    sentences = "\n".join(line for line in templates().splitlines() if " " in line)
    spelt = set(re.findall(r"(?<![\w-])--[a-z][\w-]*[a-z0-9](?![\w-])", sentences))
    assert spelt >= {"--from-image", "--n_rows", "--unet-bits"}
    others = {"--name", "--force-reinstall"}  # of a docstring; pip's
    assert spelt - known == others


def test_prompts_are_no_options(folder):
    assert (
        parse_in(folder, "txt2image.py", ["--a photo of it"]).requests[0].prompt
        == "--a photo of it"
    )
    assert parse_in(folder, "txt2image.py", ["--", "--step"]).requests[0].prompt == "--step"


def test_values_that_look_like_the_end_of_options(folder):
    """Python's own parser loses them before 3.13."""
    settings = parse_in(folder, "txt2image.py", ["--negative_prompt=--", "--output=--", "a"])
    (request,) = settings.requests
    assert (request.prompt, request.negative_prompt) == ("a", "--")
    with pytest.raises(SystemExit):
        parse(txt2image_parser(), ["--steps=--", "a"])


@pytest.mark.parametrize("option", ["--lora={}", "--embedding=x={}", "--lora={}:1"])
@pytest.mark.parametrize("name", ["x" * 999, "~nosuch/x", "a\0b", "/dev/zero"])
def test_files_that_cannot_be(capsys, option, name):
    with pytest.raises(SystemExit) as stopped:
        parse(txt2image_parser(), ["a", option.format(name)])
    assert stopped.value.code == 2
    assert "error: argument" in (said := capsys.readouterr().err) and "no such" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model=https://huggingface.co/org/name", "give org/name"),
        ("--model=https://huggingface.co/org/name/", "give org/name"),
        ("--model=http://www.hf.co/org/name/tree/main?x=1#y", "give org/name"),
        ("--model=https://huggingface.co/org/name/tree/fp16", "give org/name@fp16"),
        ("--model=https://huggingface.co/org/name/tree/refs%2Fpr%2F1", "give org/name@refs/pr/1"),
        ("--model=https://huggingface.co/o/n/blob/main/model_index.json", "give o/n"),
        ("--model=huggingface.co/org/name", "give org/name"),
        ("--vae=https://huggingface.co/org/name", "give org/name"),
        ("--model=https://huggingface.co/o/n/blob/main/a/b.safetensors", None),
        ("--model=https://huggingface.co/o/n/resolve/fp16/b.safetensors?download=true", None),
        ("--model=https://civitai.com/models/4384/dreamshaper", None),
        ("--model=civitai.com/models/4384", None),
        ("--model=HTTPS://example.org", None),
        ("--lora=https://huggingface.co/o/n", None),
        ("--lora=https://civitai.com/api/download/models/1:0.8", None),
        ("--embedding=x=https://example.org/x.safetensors", None),
    ],
)
def test_addresses(capsys, option, said):
    with pytest.raises(SystemExit) as stopped:
        parse(txt2image_parser(), ["a", option])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert " is a web address: " in error
    if said is None:
        assert error.endswith(", a .safetensors, and give the path of that\n")
    else:
        assert error.endswith(f"{said}\n")


@pytest.mark.parametrize("model", ["org/name", "org/name@v1", "./http", "hf.co", "a:b", ""])
def test_what_is_no_address(folder, model):
    (folder / "hf.co").mkdir()
    assert parse_in(folder, "txt2image.py", ["a", f"--model={model}"]).model == model


LAST_SEED = 2**64 - 1


def test_seeds(folder, capsys):
    for seed in (0, LAST_SEED):
        args = parse_in(folder, "txt2image.py", ["a", "--n_images=1", f"--seed={seed}"])
        assert args.requests[0].seed == seed
    for wrong, said in {
        "-1": f"must be from 0 to {LAST_SEED}, got -1: leave it out for a random one",
        str(LAST_SEED + 1): f"must be from 0 to {LAST_SEED}, got {LAST_SEED + 1}",
        "x": "'x' is not an integer",
    }.items():
        assert parse_in(folder, "txt2image.py", ["a", "--seed", wrong]) is None
        assert capsys.readouterr().err.endswith(f": {said}\n")


def test_no_picture_has_a_seed_beyond_the_last(folder, capsys):
    """Those that follow count too: of a call, a recipe, and a prompts file."""
    last, end = str(LAST_SEED), f"as seeds end at {LAST_SEED}: take a smaller one"
    assert parse_in(folder, "txt2image.py", ["a", "--n_images=2", "--seed", str(LAST_SEED - 1)])
    assert parse_in(folder, "txt2image.py", ["a", "--n_images=2", "--seed", last]) is None
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


# --- messages ------------------------------------------------------------------------------------


def templates() -> str:
    """All texts in the package's source, one a line, with … for what is put into them."""
    texts = []
    for file in (ROOT / "stable_diffusion").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                texts.append("".join(parts))
    return "\n".join(texts)
