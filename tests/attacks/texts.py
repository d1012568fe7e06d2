"""Unusual texts, from seeds."""

from collections.abc import Callable
from random import Random

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WEIGHTS = ["1.3", "-1.3", "0", "1e999", "nan", "inf", "-inf", "1_0", "٣", "+.5", ".", "", " 2 "]
WEIGHTS += ["1.2.3", "9" * 400, "0x10", "1e-400", "½", "2\n", "-0", "1,5", "%s"]
BRACKETS = ["(", ")", "[", "]", "\\", "\\(", "\\]", "\\\\", ":", "((", "]]", "()", "[]", "(:", ":)"]
OPTIONS = [
    *["-", "--", "-- -q", "-q", "--help", "--seed=1", "--model", "-v --", "--=", "-1", "@file"],
    *["--output=/nowhere/x.png", "--n_images=9", "%(prog)s", "{0}", "{prompt!r}", "$HOME", "`id`"],
]
JOINED = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "\U0001f9d1\u200d\U0001f680", "\u200d", "\ufe0f"]
JOINED += ["\U000e0067"]
SPECIAL = [BOS, EOS, EOS.upper(), "<|endoftext|", "|>", "</w>", "Ġ", "!", "!!", "'s", "'LL"]
SPECIAL += ["\ufeff"]
WORDS = ["a", "cat", "Lighthouse", "x2y3", "naïve", "ΣΑΣ", "İI", "日本語", "עִבְרִית", "ﷺ", "ǆ"]
WORDS += ["ß", "ﬁ"]
SPACES = [" ", "\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u180e"]
SPACES += ["\u200b", "\v"]
RIGHT_TO_LEFT = ["\u202e", "\u202b", "\u2066", "\u2069", "\u200f", "שלום", "مرحبا", "\u061c"]
ENDS = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFFFE, 0xFFFF]
ENDS += [0x10000, 0x1FFFE, 0xE0001, 0xF0000, 0x10FFFF]  # where UTF-8 and UTF-16 change their length


def _within(first: int, last: int) -> Callable[[Random], str]:
    return lambda rng: chr(rng.randint(first, last))


def _of(choices: list[str]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(choices)


def _weighted(rng: Random) -> str:
    return f"({rng.choice(WORDS)}:{rng.choice(WEIGHTS)})"


PIECES: list[Callable[[Random], str]] = [
    _within(0x20, 0x7E),
    _within(0, 0x1F),
    _within(0, 0xFFFF),
    _within(0, 0x10FFFF),
    _within(0xD800, 0xDFFF),  # surrogates of UTF-16
    _within(0x300, 0x36F),  # combining marks
    _within(0xF71, 0xF84),  # Tibetan vowels, of which some are two marks
    _within(0x1100, 0x11FF),  # parts of Korean syllables
    *map(_of, (BRACKETS, WEIGHTS, OPTIONS, JOINED, SPECIAL, WORDS, SPACES, RIGHT_TO_LEFT)),
    _of([chr(end) for end in ENDS]),
    _weighted,
]


def any_text(rng: Random, most: int = 400) -> str:
    """Return up to `most` pieces, of one kind or of many."""
    kinds = rng.sample(PIECES, rng.choice([1, 2, 3, len(PIECES)]))
    return "".join(rng.choice(kinds)(rng) for _ in range(rng.choice([0, 1, 2, 5, 20, 90, most])))


def huge_text(rng: Random, length: int = 1_000_000) -> str:
    """Return `length` characters: a few pieces repeated, once each, or in reverse order."""
    unit = any_text(rng, 50) or "x"
    if rng.random() < 0.3:
        unit = rng.choice(PIECES)(rng)  # one huge word, space or sequence of marks
    text = (unit * (length // len(unit) + 1))[:length]
    return "".join(sorted(text, reverse=True)) if rng.random() < 0.1 else text
