"""What messages share: "did you mean", foreign texts, commands, errors of the system, sizes."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

LIKENESS = 0.6  # of two words, 0 to 1: difflib's own default
MAX_SHOWN = 200  # characters of a value that comes from a file

# What ends a line, steers a terminal, changes the order of what is written, or cannot be seen:
# controls (also as bytes of a name that is not UTF-8), and what formats text, except the signs of
# some scripts. A joiner belongs between letters or emoji, which it joins; elsewhere it only hides.
_UNSEEN = (
    r"\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINED = rf"[^\x00-\xa0\udc80-\udcff{_UNSEEN}]"
_CONTROLS = re.compile(
    rf"(?!(?<={_JOINED})[\u200c\u200d]{_JOINED})[\x00-\x1f\x7f-\x9f\udc80-\udc9f{_UNSEEN}]"
)


class PromptWarning(UserWarning):
    """Tells that a part of a prompt is not read as it may be meant.

    Args:
        message: what is told.
        topic: what a run needs to hear but once, of whichever prompt; None for the message itself.
    """

    def __init__(self, message: str, topic: str | None = None):
        super().__init__(message)
        self.topic = message if topic is None else topic


def did_you_mean(
    word: str,
    known: Iterable[str],
    aliases: Mapping[str, str] | None = None,
    likeness: float = LIKENESS,
) -> str:
    """ ": did you mean …?", to end a message with; "" where nothing known is spelt much like it.

    Args:
        aliases: further spellings, and the word that each stands for.
        likeness: from which on two spellings are close (`difflib.SequenceMatcher.ratio`).
    """
    words = (aliases or {}) | {each: each for each in known}
    meant = {spelling.lower(): each for spelling, each in words.items()}
    close = get_close_matches(word.lower(), meant, n=1, cutoff=likeness)
    if not close or meant[close[0]] == word:
        return ""
    return f": did you mean {meant[close[0]]}?"


def escape_controls(text: str) -> str:
    """Write the controls of a text as Python does (`\\x1b`), so that it is only seen."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def quote_argument(name: object, placeholder: str) -> str:
    """Return the name of a file as a shell takes it, for a command that a message suggests.

    A name that cannot be seen as it is, or is too long to be shown, becomes the placeholder.
    """
    text = str(name)
    if not text or abbreviate(text) != text or not text.isprintable():
        return placeholder
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def abbreviate(value: object) -> str:
    """On one line, and not all of what is long."""
    text = escape_controls(" ".join(str(value).split()))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def describe_error(error: Exception) -> str:
    """What an error says; one of the system's begins with the file, as our own do."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def format_bytes(n_bytes: int) -> str:
    """Bytes in GB or MB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.{0 if n_bytes >= 1e7 else 1}f} MB"


MAX_NAMED = 10  # tensors that an error lists of each kind; it counts the others


def join_names(keys: Sequence[str]) -> str:
    """The first of `keys`, for a message, and how many more there are."""
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return ", ".join(keys[:MAX_NAMED]) + more
