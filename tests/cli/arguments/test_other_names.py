"""`other_names.py`: options of other programs get a hint at ours."""

import argparse
from functools import cache

import pytest
from command_lines import PARSERS, list_options

from stable_diffusion.cli.arguments.other_names import (
    ABSENT,
    ABSENT_BEGINNINGS,
    CONTROL,
    EXPLANATIONS,
    IMAGE,
    SAME,
    SAME_BEGINNINGS,
)
from stable_diffusion.cli.arguments.parse import parse


@cache
def make_parser(script: str) -> argparse.ArgumentParser:
    """Return a script's parser, not to be changed: making one takes longer than parsing."""
    return PARSERS[script]()


def get_explanation(script: str, words: list[str], capsys) -> str:
    """Return the part of the error after the option of another program."""
    with pytest.raises(SystemExit) as stopped:
        parse(make_parser(script), words)
    assert stopped.value.code == 2
    _, line = capsys.readouterr().err.splitlines()
    (word,) = {word.partition("=")[0] for word in words if word.startswith("-")}
    start, _, said = line.partition(f"unrecognized arguments: {word}")
    assert start == f"{start.split(': ')[0]}: error: "
    return said


def test_each_option_of_another_program_has_one_meaning():
    names = [name for theirs in [*SAME.values(), *ABSENT.values()] for name in theirs.split()]
    assert len(names) == len(set(names)) > 250
    beginnings = SAME_BEGINNINGS | ABSENT_BEGINNINGS
    for meaning, theirs in [*SAME.items(), *ABSENT.items()]:  # those of whole names come first
        for name in theirs.split():
            starts = [start for start in beginnings if name.startswith(start) and len(name) > 2]
            assert meaning not in [beginnings[start] for start in starts], name
    assert EXPLANATIONS.keys() <= set(names)


@pytest.mark.parametrize("script", PARSERS)
def test_what_other_programs_call_the_options(script, capsys):
    """In every spelling, the error names an option that exists, or says that there is none."""
    known = {
        name for _, action in list_options(PARSERS[script]()) for name in action.option_strings
    }
    other = next(each for each in PARSERS if each != script)
    of_other = {
        name for _, action in list_options(PARSERS[other]()) for name in action.option_strings
    }
    pairs = [(name, ours) for ours, theirs in SAME.items() for name in theirs.split()]
    pairs += [(f"{start}xyz", ours) for start, ours in SAME_BEGINNINGS.items()]
    pairs += [(name, None) for theirs in ABSENT.values() for name in theirs.split()]
    pairs += [(f"{start}xyz", None) for start in ABSENT_BEGINNINGS]
    for name, ours in pairs:
        dashes = "-" if len(name) == 1 else "--"
        spellings = {f"{dashes}{name}", f"{dashes}{name.replace('-', '_')}", f"{dashes}{name}=x"}
        assert not {word.partition("=")[0] for word in spellings} & known
        for word in spellings:
            said = get_explanation(script, ["a photo", word], capsys)
            if ours is None:
                assert said.startswith(": there is no such option: "), word
            else:
                other_script = f", which is for {other}"
                assert (ours in known) != said.endswith(other_script), word
                assert said.removesuffix(other_script).split()[-1] == ours in known | of_other, word


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a cat"], "there is no such option: write the prompt alone, in quotes"),
        (["-n", "blurry"], "use --negative_prompt"),
        (["-W512"], "use --width"),
        (["--size", "512x512"], "give it with --height and --width"),
        (["-H", "64"], "use --height"),
        (["-s42"], "use --seed"),
        (["--Num_Inference-Steps=4"], "use --steps"),
        (["--guidance", "3"], "use --cfg"),
        (["--negative", "x"], "use --negative_prompt"),
        (["--no_half"], "use --no-float16"),
        (["--denoise=.5"], "use --strength, which is for image2image.py"),
        (["--scheduler=x"], f"{EXPLANATIONS['scheduler']} --schedule"),
        (["--controlnet-strength", "1"], f"there is no such option: {CONTROL}"),
        (["--mask_image", "1"], "use --mask, which is for image2image.py"),
        (["--outpaint-left", "1"], "use --outpaint, which is for image2image.py"),
        (["--image", "a.png"], f"there is no such option: {IMAGE}"),
    ],
)
def test_explanations(capsys, words, said):
    assert get_explanation("txt2image.py", words, capsys) == f": {said}"
