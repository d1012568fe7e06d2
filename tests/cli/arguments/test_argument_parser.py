"""`argument_parser.py`: the help, unknown options, and values that look like options."""

from pathlib import Path

import pytest
from command_lines import PARSERS, parse_in_folder

from stable_diffusion.cli.arguments.options import GROUPS, all_options
from stable_diffusion.cli.arguments.parse import parse, txt2image_parser


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
    """If the default is a value, the help shows it."""
    text = " ".join(PARSERS[script]().format_help().split())
    for option in all_options(script):
        if option.is_positional or not option.has_value:
            continue
        assert option.shown_default not in (None, "", "None"), option.name
        if option.default not in (None, "", (), 0):
            assert option.shown_default == str(option.default)
        assert f"{option.help} (default: {option.shown_default})" in text


def test_an_unknown_option_is_reported_first(capsys):
    """The prompt that it took as its value is not reported as missing."""
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


def get_prompt(folder: Path, *arguments: str) -> str:
    """Return the prompt of a command line that has no other."""
    (request,) = parse_in_folder(folder, "txt2image.py", [*arguments]).requests
    return request.prompt


def test_words_after_the_end_of_options_are_a_prompt(folder):
    assert get_prompt(folder, "--", "--guidance") == "--guidance"
    assert get_prompt(folder, "--", "--step") == "--step"


def test_short_options_together(folder):
    settings = parse_in_folder(folder, "txt2image.py", ["-qv", "a"])
    assert settings.quantize is True and settings.verbose is True


def test_prompts_that_look_like_options(folder):
    for prompt in ("--a photo of it", "-p a cat"):
        assert get_prompt(folder, prompt) == prompt


def test_values_that_look_like_the_end_of_options(folder):
    """Before Python 3.13 argparse loses such values."""
    settings = parse_in_folder(folder, "txt2image.py", ["--negative_prompt=--", "--output=--", "a"])
    (request,) = settings.requests
    assert (request.prompt, request.negative_prompt) == ("a", "--")
    with pytest.raises(SystemExit):
        parse(txt2image_parser(), ["--steps=--", "a"])
