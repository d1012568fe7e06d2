"""Parts of messages: suggestions, texts from files, shell arguments, errors, sizes."""

import shlex
import unicodedata
from random import Random

import pytest

from stable_diffusion.sampler.sampler import SAMPLERS
from stable_diffusion.utils.wording import (
    MAX_SHOWN,
    abbreviate,
    describe_error,
    did_you_mean,
    escape_controls,
    format_bytes,
    quote_argument,
)

CONTROLS = {"Cc", "Cf", "Zl", "Zp"}  # categories
# Signs of Arabic, Syriac and Kaithi that are seen, and what places hieroglyphs.
SIGNS = {*map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD))}
SIGNS |= {*map(chr, range(0x13430, 0x13440))}
ASTRONAUT, FAMILY = "\U0001f469\u200d\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("euler_a", "euler-a"),
        ("Euler-A", "euler-a"),
        ("dpmpp2m", "dpm++2m"),
        ("dpmpp_2m_sde", "dpm++2m-sde"),
        ("uni_pc", "unipc"),
        ("DPM++ 2M", "dpm++2m"),
        ("dddim", "ddim"),
        ("restart", None),
        ("", None),
        ("ddim", None),  # nothing to correct
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
    assert abbreviate("a\nb\r\n\tc ") == "a b c"
    assert abbreviate("x" * 10**6) == "x" * MAX_SHOWN + "…"
    assert abbreviate("a\u202eb\x1b[31m") == r"a\u202eb\x1b[31m"


def test_what_is_escaped():
    """All control characters are, whatever surrounds them; characters of prompts are not."""
    for each in map(chr, range(0x110000)):
        is_control = unicodedata.category(each) in CONTROLS and each not in SIGNS
        is_control |= "\udc80" <= each <= "\udc9f"  # bytes that steer terminals
        if is_control:
            assert escape_controls(f"a{each}b") == f"a{ascii(each)[1:-1]}b" and len(ascii(each)) > 3
        elif unicodedata.category(each) != "Cn":  # not assigned
            assert escape_controls(f"a{each}b") == f"a{each}b", hex(ord(each))


@pytest.mark.parametrize(
    "text",
    [
        *("", "a cat", "é新", "ネコ\u3000犬", "\\u202e", "50\xa0%", "e\u0301", "\udcff"),
        *(ASTRONAUT, FAMILY, f"a {ASTRONAUT}{FAMILY}!", "\u2764\ufe0f\u200d\U0001f525"),
        *("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"),
    ],
)
def test_what_is_not_escaped(text):
    assert escape_controls(text) == text


@pytest.mark.parametrize("joiner", ["\u200c", "\u200d"])
@pytest.mark.parametrize(
    "text", ["{}", "a{}", "a{}b", "é{}", "é{}b", "a{}é", "é{}{}é", "{}é", "é {}é"]
)
def test_joiners_that_join_nothing(text, joiner):
    assert escape_controls(text.format(joiner, joiner)) == text.format(*2 * [ascii(joiner)[1:-1]])


def make_random_texts() -> list[str]:
    """Return texts of all characters, and of those that are escaped or special in a shell."""
    rng, odd = Random(0), "\u200d\u200c\u202e\u2028\x1b\n\\'\"-$`;a é❤\ufe0f\udc9b"
    return [
        "".join(
            rng.choice(odd) if rng.random() < 0.7 else chr(rng.randrange(0x110000))
            for _ in range(rng.randrange(9))
        )
        for _ in range(2000)
    ]


def test_escaped_once_is_escaped():
    for text in make_random_texts():
        once = escape_controls(text)
        assert escape_controls(once) == once and len(once.splitlines()) <= 1


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("house.png", "house.png"),
        ("house.png;curl x|sh", "'house.png;curl x|sh'"),
        ("$(x) `y` !z.png", "'$(x) `y` !z.png'"),
        ("it's.png", "'it'\"'\"'s.png'"),
        ("-q", "./-q"),
        ("--output=a b", "'./--output=a b'"),
        ("猫.png", "'猫.png'"),
        ("", "FILE"),
        ("a\nb", "FILE"),
        ("a\x1bb", "FILE"),
        ("a\u202eb", "FILE"),
        ("a\xa0b", "FILE"),
        ("a  b", "FILE"),
        ("\udcff", "FILE"),
        ("x" * 201, "FILE"),
    ],
)
def test_names_in_commands(name, word):
    assert quote_argument(name, "FILE") == word


def test_a_name_is_one_word_of_a_command():
    for name in make_random_texts():
        assert shlex.split(quote_argument(name, "FILE")) in ([name], [f"./{name}"], ["FILE"])


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
    assert describe_error(error) == line


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
    assert format_bytes(n_bytes) == words
