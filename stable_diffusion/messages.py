"""What messages share: "did you mean", values that may be long, errors of the system, sizes."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

LIKENESS = 0.6  # of two words, 0 to 1: difflib's own default
MOST_SHOWN = 200  # characters of a value that comes from a file


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


def shown(value: object) -> str:
    """On one line, and not all of what is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def said(error: Exception) -> str:
    """What an error says; one of the system's begins with the file, as our own do."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def size(n_bytes: int) -> str:
    """Bytes in GB or MB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.{0 if n_bytes >= 1e7 else 1}f} MB"
