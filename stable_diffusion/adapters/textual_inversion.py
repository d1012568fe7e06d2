"""Textual inversion: words learned from pictures (Gal et al. 2022, arXiv:2208.01618)."""

import os
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..clip import CLIPTextModel
from ..model_io.safetensors_file import FLOATS, read_safetensors
from ..model_io.sources import PICKLES
from ..tokenizer.tokenizer import Tokenizer
from .lora_parts import split_key

Reader = tuple[Tokenizer, CLIPTextModel]  # a tokenizer with its text encoder

XL_KEYS = ("clip_l", "clip_g")  # in the order of SDXL's text encoders

# The kinds of models, by the widths of their text encoders.
KINDS = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "SDXL",
}


def load_embedding(
    name: str,
    path: str | os.PathLike[str],
    readers: Sequence[Reader],
) -> None:
    """Make `name` in a prompt stand for the vectors of a file, with one token for each vector.

    Args:
        name: the new word; prompts may have it in lower or upper case, also inside a word.
        path: a safetensors file with one tensor [D] or [n, D] of any name (diffusers uses the
            token, AUTOMATIC1111 `emb_params`), or for SDXL with two, `clip_l` and `clip_g`.
        readers: each tokenizer of the model with its text encoder.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not a textual inversion, or was made for another kind of model,
            or if the name is a token already or cannot be one. Nothing is changed then.
    """
    file = Path(path)
    embeddings = [text_encoder.token_embedding for _, text_encoder in readers]
    vectors = _read(file, tuple(embedding.weight.shape[1] for embedding in embeddings))
    for tokenizer, _ in readers:
        tokenizer.check_new(name)
    add_word(name, vectors, readers)


def add_word(name: str, vectors: Sequence[mx.array], readers: Sequence[Reader]) -> None:
    """Make a word that has been checked stand for vectors [n, D] of each text encoder."""
    for (tokenizer, text_encoder), rows in zip(readers, vectors, strict=True):
        embedding = text_encoder.token_embedding
        first, dtype = len(embedding.weight), embedding.weight.dtype
        embedding.weight = mx.concatenate([embedding.weight, rows.astype(dtype)])
        tokenizer.add(name, range(first, first + len(rows)))


def _read(file: Path, widths: tuple[int, ...]) -> list[mx.array]:
    """Return the vectors [n, D] for each text encoder; `widths` are the D.

    Raises:
        OSError, ValueError: as `load_embedding` does.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such embedding file: {file}")
    if file.suffix in PICKLES:
        raise ValueError(
            f"{file} is a pickle, and pickles are never loaded: if you trust the file, convert it "
            "in PyTorch, e = torch.load(FILE, weights_only=True), safetensors.torch.save_file("
            '{"emb_params": e["string_to_param"]["*"].detach()}, NEW_FILE); if it has no '
            "string_to_param, save_file(e, NEW_FILE)"
        )
    header, tensors = read_safetensors(file)
    if any(split_key(key) is not None for key in header.shapes):
        raise ValueError(f"{file} is a LoRA, not a textual inversion: give it with --lora")
    keys = _find_keys(file, tuple(header.shapes))
    shapes = _check_shapes(file, {key: header.shapes[key] for key in keys}, widths)
    kinds = [header.tensors[key].kind for key in keys]
    if not set(kinds) <= set(FLOATS):
        raise ValueError(
            f"{file} is not a textual inversion: its tensors are {' and '.join(kinds)}"
        )
    return [tensors[key].reshape(shape) for key, shape in shapes.items()]


def _find_keys(file: Path, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of the vectors, in the order of the text encoders.

    Raises:
        ValueError: if there are more or fewer tensors, or others.
    """
    if set(keys) == set(XL_KEYS):
        return XL_KEYS
    if len(keys) != 1:
        raise ValueError(
            f"{file} is not a textual inversion, which has one tensor, or for SDXL "
            f"{' and '.join(XL_KEYS)}; it has {len(keys)}: {', '.join(keys[:3])}"
        )
    return keys


def _check_shapes(
    file: Path, shapes: dict[str, tuple[int, ...]], widths: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes as [n, D], where D are the `widths` of the text encoders.

    Raises:
        ValueError: if they are not.
    """
    matrices = {key: shape if len(shape) > 1 else (1, *shape) for key, shape in shapes.items()}
    if any(len(shape) != 2 or 0 in shape for shape in matrices.values()):
        listed = " and ".join(str(list(shape)) for shape in shapes.values())
        raise ValueError(f"{file} is not a textual inversion: its tensors are {listed}, not [n, D]")
    found = tuple(width for _, width in matrices.values())
    if found != widths:
        raise ValueError(
            f"{file} is for {_describe_kind(found)}, this model is {_describe_kind(widths)}: "
            f"vectors of {_join(found)} numbers do not fit text encoders of {_join(widths)}"
        )
    if len({n for n, _ in matrices.values()}) > 1:
        counts = ", ".join(f"{key} {n}" for key, (n, _) in matrices.items())
        raise ValueError(f"{file} is broken: its tensors differ in the number of vectors: {counts}")
    return matrices


def _describe_kind(widths: tuple[int, ...]) -> str:
    return KINDS.get(widths, "another kind of model")


def _join(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))
