"""Read a tokenizer from its files, written by any version of transformers, as transformers does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from ..utils.strict_json import MAX_JSON, read_json, require
from .byte_pairs import END_OF_WORD
from .tokenizer import BOS, EOS, MAX_LENGTH, AddedToken, Tokenizer

DEFAULT_TOKENS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
MAX_LIMIT = 1_000_000  # transformers writes a model_max_length of 1e30 if there is no limit


class _Options(TypedDict):
    """The arguments of `Tokenizer` except vocabulary and merges."""

    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    added_tokens: list[AddedToken]
    max_length: int


def read_tokenizer(
    vocab_file: Path,
    merges_file: Path,
    config_file: Path | None = None,
    special_tokens_file: Path | None = None,
    pad_token: str = EOS,
) -> Tokenizer:
    """Read a tokenizer from vocab.json and merges.txt.

    Args:
        config_file, special_tokens_file: tokenizer_config.json and special_tokens_map.json.
        pad_token: the pad token if these two files do not name one.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be; the message names it.
    """
    merges = _read_merges(merges_file)
    options = _read_options([], config_file, special_tokens_file, pad_token)
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
    tokenizer_file: Path,
    config_file: Path | None = None,
    special_tokens_file: Path | None = None,
    pad_token: str = EOS,
) -> Tokenizer:
    """Read a tokenizer from tokenizer.json, which has vocabulary and merges.

    The other arguments and the errors are those of `read_tokenizer`.
    """
    with _name_file(tokenizer_file):
        content = _read_object(tokenizer_file)
        vocab = content["model"]["vocab"]
        merges = [_split_merge(merge) for merge in content["model"]["merges"]]
        listed = sorted(content.get("added_tokens", []), key=lambda token: token["id"])
    options = _read_options(listed, config_file, special_tokens_file, pad_token)
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
    listed: list[dict[str, Any]],
    config_file: Path | None,
    special_tokens_file: Path | None,
    pad_token: str,
) -> _Options:
    """Return the arguments of `Tokenizer` that the small files set.

    If tokenizer_config.json has `added_tokens_decoder`, the added tokens are those, and
    special_tokens_map.json is not read. Otherwise they are those listed in tokenizer.json, and the
    map takes precedence over the config. (In SD 2.x only the map says that `!` is the pad token.)
    """
    with _name_file(config_file):
        config = {} if config_file is None else _read_object(config_file)
        decoder = config.get("added_tokens_decoder")
        if decoder is not None:
            listed = [decoder[key] for key in sorted(decoder, key=int)]
        limit = config.get("model_max_length")
        max_length = limit if isinstance(limit, int) and limit < MAX_LIMIT else MAX_LENGTH

    settings: Mapping[str, Any] = config
    if special_tokens_file is not None and decoder is None:
        with _name_file(special_tokens_file):
            settings = config | _read_object(special_tokens_file)

    with _name_file(config_file):
        defaults = {**DEFAULT_TOKENS, "pad_token": pad_token}
        named = {key: settings.get(key) or default for key, default in defaults.items()}
        contents = {key: AddedToken.from_json(token).content for key, token in named.items()}
        return {
            "bos_token": contents["bos_token"],
            "eos_token": contents["eos_token"],
            "unk_token": contents["unk_token"],
            "pad_token": contents["pad_token"],
            "added_tokens": _merge_tokens(list(named.values()), listed),
            "max_length": max_length,
        }


def _merge_tokens(
    named: list[str | dict[str, Any]], listed: list[dict[str, Any]]
) -> list[AddedToken]:
    """Return the named and the listed tokens, each once.

    If there are several entries for a token, the last one decides its flags.
    """
    distinct = []
    for token in named:
        if token not in distinct:  # a repeated entry does not count as a later one
            distinct.append(token)
    tokens = [AddedToken.from_json(token) for token in distinct]
    tokens += [AddedToken.from_json(token, special=False) for token in listed]
    return list({token.content: token for token in tokens}.values())


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
    content = read_json(file)
    require(isinstance(content, dict), f"expected a JSON object, got {type(content).__name__}")
    return content
