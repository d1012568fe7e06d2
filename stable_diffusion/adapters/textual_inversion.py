"""Textual inversion: words that were learned from pictures (Gal et al. 2022, arXiv:2208.01618)."""

import os
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..clip import CLIPTextModel
from ..model_io.safetensors_file import FLOATS, read_safetensors
from ..model_io.sources import PICKLES
from ..tokenizer.tokenizer import Tokenizer

XL_KEYS = ("clip_l", "clip_g")  # in the order of SDXL's text encoders

# By the width of the vectors, for each text encoder.
KINDS = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "SDXL",
}


def load_embedding(
    name: str,
    path: str | os.PathLike[str],
    readers: Sequence[tuple[Tokenizer, CLIPTextModel]],
) -> None:
    """Let `name` in a prompt mean the vectors of a file, as many tokens as it has vectors.

    Args:
        name: it is found in lower and upper case, also inside a word.
        path: of a safetensors file: one tensor [D] or [n, D], called anything (diffusers calls it
            as the token, AUTOMATIC1111 `emb_params`); or for SDXL two, `clip_l` and `clip_g`.
        readers: each tokenizer of the model with its text encoder.

    Raises:
        OSError: there is no such file.
        ValueError: the file is none of these, or for another kind of model, or the name is taken
            or no good. Nothing is changed then.
    """
    file = Path(path)
    embeddings = [text_encoder.token_embedding for _, text_encoder in readers]
    vectors = _read(file, tuple(embedding.weight.shape[1] for embedding in embeddings))
    for tokenizer, _ in readers:
        tokenizer.check_new(name)
    for (tokenizer, _), embedding, rows in zip(readers, embeddings, vectors, strict=True):
        first, dtype = len(embedding.weight), embedding.weight.dtype
        embedding.weight = mx.concatenate([embedding.weight, rows.astype(dtype)])
        tokenizer.add(name, range(first, first + len(rows)))


def _read(file: Path, widths: tuple[int, ...]) -> list[mx.array]:
    """The vectors [n, D] for each text encoder, whose widths D these are."""
    if not file.is_file():
        raise FileNotFoundError(f"no such embedding file: {file}")
    if file.suffix in PICKLES:
        raise ValueError(
            f"{file} is a pickle, and pickles are never loaded: convert it in PyTorch, where you "
            "trust it, e = torch.load(FILE, weights_only=True), safetensors.torch.save_file("
            '{"emb_params": e["string_to_param"]["*"].detach()}, NEW_FILE); where it has no '
            "string_to_param, save_file(e, NEW_FILE)"
        )
    header, tensors = read_safetensors(file)
    shapes = header.shapes
    keys = XL_KEYS if shapes.keys() == set(XL_KEYS) else tuple(shapes)
    if not keys or (len(keys) > 1 and keys != XL_KEYS):
        raise ValueError(
            f"{file} is no textual inversion, which has one tensor, or for SDXL "
            f"{' and '.join(XL_KEYS)}; it has {len(keys)}: {', '.join(keys[:3])}"
        )
    matrices = [shape if len(shape) > 1 else (1, *shape) for shape in map(shapes.get, keys)]
    if any(len(shape) != 2 or 0 in shape for shape in matrices):
        listed = " and ".join(str(list(shape)) for shape in map(shapes.get, keys))
        raise ValueError(f"{file} is no textual inversion: its tensors are {listed}, not [n, D]")
    found = tuple(width for _, width in matrices)
    if found != widths:
        raise ValueError(
            f"{file} is for {_kind(found)}, this model is {_kind(widths)}: vectors of "
            f"{_listed(found)} numbers do not fit text encoders of {_listed(widths)}"
        )
    if len({n for n, _ in matrices}) > 1:
        counts = ", ".join(f"{key} {n}" for key, (n, _) in zip(keys, matrices, strict=True))
        raise ValueError(f"{file} is broken: the numbers of its vectors differ: {counts}")
    kinds = [header.tensors[key].kind for key in keys]
    if not set(kinds) <= set(FLOATS):
        raise ValueError(f"{file} is no textual inversion: its tensors are {' and '.join(kinds)}")
    return [tensors[key].reshape(shape) for key, shape in zip(keys, matrices, strict=True)]


def _kind(widths: tuple[int, ...]) -> str:
    return KINDS.get(widths, "another kind of model")


def _listed(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))
