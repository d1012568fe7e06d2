"""Give a network the weights of files, in PyTorch's layout or in MLX's own.

The arrays stay lazy: nothing is read from the files before it is used.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..device import cpu_kernels
from ..quantize import is_quantized
from ..stored_weights import (
    forget_tensor,
    forget_tensors,
    is_large,
    is_waiting,
    quantize_all_now,
    remember_tensors,
    use_reading_stream,
)
from ..utils.wording import join_names
from .layouts import Layout
from .number_types import FLOATS, LAZY_FLOATS
from .safetensors_file import read_safetensors


def flatten_parameters(network: nn.Module) -> dict[str, mx.array]:
    """Return the parameters of a network by their paths."""
    return dict(tree_flatten(network.parameters(), destination={}))


def load_weights(
    network: nn.Module, files: Sequence[Path], layout: Layout, dtype: mx.Dtype
) -> None:
    """Give a network the weights of its PyTorch files, all of them together, as `dtype`.

    Raises:
        ValueError: if a file is not a safetensors file, or if tensors are missing, not expected, or
            of another shape than the config asks for; the message lists all of them.
    """
    shapes = {k: v.shape for k, v in flatten_parameters(network).items()}
    incoming = _Incoming(layout, shapes)
    kinds = set()
    for file in files:
        kinds |= incoming.add_file(file)
    incoming.note_missing()
    incoming.problems.refuse(files[0])
    weights = [(name, value.astype(dtype)) for name, value in incoming.weights.items()]
    network.update(tree_unflatten(weights))
    if cpu_kernels.is_used() and kinds <= LAZY_FLOATS:
        again = _Incoming(layout, shapes)
        with use_reading_stream():
            for file in files:
                again.add_file(file)
        remember_tensors(network, again.weights)


def load_native(network: nn.Module, file: Path, dtype: mx.Dtype) -> None:
    """Give a network the weights of a file that `convert` wrote, as `dtype`.

    Nothing has to be renamed or transposed. The network must be quantized as the file is. Matrices
    of a quantized network that are stored in half precision stay so, except in embeddings: where
    they meet float32 they are converted.

    Raises:
        ValueError: if it is not a safetensors file, or if tensors are missing, not expected, or of
            another shape or type than the network asks for; the message lists all of them.
    """
    wanted = flatten_parameters(network)
    _, weights = read_safetensors(file)
    problems = Problems()
    problems.misshapen += [
        f"{key} {_describe_kind(weights[key])}, not {_describe_kind(value)}"
        for key, value in wanted.items()
        if key in weights and _describe_kind(weights[key]) != _describe_kind(value)
    ]
    problems.missing += [key for key in wanted if key not in weights]
    problems.unexpected += [key for key in weights if key not in wanted]
    problems.refuse(file)

    layers = network.named_modules() if is_quantized(network) else ()
    keeping = {f"{path}." for path, layer in layers if not isinstance(layer, nn.Embedding)}

    def convert(key: str, value: mx.array) -> mx.array:
        is_matrix = value.ndim > 1 and key[: key.rfind(".") + 1] in keeping
        is_kept = value.dtype == mx.uint32 or (is_matrix and value.dtype == mx.float16)
        return value if is_kept else value.astype(dtype)

    network.update(tree_unflatten([(key, convert(key, value)) for key, value in weights.items()]))


def read_weights(network: nn.Module, on_read: Callable[[int], object] | None = None) -> None:
    """Read, convert and quantize the lazy weights of a network now, one after another.

    Only one of them is in memory in two versions at a time, while the next one is read. Large ones
    are read first, when there is little else in memory.

    Args:
        on_read: called after each with its size in bytes.
    """
    counted = set()

    def read(values: Iterable[mx.array]) -> None:
        for value in values:
            mx.eval(value)
            if on_read is not None and id(value) not in counted:
                on_read(value.nbytes)
            counted.add(id(value))

    waiting = {id(layer) for layer in network.modules() if is_waiting(layer)}
    for layer in network.modules():
        if id(layer) not in waiting:
            forget_tensor(layer)
            arrays = (value for value in layer.values() if isinstance(value, mx.array))
            read(filter(is_large, arrays))
    for layer in quantize_all_now(network):
        read(flatten_parameters(layer).values())
    forget_tensors(network)
    read(flatten_parameters(network).values())


def channels_last(value: mx.array, rank: int) -> mx.array:
    """Return a tensor of a PyTorch file in MLX's layout, for a parameter of `rank` dimensions."""
    if rank == 2 and value.ndim > 2 and set(value.shape[2:]) == {1}:
        return value.reshape(value.shape[:2])  # a 1×1 convolution is a linear layer here
    if value.ndim != 4:
        return value
    return mx.contiguous(value.transpose(0, 2, 3, 1))  # [out, in, h, w] → [out, h, w, in]


@dataclass
class Problems:
    """Why the tensors of a file are not those that a network asks for: keys, with details."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def refuse(self, file: Path) -> None:
        """Refuse the file, or the first of several, if there are any problems.

        Raises:
            ValueError: if there are; the message lists or counts all of them.
        """
        by_kind = {
            "missing": self.missing,
            "not expected": self.unexpected,
            "given twice": self.duplicate,
            "wrong shape": self.misshapen,
        }
        if any(by_kind.values()):
            found = "; ".join(
                f"{what}: {join_names(keys)}" for what, keys in by_kind.items() if keys
            )
            raise ValueError(f"{file} does not hold what the model asks for: {found}")


@dataclass
class _Incoming:
    """The tensors of PyTorch's files, on their way into a network."""

    layout: Layout
    wanted: dict[str, tuple[int, ...]]  # shapes of the parameters
    weights: dict[str, mx.array] = field(default_factory=dict)  # by parameter, in MLX's layout
    problems: Problems = field(default_factory=Problems)

    def add_file(self, file: Path) -> set[str]:
        """Take all tensors of a file, and return the types of their numbers."""
        header, tensors = read_safetensors(file, self.layout.has)
        for key, value in tensors.items():
            self.add(key, value, header.kinds[key])
        return {header.kinds[key] for key in tensors}

    def add(self, key: str, value: mx.array, kind: str) -> None:
        """Take the parameters that a tensor holds, or note what is wrong with it.

        Args:
            kind: the type of its numbers, as the file names it.
        """
        names = self.layout.parameters(key)
        if not self.wanted.keys() >= set(names):
            if self.layout.optional >= set(names):
                return
            self.problems.unexpected.append(key)
            return
        if any(name in self.weights for name in names):
            self.problems.duplicate.append(key)
            return
        if kind not in FLOATS:
            self.problems.misshapen.append(f"{key} of {kind}, not floats")
        shape = self.wanted[names[0]]
        for name, part in zip(names, _split_rows(value, len(names), shape[0]), strict=True):
            part = part.T if name in self.layout.transposed else part
            self.weights[name] = channels_last(part, len(shape))
        if any(self.weights[name].shape != self.wanted[name] for name in names):
            expected = self._expected_shape(names)
            self.problems.misshapen.append(f"{key} {list(value.shape)}, not {list(expected)}")

    def note_missing(self) -> None:
        """Note the parameters that no tensor holds, by the keys that they would have."""
        missing = [self.layout.key(name) for name in self.wanted if name not in self.weights]
        self.problems.missing += dict.fromkeys(missing)  # parameters of one tensor share its key

    def _expected_shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the shape that the tensor with these parameters must have in a file."""
        shape = _channels_first(self.wanted[names[0]])
        if names[0] in self.layout.transposed:
            shape = shape[::-1]
        return (shape[0] * len(names), *shape[1:])


def _split_rows(value: mx.array, n_parts: int, rows: int) -> Sequence[mx.array]:
    """Return the parts of a tensor, `rows` rows each; the last part has all that remain."""
    if n_parts == 1 or value.ndim == 0:
        return [value] * n_parts
    return value.split(tuple(rows * i for i in range(1, n_parts)))


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in a PyTorch file of a parameter that has this shape in MLX."""
    if len(shape) != 4:
        return shape
    out_channels, height, width, in_channels = shape
    return (out_channels, in_channels, height, width)


def _describe_kind(value: mx.array) -> str:
    """Return what a tensor must have in common with the parameter that it becomes."""
    packed = " of packed bits" if value.dtype == mx.uint32 else ""
    is_number = packed or mx.issubdtype(value.dtype, mx.floating)
    return f"{list(value.shape)}{packed if is_number else f' of {value.dtype}'}"
