"""What misspelt words are taken to have meant."""

import pytest

from stable_diffusion.diffusion_config import SAMPLERS
from stable_diffusion.suggest import did_you_mean


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
