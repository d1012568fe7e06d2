"""Text to token ids: CLIP's byte-level BPE, equal to the `CLIPTokenizer` of transformers 5.

The text is normalized (`normalize`) and split into words by a regular expression; `bpe` then merges
the bytes of each word. Special tokens are cut out of the text before that.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import regex

from ..utils.strict_json import MAX_JSON, read_json, require
from ..utils.wording import PromptWarning
from .byte_pairs import END_OF_WORD, BytePairs
from .normalize import clean, normalize

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NAMED_TOKENS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
MAX_LENGTH = 77  # rows of CLIP's position table
NO_LIMIT = 1_000_000  # transformers writes a model_max_length of 1e30 where there is none

QUOTED_CHARACTERS = 200  # of the dropped end of a prompt, in the warning

# The special tokens stand here too: where one is plain text, it still parts words.
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


_T = TypeVar("_T")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as it stands, instead of by merging.

    It is looked for before the text is normalized or, where `normalized`, after; `single_word` asks
    that no letter, digit or underscore touches it. (`lstrip` and `rstrip`, which the files also
    have, take in white space, which is dropped anyway.)
    """

    content: str
    normalized: bool = False
    single_word: bool = False

    @property
    def normal_content(self) -> str:
        """What is looked for in the text."""
        return normalize(self.content) if self.normalized else self.content

    @classmethod
    def from_json(cls, token: str | dict[str, Any], special: bool = True) -> "AddedToken":
        """Read a token as the files write it: a string, or an object with flags.

        `special` tells what kind of token it is where the object does not; ordinary ones are
        normalized unless they say otherwise.
        """
        if isinstance(token, str):
            token = {"content": token, "normalized": False}
        content = token["content"]
        require(isinstance(content, str) and content != "", f"a token's content is {content!r}")
        normalized = token.get("normalized", not token.get("special", special))
        return cls(content, normalized, token.get("single_word", False))


class Tokenizer:
    """CLIP's tokenizer. Attributes: `max_length`, `bos_id`, `eos_id`, `pad_id`; `n_ids`, the rows
    that a table of embeddings must have for the tokens of its files.

    Args:
        vocab: the id of each token.
        merges: pairs of tokens that become one, in the order in which they are tried.
        bos_token, eos_token, pad_token: what begins, ends and fills a prompt. SD 2.x and SDXL's
            second tokenizer fill with `!`.
        unk_token: stands for a byte that `vocab` lacks (real ones lack none).
        added_tokens: tokens that are found in the text as they stand. The named ones always are;
            to list one here gives it flags. Tokens that `vocab` lacks get the next free ids.
        max_length: how many ids a padded prompt has, with BOS and EOS.

    Raises:
        ValueError: `vocab` lacks a named token (but for the pad token) or one that a merge needs,
            or `max_length` is under 2.
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
            raise ValueError("the vocabulary has an id that is no number from 0 up")

        added = {token.content: token for token in added_tokens}
        for content in (bos_token, eos_token, unk_token, pad_token):
            if content not in vocab and content != pad_token:  # which may well be a new one
                raise ValueError(f"the token {content!r} is not in the vocabulary")
            added.setdefault(content, AddedToken(content))
        ids = dict(vocab)
        for content in added:
            ids.setdefault(content, len(ids))  # the next free one
        self.bos_id, self.eos_id, self.pad_id = ids[bos_token], ids[eos_token], ids[pad_token]
        self.n_ids = 1 + max(ids.values())

        # By what is looked for in the text.
        self._ids = {t.normal_content: [ids[t.content]] for t in added.values()}
        self._added = [t for t in added.values() if t.normalized]
        self._added_raw = _pattern(t for t in added.values() if not t.normalized)
        self._added_normalized = _pattern(self._added)
        self._bpe = BytePairs(vocab, merges, ids[unk_token])

    @classmethod
    def from_files(
        cls,
        *,
        vocab_file: Path,
        merges_file: Path,
        config_file: Path | None = None,
        special_tokens_file: Path | None = None,
        pad_token: str = EOS,
    ) -> "Tokenizer":
        """Read vocab.json and merges.txt, with tokenizer_config.json and special_tokens_map.json.

        `pad_token` holds where these do not say.

        Raises:
            ValueError: a file is not what it should be; the message names it.
            OSError: a file cannot be read.
        """
        with _naming(merges_file):
            size = Path(merges_file).stat().st_size
            require(size <= MAX_JSON, f"it has {size} bytes, which is too much for merges")
            lines = Path(merges_file).read_text(encoding="utf-8").split("\n")
            lines = (line.rstrip("\r") for line in lines if not line.startswith("#version"))
            merges = [_pair(line) for line in lines if line]
        options = _read_options([], config_file, special_tokens_file, pad_token)
        with _naming(vocab_file):
            vocab = _read_json(vocab_file)
            tokenizer = cls(vocab, merges, **options)
        found = {left + right for left, right in merges}
        found |= {token.content for token in options["added_tokens"]}
        longer = (token for token in vocab if len(token.removesuffix(END_OF_WORD)) > 1)
        if lost := [token for token in longer if token not in found]:
            raise ValueError(
                f"{merges_file}: is it cut short? No merge makes {len(lost)} of the tokens of "
                f"{vocab_file}, such as {lost[-1][:50]!r}"
            )
        return tokenizer

    @classmethod
    def from_json(
        cls,
        tokenizer_file: Path,
        config_file: Path | None = None,
        special_tokens_file: Path | None = None,
        pad_token: str = EOS,
    ) -> "Tokenizer":
        """Read tokenizer.json, which holds vocabulary and merges, and the same two beside it.

        Raises as `from_files` does.
        """
        with _naming(tokenizer_file):
            content = _read_json(tokenizer_file)
            vocab = content["model"]["vocab"]
            merges = [_pair(merge) for merge in content["model"]["merges"]]
            listed = sorted(content.get("added_tokens", []), key=lambda token: token["id"])
        options = _read_options(listed, config_file, special_tokens_file, pad_token)
        with _naming(tokenizer_file):
            return cls(vocab, merges, **options)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text` between BOS and EOS, at most `max_length` of them in all.

        What does not fit is dropped, with a warning that quotes it. Lone surrogates, which no
        UTF-8 text can hold, count as `?`.
        """
        return [self.bos_id, *self.fit(self.words(text), stacklevel=3), self.eos_id]

    def fit(self, words: Iterable[tuple[str, Sequence[_T]]], stacklevel: int = 2) -> list[_T]:
        """What goes with `words`, one thing a token: as many as there is room between BOS and EOS.

        Warns as `tokenize` does; `stacklevel` tells whom of.
        """
        kept, dropped = self.cut(words)
        if dropped:
            warnings.warn(self.tell_dropped(dropped), stacklevel=stacklevel)
        return kept

    def cut(self, words: Iterable[tuple[str, Sequence[_T]]]) -> tuple[list[_T], str]:
        """Return what `fit` does, and the words that have no room, as a warning quotes them."""
        kept, dropped = [], ""
        for word, tokens in words:
            kept += tokens
            if len(kept) > self.room:
                dropped += f" {word}"
            if len(dropped) > QUOTED_CHARACTERS:
                dropped = dropped[:QUOTED_CHARACTERS] + "…"
                break
        return kept[: self.room], dropped[1:]

    def tell_dropped(self, dropped: str, what: str = "prompt") -> PromptWarning:
        """Return the warning that words of a prompt have no room."""
        return PromptWarning(
            f"the {what} has more than {self.max_length} tokens; dropped: {dropped!r}"
        )

    @property
    def room(self) -> int:
        """How many tokens fit between BOS and EOS."""
        return self.max_length - 2

    def pad(self, ids: Sequence[int]) -> list[int]:
        """`ids`, filled with the pad token up to `max_length`."""
        return [*ids, *[self.pad_id] * (self.max_length - len(ids))]

    def encode(self, text: str) -> list[int]:
        """The `max_length` ids of `text`: tokenized, then padded."""
        return self.pad(self.tokenize(text))

    def add(self, name: str, ids: Sequence[int]) -> None:
        """Let `name`, in upper or lower case, stand for `ids` wherever a text has it.

        Raises: as `check_new`.
        """
        token = self.check_new(name)
        self._ids[token.normal_content] = list(ids)
        self._added.append(token)
        self._added_normalized = _pattern(self._added)

    def check_new(self, name: str) -> AddedToken:
        """The token that `add` would make of `name`.

        Raises:
            ValueError: it is one already, or would not be found in a text.
        """
        token = AddedToken(clean(name).strip(), normalized=True)
        if token.normal_content in self._ids or sum(len(ids) for _, ids in self.words(name)) == 1:
            raise ValueError(f"{name!r} is a token already: take another name, such as <my-style>")
        content, normal = token.content, token.normal_content
        joins = normalize(f"a{content}{content}") != f"a{normal}{normal}"  # as an accent does
        if not content or joins or self._added_raw.search(content):
            raise ValueError(f"{name!r} cannot be a token: take another name, such as <my-style>")
        return token

    def words(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """The special tokens and words of `text` in turn, each with its ids."""
        for raw, raw_is_token in _cut(self._added_raw, clean(text)):
            if raw_is_token:
                yield raw, self._ids[raw]
                continue
            for part, is_token in _cut(self._added_normalized, normalize(raw)):
                if is_token:
                    yield part, self._ids[part]
                    continue
                for match in WORD.finditer(part):
                    yield match[0], self._bpe.ids(match[0])


def _pattern(tokens: Iterable[AddedToken]) -> regex.Pattern:
    """What finds any of `tokens`, the longest first."""
    literals = []
    for token in tokens:
        content = token.normal_content
        literal = regex.escape(content)
        literals.append(
            (len(content), rf"(?<!\w){literal}(?!\w)" if token.single_word else literal)
        )
    return regex.compile(
        "|".join(literal for _, literal in sorted(literals, reverse=True)) or "(?!)"
    )


def _cut(pattern: regex.Pattern, text: str) -> Iterator[tuple[str, bool]]:
    """The parts of `text` in turn, each with whether `pattern` matched it."""
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.start()], False
        yield match[0], True
        start = match.end()
    yield text[start:], False


def _read_options(
    listed: list[dict[str, Any]],
    config_file: Path | None,
    special_tokens_file: Path | None,
    pad_token: str,
) -> dict[str, Any]:
    """The arguments of `Tokenizer` that the small files settle, with transformers' precedence.

    Where tokenizer_config.json lists `added_tokens_decoder`, that list holds, and
    special_tokens_map.json is not read. Else the list is tokenizer.json's, and the map overrules
    the config. (In SD 2.x only the map knows that `!` is the pad token.)
    """
    with _naming(config_file):
        config = {} if config_file is None else _read_json(config_file)
        decoder = config.get("added_tokens_decoder")
        if decoder is not None:
            listed = [decoder[key] for key in sorted(decoder, key=int)]
        limit = config.get("model_max_length")
        limited = isinstance(limit, int) and limit < NO_LIMIT

    with _naming(special_tokens_file):
        unread = special_tokens_file is None or decoder is not None
        settings = config if unread else config | _read_json(special_tokens_file)

    with _naming(config_file):
        defaults = {**NAMED_TOKENS, "pad_token": pad_token}
        named = {key: settings.get(key) or default for key, default in defaults.items()}
        distinct = []  # where entries for one token differ, the last decides its flags
        for token in named.values():
            distinct += [token] if token not in distinct else []
        added = [AddedToken.from_json(token) for token in distinct]
        kept = [AddedToken.from_json(token, special=False) for token in listed]
        return {
            "added_tokens": list({token.content: token for token in [*added, *kept]}.values()),
            "max_length": limit if limited else MAX_LENGTH,
            **{key: AddedToken.from_json(token).content for key, token in named.items()},
        }


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Turn what malformed content raises into a ValueError that names its file."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {reason}") from None


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(Path(path))
    require(isinstance(content, dict), f"wants a JSON object, got {type(content).__name__}")
    return content


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """The two tokens of a merge, written as one string with a space or as a list."""
    tokens = merge.split(" ") if isinstance(merge, str) else merge
    if len(tokens) != 2:
        raise ValueError(f"a merge wants two tokens, got {merge!r}")
    return tokens
