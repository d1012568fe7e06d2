"""Networks in files of MLX's own layout and this package's names, as `convert` writes them.

Nothing has to be renamed or turned over, so what is read is what is kept, and what is written
needs the memory of one tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..quantize import is_quantized
from ..utils.wording import join_names
from .layouts import Layout
from .safetensors_file import FLOATS, read_safetensors


def load_native(model: nn.Module, file: Path, dtype: mx.Dtype) -> None:
    """Give `model`, which is quantized as the file is, the weights of `file`, lazily, as `dtype`.

    Matrices of a quantized network that are stored in half precision stay so, but for embeddings:
    where they meet float32 they are widened.

    Raises:
        ValueError: a file that is no safetensors file; tensors that are missing, not expected,
            or of another shape or kind than the model asks for, all in one message.
    """
    wanted = dict(tree_flatten(model.parameters()))
    _, weights = read_safetensors(file)
    problems = Problems()
    problems.misshapen += [
        f"{key} {_kind(weights[key])}, not {_kind(value)}"
        for key, value in wanted.items()
        if key in weights and _kind(weights[key]) != _kind(value)
    ]
    problems.missing += [key for key in wanted if key not in weights]
    problems.unexpected += [key for key in weights if key not in wanted]
    problems.refuse(file)

    layers = model.named_modules() if is_quantized(model) else ()
    keeping = {f"{path}." for path, layer in layers if not isinstance(layer, nn.Embedding)}

    def converted(key: str, value: mx.array) -> mx.array:
        is_matrix = value.ndim > 1 and key[: key.rfind(".") + 1] in keeping
        is_kept = value.dtype == mx.uint32 or (is_matrix and value.dtype == mx.float16)
        return value if is_kept else value.astype(dtype)

    model.update(tree_unflatten([(key, converted(key, value)) for key, value in weights.items()]))


def _kind(value: mx.array) -> str:
    """What a tensor has to have in common with the one that it replaces."""
    packed = " of packed bits" if value.dtype == mx.uint32 else ""
    is_number = packed or mx.issubdtype(value.dtype, mx.floating)
    return f"{list(value.shape)}{packed if is_number else f' of {value.dtype}'}"


def load_weights(model: nn.Module, files: Sequence[Path], layout: Layout, dtype: mx.Dtype) -> None:
    """Give `model` the weights of `files`, together all of them, as `dtype`.

    Nothing is read before it is used: the arrays stay lazy.

    Raises:
        ValueError: a file that is no safetensors file; tensors that are missing, not expected,
            or of another shape than the config asks for, all in one message.
    """
    wanted = {name: value.shape for name, value in tree_flatten(model.parameters())}
    weights: dict[str, mx.array] = {}
    problems = Problems()
    for file in files:
        header, tensors = read_safetensors(file)
        for key, value in tensors.items():
            if not layout.has(key):
                continue
            names = layout.parameters(key)
            if not wanted.keys() >= set(names):
                problems.unexpected.append(key)
                continue
            if any(name in weights for name in names):
                problems.twice.append(key)
                continue
            if (kind := header.tensors[key].kind) not in FLOATS:
                problems.misshapen.append(f"{key} of {kind}, not floats")
            shape = wanted[names[0]]
            for name, part in zip(names, _split(value, len(names), shape[0]), strict=True):
                part = part.T if name in layout.transposed else part
                weights[name] = channels_last(part, len(shape))
            if any(weights[name].shape != wanted[name] for name in names):
                expected = _channels_first(shape)
                expected = expected[::-1] if names[0] in layout.transposed else expected
                expected = (expected[0] * len(names), *expected[1:])
                problems.misshapen.append(f"{key} {list(value.shape)}, not {list(expected)}")
    missing = [layout.key(name) for name in wanted if name not in weights]
    problems.missing += dict.fromkeys(missing)  # parameters of one tensor share its key

    problems.refuse(files[0])
    model.update(tree_unflatten([(name, value.astype(dtype)) for name, value in weights.items()]))


@dataclass
class Problems:
    """Why tensors are not those that a model asks for: keys, with what more there is to say."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def refuse(self, file: Path) -> None:
        """Refuse a file, of those that a model is in, for all of them.

        Raises:
            ValueError: there is any; the message has them all, or counts them.
        """
        by_kind = {
            "missing": self.missing,
            "not expected": self.unexpected,
            "there twice": self.twice,
            "wrong shape": self.misshapen,
        }
        if any(by_kind.values()):
            found = "; ".join(
                f"{what}: {join_names(keys)}" for what, keys in by_kind.items() if keys
            )
            raise ValueError(f"{file} does not hold what the model asks for: {found}")


def read_weights(network: nn.Module, on_read: Callable[[int], object] | None = None) -> None:
    """Read, convert and quantize lazy weights now, one after another.

    So there is never more than one of them in two versions. `on_read` is told the bytes of each.
    """
    for _, value in tree_flatten(network.parameters()):
        mx.eval(value)
        if on_read is not None:
            on_read(value.nbytes)


def _split(value: mx.array, n_parts: int, rows: int) -> list[mx.array]:
    """The parts of a tensor that lie one below the other, `rows` each; the last has the rest."""
    if n_parts == 1 or value.ndim == 0:
        return [value] * n_parts
    return mx.split(value, [rows * i for i in range(1, n_parts)])


def channels_last(value: mx.array, rank: int) -> mx.array:
    """A tensor of a PyTorch file in MLX's layout; `rank` is the parameter's."""
    if value.ndim != 4:
        return value
    if rank == 2 and value.shape[2:] == (1, 1):
        return value.reshape(value.shape[:2])  # a 1×1 convolution is a linear layer here
    return mx.contiguous(value.transpose(0, 2, 3, 1))  # [out, in, h, w] → [out, h, w, in]


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter of `shape` has in a PyTorch file."""
    if len(shape) != 4:
        return shape
    out_channels, height, width, in_channels = shape
    return (out_channels, in_channels, height, width)
