"""Normalize text as CLIP's tokenizer does: valid Unicode, NFC, single spaces, lower case."""

import unicodedata
from itertools import groupby

import regex

# transformers' tokenizer normalizes by Unicode 9, whose NFC does not change later characters. These
# ranges contain the later characters that today's NFC would reorder or compose, and others that it
# never changes.
AFTER_UNICODE_9 = regex.compile(
    "([\u05c8-\u05c9\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1af0\u1df6-\u1dfa"
    "\ua82c\U000105c0-\U000105ff\U00010d24-\U00010f85\U00011070\U0001133b\U00011380-\U000113ff"
    "\U0001145e\U00011839-\U00011a99\U00011d42-\U0001613f\U00016d40-\U00016ff1"
    "\U0001d127-\U0001d128\U0001d250-\U0001d281\U0001e08f-\U0001e6f5])"
)
WHITE_SPACE = regex.compile(r"\s+")
MANY_MARKS = regex.compile(r"\p{M}{30,}")


def clean(text: str) -> str:
    """Return a text with a question mark for each lone surrogate, which UTF-8 cannot hold."""
    return text.encode(errors="replace").decode()


def normalize(text: str) -> str:
    """Return a text in NFC, with single spaces, in lower case by code point."""
    text = "".join(_compose(part) for part in AFTER_UNICODE_9.split(text))
    text = WHITE_SPACE.sub(" ", text)
    return text.replace("Σ", "σ").lower()  # str.lower alone would make a final Σ a ς


def _compose(text: str) -> str:
    """Return a text in NFC.

    Python sorts a run of marks in quadratic time, so long runs are sorted here first.
    """
    return unicodedata.normalize("NFC", MANY_MARKS.sub(lambda run: _sort_marks(run[0]), text))


def _sort_marks(marks: str) -> str:
    """Return marks decomposed and in canonical order, so that NFC has nothing to reorder."""
    decomposed = "".join(unicodedata.normalize("NFD", mark) for mark in marks)
    runs = groupby(decomposed, key=lambda mark: unicodedata.combining(mark) > 0)
    return "".join(
        "".join(sorted(run, key=unicodedata.combining) if is_movable else run)
        for is_movable, run in runs
    )
