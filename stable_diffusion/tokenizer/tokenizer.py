"""Text to token ids: CLIP's byte-level BPE, equal to the `CLIPTokenizer` of transformers 5.

Special tokens are cut out of the text first. The rest is normalized (`normalize`) and split into
words by a regular expression, and the bytes of each word are merged (`byte_pairs`). `files` reads
a tokenizer from its files.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import regex

from ..utils.strict_json import require
from ..utils.wording import PromptWarning
from .byte_pairs import BytePairs
from .normalize import clean, normalize

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # rows of CLIP's position table
MAX_QUOTED = 200  # characters of the dropped end of a prompt, in the warning

# The special tokens are part of it: one that is read as plain text (in capitals, for example, which
# become lower case) still separates words.
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as a whole, instead of by merging.

    The flags `lstrip` and `rstrip` of the files include white space around the token. White space
    is dropped in any case, so these flags are not needed here.
    """

    content: str
    normalized: bool = False  # searched for in the normalized text, not in the text as it is
    single_word: bool = False  # found only if no letter, digit or underscore touches it

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


class Tokenizer:
    """CLIP's tokenizer.

    Attributes:
        max_length: how many ids a padded prompt has.
        bos_id, eos_id, pad_id: the ids of the tokens that begin, end and fill a prompt.
        n_ids: how many rows a table of embeddings must have for the tokens of the files.

    Args:
        vocab: the id of each token.
        merges: pairs of tokens to merge into one, in the order in which they are tried.
        bos_token, eos_token, pad_token: the tokens that begin, end and fill a prompt. SD 2.x and
            SDXL's second tokenizer fill with `!`.
        unk_token: the token for a byte that `vocab` lacks (real ones lack none).
        added_tokens: tokens that are found in the text as a whole. The four above always are, and
            have flags if they are listed here. Tokens that `vocab` lacks get the next free ids.
        max_length: how many ids a padded prompt has, with BOS and EOS.

    Raises:
        ValueError: if `vocab` lacks the BOS, EOS or unknown token or one that a merge needs, or if
            `max_length` is less than 2.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[Sequence[str]],
        *,
        bos_token: str = BOS,
        eos_token: str = EOS,
        unk_token: str = EOS,
        pad_token: str = EOS,
        added_tokens: Iterable[AddedToken] = (),
        max_length: int = MAX_LENGTH,
    ) -> None:
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {max_length}")
        self.max_length = max_length
        if not all(type(id) is int and id >= 0 for id in vocab.values()):
            raise ValueError("the vocabulary has an id that is not an integer from 0 up")

        added = {token.content: token for token in added_tokens}
        for content in (bos_token, eos_token, unk_token, pad_token):
            if content not in vocab and content != pad_token:  # the pad token may be a new one
                raise ValueError(f"the token {content!r} is not in the vocabulary")
            added.setdefault(content, AddedToken(content))
        ids = dict(vocab)
        for content in added:
            ids.setdefault(content, len(ids))
        self.bos_id, self.eos_id, self.pad_id = ids[bos_token], ids[eos_token], ids[pad_token]
        self.n_ids = 1 + max(ids.values())

        # Keyed by the string that is searched for.
        self._ids = {t.normal_content: [ids[t.content]] for t in added.values()}
        self._added = [t for t in added.values() if t.normalized]
        self._added_raw = _compile_pattern(t for t in added.values() if not t.normalized)
        self._added_normalized = _compile_pattern(self._added)
        self._bpe = BytePairs(vocab, merges, ids[unk_token])

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text with BOS and EOS, at most `max_length` in all, not padded.

        What does not fit is dropped, with a warning that quotes it. Lone surrogates, which UTF-8
        cannot hold, count as `?`.
        """
        kept, dropped = self.cut(self.words(text))
        if dropped:
            warnings.warn(self.make_dropped_warning(dropped), stacklevel=2)
        return [self.bos_id, *kept, self.eos_id]

    def cut(self, words: Iterable[tuple[str, Sequence[_T]]]) -> tuple[list[_T], str]:
        """Return the items that fit between BOS and EOS, and the words that do not fit.

        Args:
            words: each word with one item for each of its tokens, such as the id.

        Returns:
            The items, and the beginning of the words that do not fit, for a warning.
        """
        kept: list[_T] = []
        dropped = ""
        for word, tokens in words:
            kept += tokens
            if len(kept) > self.room:
                dropped += f" {word}"
            if len(dropped) > MAX_QUOTED:
                dropped = dropped[:MAX_QUOTED] + "…"
                break
        return kept[: self.room], dropped[1:]

    def make_dropped_warning(self, dropped: str, what: str = "prompt") -> PromptWarning:
        """Return a warning that the last words of a prompt are dropped."""
        return PromptWarning(
            f"the {what} has more than {self.max_length} tokens; dropped: {dropped!r}"
        )

    @property
    def room(self) -> int:
        """Return how many tokens fit between BOS and EOS."""
        return self.max_length - 2

    def pad(self, ids: Sequence[int]) -> list[int]:
        """Return the ids, filled with the pad token up to `max_length`."""
        return [*ids, *[self.pad_id] * (self.max_length - len(ids))]

    def encode(self, text: str) -> list[int]:
        """Return the `max_length` ids of a text: tokenized, then padded."""
        return self.pad(self.tokenize(text))

    def add(self, name: str, ids: Sequence[int]) -> None:
        """Make a new token stand for some ids wherever a text has it, in upper or lower case.

        Raises:
            ValueError: as `check_new` does.
        """
        token = self.check_new(name)
        self._ids[token.normal_content] = list(ids)
        self._added.append(token)
        self._added_normalized = _compile_pattern(self._added)

    def check_new(self, name: str) -> AddedToken:
        """Check a name for a new token, and return the token that `add` would make of it.

        Raises:
            ValueError: if it is a token already, or would not be found in a text.
        """
        token = AddedToken(clean(name).strip(), normalized=True)
        if token.normal_content in self._ids or sum(len(ids) for _, ids in self.words(name)) == 1:
            raise ValueError(
                f"{name!r} is a token already: choose another name, such as <my-style>"
            )
        content, normal = token.content, token.normal_content
        # An accent, for example, becomes one character with the letter before it.
        joins = normalize(f"a{content}{content}") != f"a{normal}{normal}"
        if not content or joins or self._added_raw.search(content):
            raise ValueError(f"{name!r} cannot be a token: choose another name, such as <my-style>")
        return token

    def words(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield the special tokens and words of a text in order, each with its ids."""
        for raw, raw_is_token in _split(self._added_raw, clean(text)):
            if raw_is_token:
                yield raw, self._ids[raw]
                continue
            for part, is_token in _split(self._added_normalized, normalize(raw)):
                if is_token:
                    yield part, self._ids[part]
                    continue
                for match in WORD.finditer(part):
                    yield match[0], self._bpe.ids(match[0])


def _compile_pattern(tokens: Iterable[AddedToken]) -> regex.Pattern:
    """Return the expression that finds any of the tokens, the longest first."""
    literals = []
    for token in tokens:
        content = token.normal_content
        literal = regex.escape(content)
        if token.single_word:
            literal = rf"(?<!\w){literal}(?!\w)"
        literals.append((len(content), literal))
    alternatives = "|".join(literal for _, literal in sorted(literals, reverse=True))
    return regex.compile(alternatives or "(?!)")  # the latter finds nothing


def _split(pattern: regex.Pattern, text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text in order, each with whether the pattern matched it."""
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.start()], False
        yield match[0], True
        start = match.end()
    yield text[start:], False
