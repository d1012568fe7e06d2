"""Format parts of messages: suggestions, texts from files, shell arguments, errors, sizes."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

MIN_LIKENESS = 0.6  # of two words, from 0 to 1: the default of difflib
MAX_SHOWN = 200  # characters of a value from a file or the command line
MAX_NAMED = 10  # names that an error lists; it counts the others

# Characters that end a line, control a terminal, change the order of the text, or are invisible:
# control characters (also as bytes of a name that is not UTF-8) and format characters, except those
# that some scripts show. A joiner is kept between letters or emoji, which it joins.
_INVISIBLE = (
    r"\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINABLE = rf"[^\x00-\xa0\udc80-\udcff{_INVISIBLE}]"
_CONTROLS = re.compile(
    rf"(?!(?<={_JOINABLE})[\u200c\u200d]{_JOINABLE})[\x00-\x1f\x7f-\x9f\udc80-\udc9f{_INVISIBLE}]"
)


class InputWarning(UserWarning):
    """Warns that a part of a prompt or of a mask may not have the effect that was meant.

    Args:
        message: the warning.
        topic: a run shows one warning of each topic, whichever prompt it is about; None for the
            message itself.
    """

    def __init__(self, message: str, topic: str | None = None):
        super().__init__(message)
        self.topic = message if topic is None else topic


def did_you_mean(
    word: str,
    known: Iterable[str],
    aliases: Mapping[str, str] | None = None,
    likeness: float = MIN_LIKENESS,
) -> str:
    """Return ": did you mean …?" to end a message with, or "" if no known word is similar.

    Args:
        aliases: further spellings, and the word that each stands for.
        likeness: how similar two spellings must be (`difflib.SequenceMatcher.ratio`).
    """
    words = {**({} if aliases is None else aliases), **{each: each for each in known}}
    meant = {_fold(spelling): each for spelling, each in words.items()}
    close = get_close_matches(_fold(word), meant, n=1, cutoff=likeness)
    if not close or meant[close[0]] == word:
        return ""
    return f": did you mean {meant[close[0]]}?"


def _fold(word: str) -> str:
    """Return a word in the spelling that words are compared in: small, with p for a plus."""
    return word.lower().replace("+", "p")  # other programs call dpm++2m dpmpp_2m


def escape_controls(text: str) -> str:
    """Escape control characters as Python does (`\\x1b`), so that they have no effect."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def quote_argument(name: object, placeholder: str) -> str:
    """Quote the name of a file for a shell command that a message suggests.

    If the name is too long or has characters that cannot be shown, return the placeholder.
    """
    text = str(name)
    if not text or abbreviate(text) != text or not text.isprintable():
        return placeholder
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def abbreviate(value: object) -> str:
    """Return a value as one line of at most `MAX_SHOWN` characters, without control characters."""
    text = escape_controls(" ".join(str(value).split()))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def describe_error(error: Exception) -> str:
    """Return the message of an error; an OSError begins with the file, as our own errors do."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes in GB or MB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.{0 if n_bytes >= 1e7 else 1}f} MB"


def join_names(names: Sequence[str]) -> str:
    """Return the first `MAX_NAMED` names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
