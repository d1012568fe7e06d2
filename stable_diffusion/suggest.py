"""What a misspelt word was meant to be."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

LIKENESS = 0.6  # of two words, 0 to 1: difflib's own default


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
