"""Added tokens: found in the text as a whole, not made by merging.

Some are searched for in the text as it is, others in the normalized text. All of a kind are found
in one pass, from the left, the longest first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

from ..utils.strict_json import require
from .normalize import normalize

MAX_SERIES = 4000  # words of a series; the longest prompts have fewer tokens
WORD_BEFORE, WORD_AFTER = regex.compile(r"\w\Z"), regex.compile(r"\w")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as a whole, instead of by merging.

    The flags `lstrip` and `rstrip` of the files include white space around the token. White space
    is dropped in any case, so these flags are not needed here.
    """

    content: str
    normalized: bool = False  # searched for in the normalized text, not in the text as it is
    single_word: bool = False  # dropped if a letter, digit or underscore touches it
    id: int | None = None  # in the files, if they say one

    @property
    def normal_content(self) -> str:
        """Return the string that is searched for."""
        return normalize(self.content) if self.normalized else self.content

    @classmethod
    def from_json(cls, token: str | dict[str, Any], special: bool = True) -> "AddedToken":
        """Return a token from a file, where it is a string, or an object with flags.

        Args:
            token: the token as the file has it.
            special: whether it is a special token, if the object does not say. Ordinary tokens
                are normalized, unless the object says otherwise.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: if it is not a token.
        """
        if isinstance(token, str):
            token = {"content": token, "normalized": False}
        content = token["content"]
        require(isinstance(content, str) and content != "", f"a token's content is {content!r}")
        normalized = token.get("normalized", not token.get("special", special))
        return cls(content, normalized, token.get("single_word", False))


class Known(NamedTuple):
    """An added token and the ids that it stands for; None if the text encoder has no vector."""

    token: AddedToken
    ids: list[int] | None


class AddedTokens:
    """The added tokens that are searched for in one form of the text.

    If two of them are the same in this form, the last one is found.
    """

    def __init__(self, known: Iterable[Known] = ()) -> None:
        self._known = {each.token.normal_content: each for each in known}
        self._pattern = _compile_pattern(self._known)

    def __contains__(self, text: str) -> bool:
        """Return whether a string is one of the tokens."""
        return text in self._known

    def add(self, token: AddedToken, ids: Sequence[int]) -> None:
        """Let a token stand for some ids."""
        self._known[token.normal_content] = Known(token, list(ids))
        self._pattern = _compile_pattern(self._known)

    def copy(self) -> "AddedTokens":
        """Return a copy that gets tokens without giving them to the original."""
        return AddedTokens(self._known.values())

    def limit_ids(self, n_rows: int) -> None:
        """Mark the tokens that a table of `n_rows` has no row for."""
        for text, (token, ids) in self._known.items():
            if ids is not None and max(ids) >= n_rows:
                self._known[text] = Known(token, None)

    def is_in(self, text: str) -> bool:
        """Return whether a text has any of the tokens."""
        return any(known is not None for _, known in self.split(text))

    def split(self, text: str) -> Iterator[tuple[str, Known | None]]:
        """Yield the parts of a text in order, each with the token that it is, or None."""
        start = 0
        for match in self._pattern.finditer(text):
            known = self._known[match[0]]
            if known.token.single_word and (
                WORD_BEFORE.search(text, 0, match.start()) or WORD_AFTER.match(text, match.end())
            ):
                continue
            yield text[start : match.start()], None
            yield match[0], known
            start = match.end()
        yield text[start:], None


def find_series(tokens: Iterable[AddedToken]) -> dict[str, str]:
    """Return the words that stand for several tokens, and what takes their place in a text.

    Diffusers saves a learned word of three vectors as the tokens `<word>`, `<word>_1` and
    `<word>_2`: in a prompt, `<word>` stands for all of them.
    """
    contents = {token.content for token in tokens}
    series = {}
    for content in sorted(contents):
        words = [content]
        while f"{content}_{len(words)}" in contents and len(words) < MAX_SERIES:
            words.append(f"{content}_{len(words)}")
        if len(words) > 1:
            series[content] = " ".join(words)
    return series


def _compile_pattern(texts: Iterable[str]) -> regex.Pattern[str]:
    """Return the expression that finds any of the texts, the longest first."""
    longest_first = sorted(texts, key=lambda text: (len(text), text), reverse=True)
    alternatives = "|".join(map(regex.escape, longest_first))
    return regex.compile(alternatives or "(?!)")  # the latter finds nothing
