"""Text to token ids: CLIP's byte-level BPE, equal to the `CLIPTokenizer` of transformers 5.

The text is normalized (NFC, white space, lower case) and split into words by a regular expression;
the UTF-8 bytes of each word are then merged pairwise, by a table learned once (Sennrich et al.
2016, arXiv:1508.07909; over bytes as in GPT-2). Special tokens are cut out of the text before that.
"""

import heapq
import json
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NAMED_TOKENS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
MAX_LENGTH = 77  # rows of CLIP's position table
NO_LIMIT = 1_000_000  # transformers writes a model_max_length of 1e30 where there is none

END_OF_WORD = "</w>"
CACHED_WORDS = 10_000
QUOTED_CHARACTERS = 200  # of the dropped end of a prompt, in the warning

# The Rust tokenizer's NFC is that of Unicode 9, which leaves alone what came later. These are the
# later characters that reorder or compose, widened over those which do neither.
AFTER_UNICODE_9 = regex.compile(
    "([\u05c8-\u05c9\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1af0\u1df6-\u1dfa"
    "\ua82c\U000105c0-\U000105ff\U00010d24-\U00010f85\U00011070\U0001133b\U00011380-\U000113ff"
    "\U0001145e\U00011839-\U00011a99\U00011d42-\U0001613f\U00016d40-\U00016ff1"
    "\U0001d127-\U0001d128\U0001d250-\U0001d281\U0001e08f-\U0001e6f5])"
)
WHITE_SPACE = regex.compile(r"\s+")
# The special tokens stand here too: where one is plain text, it still parts words.
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
# GPT-2's splitting then runs on each word, and parts only those two: <| endoftext |>
SUBWORD = regex.compile(r"'?\p{L}+|\P{L}+")


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

    @classmethod
    def from_json(cls, token: str | dict[str, Any], special: bool = True) -> "AddedToken":
        """Read a token as the files write it: a string, or an object with flags.

        `special` tells what kind of token it is where the object does not; ordinary ones are
        normalized unless they say otherwise.
        """
        if isinstance(token, str):
            return cls(token)
        normalized = token.get("normalized", not token.get("special", special))
        return cls(token["content"], normalized, token.get("single_word", False))


class Tokenizer:
    """CLIP's tokenizer. Attributes: `max_length`, `bos_id`, `eos_id`, `pad_id`.

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

        added = {token.content: token for token in added_tokens}
        for content in (bos_token, eos_token, unk_token, pad_token):
            if content not in vocab and content != pad_token:  # which may well be a new one
                raise ValueError(f"the token {content!r} is not in the vocabulary")
            added.setdefault(content, AddedToken(content))
        ids = dict(vocab)
        for content in added:
            ids.setdefault(content, len(ids))  # the next free one
        self.bos_id, self.eos_id, self.pad_id = ids[bos_token], ids[eos_token], ids[pad_token]

        self._ids = {
            _normalize(t.content) if t.normalized else t.content: ids[t.content]
            for t in added.values()
        }
        self._added_raw = _pattern(t for t in added.values() if not t.normalized)
        self._added_normalized = _pattern(t for t in added.values() if t.normalized)

        unknown, symbols = ids[unk_token], _byte_symbols()
        self._byte_ids = [vocab.get(symbol, unknown) for symbol in symbols]
        self._last_byte_ids = [vocab.get(symbol + END_OF_WORD, unknown) for symbol in symbols]
        try:
            self._merges = {
                (vocab[left], vocab[right]): (rank, vocab[left + right])
                for rank, (left, right) in enumerate(merges)
            }
        except KeyError as error:
            raise ValueError(f"a merge needs {error}, which the vocabulary lacks") from None
        self._word_ids = lru_cache(CACHED_WORDS)(self._bpe)

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
            lines = Path(merges_file).read_text(encoding="utf-8").split("\n")
            lines = (line.rstrip("\r") for line in lines if not line.startswith("#version"))
            merges = [_pair(line) for line in lines if line]
        options = _read_options([], config_file, special_tokens_file, pad_token)
        with _naming(vocab_file):
            return cls(_read_json(vocab_file), merges, **options)

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
        room = self.max_length - 1
        ids, dropped = [self.bos_id], ""
        for piece, piece_ids in self._pieces(text):
            ids += piece_ids
            if len(ids) > room:
                dropped += f" {piece}"
            if len(dropped) > QUOTED_CHARACTERS:
                dropped = dropped[:QUOTED_CHARACTERS] + "…"
                break
        if dropped:
            warnings.warn(
                f"the prompt has more than {self.max_length} tokens; dropped: {dropped[1:]!r}",
                stacklevel=2,
            )
        return [*ids[:room], self.eos_id]

    def pad(self, ids: Sequence[int]) -> list[int]:
        """`ids`, filled with the pad token up to `max_length`."""
        return [*ids, *[self.pad_id] * (self.max_length - len(ids))]

    def encode(self, text: str) -> list[int]:
        """The `max_length` ids of `text`: tokenized, then padded."""
        return self.pad(self.tokenize(text))

    def _pieces(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """The special tokens and words of `text` in turn, each with its ids."""
        for raw, raw_is_token in _cut(self._added_raw, text.encode(errors="replace").decode()):
            if raw_is_token:
                yield raw, [self._ids[raw]]
                continue
            for part, is_token in _cut(self._added_normalized, _normalize(raw)):
                if is_token:
                    yield part, [self._ids[part]]
                    continue
                for match in WORD.finditer(part):
                    yield match[0], self._word_ids(match[0])

    def _bpe(self, word: str) -> list[int]:
        """The ids of a word: those of its bytes, merged."""
        ids = []
        for part in SUBWORD.findall(word):
            *first, last = part.encode()
            ids += self._merge([*(self._byte_ids[b] for b in first), self._last_byte_ids[last]])
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge always the pair of lowest rank, the leftmost of equals: n log n steps."""
        n = len(ids)
        following, previous = list(range(1, n + 1)), list(range(-1, n - 1))
        merges, gone = self._merges, -1
        # A candidate is rank · n + position: one number orders by rank, then from the left.
        heap = [merges[pair][0] * n + i for i, pair in enumerate(pairwise(ids)) if pair in merges]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = following[i]
            merge = merges.get((ids[i], ids[j])) if j < n else None
            if merge is None or merge[0] != rank:
                continue  # one of the two has been merged since
            ids[i], ids[j] = merge[1], gone
            following[i] = following[j]
            if following[i] < n:
                previous[following[i]] = i
            for left, right in ((previous[i], i), (i, following[i])):
                if left >= 0 and right < n and (pair := merges.get((ids[left], ids[right]))):
                    heapq.heappush(heap, pair[0] * n + left)
        return [id for id in ids if id != gone]


def _normalize(text: str) -> str:
    """NFC, runs of white space to one space, lower case by code point."""
    text = "".join(unicodedata.normalize("NFC", part) for part in AFTER_UNICODE_9.split(text))
    text = WHITE_SPACE.sub(" ", text)
    return text.replace("Σ", "σ").lower()  # str.lower alone makes a final Σ ς


def _pattern(tokens: Iterable[AddedToken]) -> regex.Pattern:
    """What finds any of `tokens`, the longest first."""
    literals = []
    for token in tokens:
        content = _normalize(token.content) if token.normalized else token.content
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


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in the files (GPT-2's bytes_to_unicode)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {reason}") from None


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"wants a JSON object, got {type(content).__name__}")
    return content


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """The two tokens of a merge, written as one string with a space or as a list."""
    tokens = merge.split(" ") if isinstance(merge, str) else merge
    if len(tokens) != 2:
        raise ValueError(f"a merge wants two tokens, got {merge!r}")
    return tokens
