"""Text to token ids: CLIP's byte-level BPE, equal to the `CLIPTokenizer` of transformers 5.

Special tokens are cut out of the text first. The rest is normalized (`normalize`) and split into
words by a regular expression, and the bytes of each word are merged (`byte_pairs`). `files` reads
a tokenizer from its files.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import regex

from ..utils.wording import InputWarning
from .added_tokens import AddedToken, AddedTokens, Known, find_series
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


class Tokenizer:
    """CLIP's tokenizer.

    Attributes:
        max_length: how many ids a padded prompt has.
        bos_id, eos_id, pad_id: the ids of the tokens that begin, end and fill a prompt.
        n_ids: how many rows a table of embeddings must have for the vocabulary and the pad token.

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
        _warn_of_other_ids(added.values(), vocab, ids)
        self.bos_id, self.eos_id, self.pad_id = ids[bos_token], ids[eos_token], ids[pad_token]
        self.n_ids = 1 + max(*vocab.values(), self.pad_id)

        known = [Known(token, [ids[token.content]]) for token in added.values()]
        self._raw = AddedTokens(each for each in known if not each.token.normalized)
        self._normal = AddedTokens(each for each in known if each.token.normalized)
        self._series = find_series(added.values())
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

    def make_dropped_warning(self, dropped: str, what: str = "prompt") -> InputWarning:
        """Return a warning that the last words of a prompt are dropped."""
        return InputWarning(
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
        self._normal.add(token, ids)

    def check_new(self, name: str) -> AddedToken:
        """Check a name for a new token, and return the token that `add` would make of it.

        Raises:
            ValueError: if it is a token already, or would not be found in a text.
        """
        token = AddedToken(clean(name).strip(), normalized=True)
        is_known = token.normal_content in self._normal or token.normal_content in self._raw
        if is_known or sum(len(ids) for _, ids in self.words(name)) == 1:
            raise ValueError(
                f"{name!r} is a token already: choose another name, such as <my-style>"
            )
        content, normal = token.content, token.normal_content
        # An accent, for example, becomes one character with the letter before it.
        joins = normalize(f"a{content}{content}") != f"a{normal}{normal}"
        if not content or joins or self._raw.is_in(content):
            raise ValueError(f"{name!r} cannot be a token: choose another name, such as <my-style>")
        return token

    def words(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield the special tokens and words of a text in order, each with its ids.

        Raises:
            ValueError: if the text has a token that `limit_ids` has found no row for.
        """
        for part, known in self._split(self._expand_series(clean(text))):
            if known is None:
                for match in WORD.finditer(part):
                    yield match[0], self._bpe.ids(match[0])
            elif known.ids is None:
                raise ValueError(
                    f"the word {known.token.content!r} is a token of the model, but its text "
                    "encoder has no vector for it: take it out of the prompt"
                )
            else:
                yield part, known.ids

    def limit_ids(self, n_rows: int) -> None:
        """Make added tokens an error in a text if a table of `n_rows` embeddings lacks them."""
        self._raw.limit_ids(n_rows)
        self._normal.limit_ids(n_rows)

    def _split(self, text: str) -> Iterator[tuple[str, Known | None]]:
        """Yield the parts of a text, each with the added token that it is, or None.

        Parts that are no token are normalized.
        """
        for raw, known in self._raw.split(text):
            if known is None:
                yield from self._normal.split(normalize(raw))
            else:
                yield raw, known

    def _expand_series(self, text: str) -> str:
        """Return a text with all the tokens of each word that stands for several.

        It equals diffusers' `maybe_convert_prompt`: once the text has the word as a token, the word
        is replaced wherever its letters are. (A word with capitals that is searched for in the
        normalized text is not, because there it is found in lower case.)
        """
        if not self._series:
            return text
        found = {part for part, known in self._split(text) if known is not None}
        for word, replacement in self._series.items():
            if word in found:
                text = text.replace(word, replacement)
        return text


def _warn_of_other_ids(
    tokens: Iterable[AddedToken], vocab: Mapping[str, int], ids: Mapping[str, int]
) -> None:
    """Warn of the first new token whose id in the files is not the one that it gets.

    The ids of new tokens follow those of the vocabulary without a gap, as in transformers 5.
    """
    for token in tokens:
        wanted, given = token.id, ids[token.content]
        if wanted not in (None, given) and token.content not in vocab:
            warnings.warn(
                f"the tokenizer's files say {wanted} for the token {token.content!r}, which gets "
                f"{given}, the next after the vocabulary, as in transformers 5",
                stacklevel=2,
            )
            return
