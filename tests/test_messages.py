"""What messages share: what misspelt words are taken to have meant, long values, sizes."""

import pytest

from stable_diffusion.diffusion_config import SAMPLERS
from stable_diffusion.messages import MOST_SHOWN, did_you_mean, said, shown, size


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("euler_a", "euler-a"),
        ("Euler-A", "euler-a"),
        ("dpmpp2m", "dpm++2m"),
        ("DPM++ 2M", "dpm++2m"),
        ("dddim", "ddim"),
        ("heun", None),
        ("", None),
        ("ddim", None),  # nothing to mend
    ],
)
def test_samplers(word, meant):
    assert did_you_mean(word, SAMPLERS) == ("" if meant is None else f": did you mean {meant}?")


def test_aliases_stand_for_words():
    assert did_you_mean("colour", ["size"], {"color": "--hue"}) == ": did you mean --hue?"


def test_likeness():
    assert did_you_mean("abcd", ["abxd"], likeness=0.7) != ""
    assert did_you_mean("abcd", ["abxd"], likeness=0.8) == ""


def test_values_on_one_line():
    assert shown("a\nb\r\n\tc ") == "a b c"
    assert shown("x" * 10**6) == "x" * MOST_SHOWN + "…"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file", "a.png"), "a.png: No such file"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (OSError("a.png: cannot be written"), "a.png: cannot be written"),
        (ValueError("3 is no name"), "3 is no name"),
    ],
)
def test_errors(error, line):
    assert said(error) == line


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0.0 MB"),
        (480_000, "0.5 MB"),
        (9_940_000, "9.9 MB"),
        (38_400_000, "38 MB"),
        (335_000_000, "335 MB"),
        (1_000_000_000, "1.0 GB"),
        (6_940_000_000, "6.9 GB"),
    ],
)
def test_sizes(n_bytes, words):
    assert size(n_bytes) == words
