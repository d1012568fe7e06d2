"""Textual inversions inside a LoRA file, as OneTrainer and AUTOMATIC1111's web UI bundle them.

Their keys are `bundle_emb.WORD.VECTORS`, where VECTORS is one of `_VECTORS`.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..utils.strict_json import require
from ..utils.wording import abbreviate, join_names
from .textual_inversion import Reader, add_word

MAX_WORDS = 200  # in a file; each makes the search for words a little slower

# By word, and by the part of the key after it.
BundledWords = dict[str, dict[str, mx.array]]

# The ends `_out` are of vectors that OneTrainer adds after the text encoder. Only it uses them.
_VECTORS = (
    *("string_to_param.*", "emb_params", "clip_l", "clip_g", "clip_h", "clip_l_out", "clip_g_out"),
)
# Which of them a model needs, by the number of its text encoders; the first that are there count.
_KEYS_BY_COUNT = {
    1: (("string_to_param.*",), ("emb_params",), ("clip_l",), ("clip_h",)),
    2: (("clip_l", "clip_g"),),
}
_KEY = re.compile(rf"bundle_emb\.(.+?)\.({'|'.join(map(re.escape, _VECTORS))})")


def collect_words(
    file: Path, tensors: Mapping[str, mx.array]
) -> tuple[BundledWords, dict[str, mx.array]]:
    """Return the words of a file, and its other tensors.

    Raises:
        ValueError: if there are more than `MAX_WORDS`.
    """
    words: BundledWords = {}
    others = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            others[key] = tensor
        else:
            words.setdefault(match[1], {})[match[2]] = tensor
    n = len(words)
    require(n <= MAX_WORDS, f"{file} has {n} textual inversions in it, more than {MAX_WORDS}")
    return words, others


def choose_words(
    file: Path, words: BundledWords, readers: Sequence[Reader]
) -> list[tuple[str, list[mx.array]]]:
    """Return the words that a model can learn, with their vectors for each text encoder.

    The others are left out, with a warning that says why.

    Args:
        file: where the words are from.
        words: the result of `collect_words`.
        readers: each tokenizer of the model with its text encoder.
    """
    chosen = []
    for name, tensors in words.items():
        try:
            require(bool(readers), "the text encoders have been freed")
            vectors = find_vectors(tensors, readers)
            for tokenizer, _ in readers:
                tokenizer.check_new(name)
        except ValueError as error:
            why = str(error).partition(": ")[0]  # what follows is advice to choose another name
            warnings.warn(
                f"{file}: its bundled word {abbreviate(name)} is left out: {why}", stacklevel=2
            )
        else:
            chosen.append((name, vectors))
    return chosen


def learn_words(
    file: Path, chosen: Sequence[tuple[str, list[mx.array]]], readers: Sequence[Reader]
) -> None:
    """Make the words stand for their vectors in prompts, and warn which words there are now."""
    for name, vectors in chosen:
        add_word(name, vectors, readers)
    if chosen:
        names = join_names([abbreviate(name) for name, _ in chosen])
        warnings.warn(f"{file} has words in it, which prompts can use: {names}", stacklevel=2)


def find_vectors(tensors: Mapping[str, mx.array], readers: Sequence[Reader]) -> list[mx.array]:
    """Return the vectors [n, D] of a word for each text encoder.

    Raises:
        ValueError: if there are none for one of them, or if they do not fit.
    """
    for keys in _KEYS_BY_COUNT[len(readers)]:
        if all(key in tensors for key in keys):
            break
    else:
        raise ValueError(f"its tensors are {join_names(list(tensors))}, of another kind of model")
    found = [tensors[key] for key in keys]
    vectors = [tensor[None] if tensor.ndim == 1 else tensor for tensor in found]
    for vector, (_, text_encoder) in zip(vectors, readers, strict=True):
        width = text_encoder.token_embedding.weight.shape[1]
        is_matrix = vector.ndim == 2 and len(vector) > 0 and vector.shape[1] == width
        are_floats = mx.issubdtype(vector.dtype, mx.floating)
        require(
            is_matrix and are_floats and len(vector) == len(vectors[0]),
            f"it has {list(vector.shape)} of {vector.dtype}, not vectors of {width} numbers",
        )
    return vectors
