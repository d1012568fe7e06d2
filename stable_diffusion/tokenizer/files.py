"""Read a tokenizer from its files, written by any version of transformers, as transformers does."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ..utils.strict_json import MAX_JSON, read_json, require
from .added_tokens import AddedToken
from .byte_pairs import END_OF_WORD
from .tokenizer import BOS, EOS, MAX_LENGTH, Tokenizer

DEFAULT_TOKENS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
# In the order in which new ones get their ids.
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
EXTRA_TOKENS = ("extra_special_tokens", "additional_special_tokens")  # today's name, and the older
MAX_ID = 2**31  # of a token
MAX_LIMIT = 1_000_000  # transformers writes a model_max_length of 1e30 if there is no limit


class _Options(TypedDict):
    """The arguments of `Tokenizer` except vocabulary and merges."""

    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    added_tokens: list[AddedToken]
    max_length: int


class SmallFiles(NamedTuple):
    """The files beside a vocabulary, each of which may be missing.

    Attributes:
        config: tokenizer_config.json.
        special_tokens: special_tokens_map.json.
        added_tokens: added_tokens.json.
    """

    config: Path | None = None
    special_tokens: Path | None = None
    added_tokens: Path | None = None


SMALL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NO_FILES = SmallFiles()


def read_tokenizer(
    vocab_file: Path,
    merges_file: Path,
    files: SmallFiles = NO_FILES,
    pad_token: str = EOS,
) -> Tokenizer:
    """Read a tokenizer from vocab.json and merges.txt.

    Args:
        files: the files beside them.
        pad_token: the pad token if these files do not name one.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be; the message names it.
    """
    merges = _read_merges(merges_file)
    options = _read_options({}, files, pad_token)
    with _name_file(vocab_file):
        vocab = _read_object(vocab_file)
        tokenizer = Tokenizer(vocab, merges, **options)
    found = {left + right for left, right in merges}
    found |= {token.content for token in options["added_tokens"]}
    longer = (token for token in vocab if len(token.removesuffix(END_OF_WORD)) > 1)
    if lost := [token for token in longer if token not in found]:
        raise ValueError(
            f"{merges_file}: is it cut short? No merge makes {len(lost)} of the tokens of "
            f"{vocab_file}, such as {lost[-1][:50]!r}"
        )
    return tokenizer


def read_tokenizer_json(
    tokenizer_file: Path, files: SmallFiles = NO_FILES, pad_token: str = EOS
) -> Tokenizer:
    """Read a tokenizer from tokenizer.json, which has vocabulary and merges.

    The other arguments and the errors are those of `read_tokenizer`.
    """
    with _name_file(tokenizer_file):
        content = _read_object(tokenizer_file)
        vocab = content["model"]["vocab"]
        merges = [_split_merge(merge) for merge in content["model"]["merges"]]
        listed = {int(token["id"]): token for token in content.get("added_tokens", [])}
    options = _read_options(listed, files, pad_token)
    with _name_file(tokenizer_file):
        return Tokenizer(vocab, merges, **options)


def _read_merges(file: Path) -> list[Sequence[str]]:
    """Return the pairs of tokens in merges.txt, one on each line."""
    with _name_file(file):
        size = file.stat().st_size
        require(size <= MAX_JSON, f"it has {size} bytes, which is too much for merges")
        lines = file.read_text(encoding="utf-8").split("\n")
        pairs = (line.rstrip("\r") for line in lines if not line.startswith("#version"))
        return [_split_merge(pair) for pair in pairs if pair]


def _split_merge(merge: str | Sequence[str]) -> Sequence[str]:
    """Return the two tokens of a merge, which is a string with a space or a list."""
    tokens = merge.split(" ") if isinstance(merge, str) else merge
    if len(tokens) != 2:
        raise ValueError(f"a merge needs two tokens, got {merge!r}")
    return tokens


def _read_options(
    listed: dict[int, dict[str, Any]],
    files: SmallFiles,
    pad_token: str,
) -> _Options:
    """Return the arguments of `Tokenizer` that the small files set.

    If tokenizer_config.json has `added_tokens_decoder`, the added tokens are those, and
    special_tokens_map.json and added_tokens.json are not read. Otherwise they are those of
    added_tokens.json and tokenizer.json, and the map takes precedence over the config. (In SD 2.x
    only the map says that `!` is the pad token.)

    Args:
        listed: the added tokens of tokenizer.json, by id.
    """
    with _name_file(files.config):
        config = {} if files.config is None else _read_object(files.config)
        decoder = config.get("added_tokens_decoder")
        limit = config.get("model_max_length")
        max_length = limit if isinstance(limit, int) and limit < MAX_LIMIT else MAX_LENGTH

    special_map: Mapping[str, Any] = {}
    if files.special_tokens is not None and decoder is None:
        with _name_file(files.special_tokens):
            special_map = _read_object(files.special_tokens)

    with _name_file(files.config):
        named = _find_named_tokens({**config, **special_map}, pad_token)
        contents = {key: AddedToken.from_json(token).content for key, token in named.items()}
        extra = [AddedToken.from_json(token) for token in _list_extra_tokens(config, special_map)]
        if decoder is not None:
            listed = {int(key): decoder[key] for key in decoder}
    if files.added_tokens is not None and decoder is None:
        special = {*contents.values(), *(token.content for token in extra)}
        with _name_file(files.added_tokens):
            listed = _read_added_tokens(files.added_tokens, special) | listed

    with _name_file(files.config):
        return {
            "bos_token": contents["bos_token"],
            "eos_token": contents["eos_token"],
            "unk_token": contents["unk_token"],
            "pad_token": contents["pad_token"],
            "added_tokens": _merge_tokens(list(named.values()), listed, extra),
            "max_length": max_length,
        }


def _find_named_tokens(settings: Mapping[str, Any], pad_token: str) -> dict[str, Any]:
    """Return the special tokens that the settings name, or that have a default, by their names."""
    defaults = {**DEFAULT_TOKENS, "pad_token": pad_token}
    named = {key: settings.get(key) or defaults.get(key) for key in NAMED_TOKENS}
    return {key: token for key, token in named.items() if token is not None}


def _list_extra_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> list[Any]:
    """Return the special tokens without names, of tokenizer_config.json and the map."""
    today, older = EXTRA_TOKENS
    extra = list(config.get(today) or config.get(older) or ())
    if not (today in config or older in config or today in special_map):
        return list(special_map.get(older) or ())
    return extra + [token for token in special_map.get(today) or () if token not in extra]


def _read_added_tokens(file: Path, special: Collection[str]) -> dict[int, dict[str, Any]]:
    """Return the tokens of added_tokens.json, which older versions of transformers wrote, by id.

    Args:
        special: the special tokens; the others are searched for in the normalized text.
    """
    content = _read_object(file)
    for token, id in content.items():
        require(type(id) is int and 0 <= id <= MAX_ID, f"the id of {token[:50]!r} is {id!r}")
    return {
        id: {"content": token, "normalized": token not in special} for token, id in content.items()
    }


def _merge_tokens(
    named: list[str | dict[str, Any]],
    listed: dict[int, dict[str, Any]],
    extra: list[AddedToken],
) -> list[AddedToken]:
    """Return the listed tokens by their ids, then the named ones and the extra ones, each once.

    A token's own entry in the list decides its flags, otherwise the last of its names does.
    """
    tokens = {}
    for id in sorted(listed):
        token = AddedToken.from_json(listed[id], special=False)
        tokens[token.content] = replace(token, id=id)
    distinct = []
    for entry in named:
        if entry not in distinct:  # a repeated entry does not count as a later one
            distinct.append(entry)
    by_name = [AddedToken.from_json(entry) for entry in distinct]
    others = {token.content: token for token in [*by_name, *extra]}
    return list((tokens | others | tokens).values())


@contextmanager
def _name_file(file: Path | None) -> Iterator[None]:
    """Turn the errors that malformed content raises into a ValueError that names the file."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: {reason}") from None


def _read_object(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file that must be an object."""
    content = read_json(file, must_be_finite=False)
    require(isinstance(content, dict), f"expected a JSON object, got {type(content).__name__}")
    return content
