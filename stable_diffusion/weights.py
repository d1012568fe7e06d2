"""Weight files into networks: renames as data, layout by rank, nothing missing and nothing over.

A table maps runs of whole path segments of a file's keys to this package's names for them:
``"to_out.0": "out_proj"`` turns ``attn1.to_out.0.bias`` into ``attn1.out_proj.bias``.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .header import FLOATS, Header

MLX_READERS = 4  # threads
MOST_NAMED = 10  # tensors that an error lists of each kind; it counts the others


@dataclass(frozen=True)
class Layout:
    """How the files of one network name its tensors."""

    renames: Mapping[str, str]  # one to one, so that errors can speak of the file's names
    old_renames: Mapping[str, str] = field(default_factory=dict)  # names of older files
    prefix: str = ""  # stands before every key in some files and in others not
    ignored: frozenset[str] = frozenset()  # keys that are no weights, by their last segment
    # What follows is for files that hold several networks: see `single_file.py`.
    root: str = ""  # stands before every key of this network
    unused: tuple[str, ...] = ()  # what the keys of tensors that nobody needs begin with
    # Parameters that lie in one tensor, one below the other, by the ends of their renamed paths.
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()  # parameters that are stored [in, out]

    def has(self, key: str) -> bool:
        """Whether the tensor `key` of a file holds weights of this network."""
        path = key.removeprefix(self.root)
        is_weight = key.rsplit(".", 1)[-1] not in self.ignored
        return key.startswith(self.root) and is_weight and not path.startswith(self.unused)

    def parameters(self, key: str) -> tuple[str, ...]:
        """The parameters of the network that the tensor `key` of a file holds."""
        path = key.removeprefix(self.root).removeprefix(self.prefix)
        path = rename(rename(path, self.old_renames), self.renames)
        for end, parts in self.fused.items():
            if path.endswith(end):
                return tuple(path.removesuffix(end) + part for part in parts)
        return (path,)

    def key(self, parameter: str) -> str:
        """The key, without prefix, of `parameter` in a file as it is written today."""
        for end, parts in self.fused.items():
            for part in parts:
                if parameter.endswith(part):
                    parameter = parameter.removesuffix(part) + end
        renames = {ours: theirs for theirs, ours in self.renames.items()}
        return self.root + rename(parameter, renames)


def rename(path: str, table: Mapping[str, str]) -> str:
    """`path` with every run of whole segments that `table` has renamed, the longest ones first."""
    return _pattern(tuple(table)).sub(lambda match: table[match[1]], path) if table else path


@cache
def _pattern(runs: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = "|".join(re.escape(run) for run in sorted(runs, key=len, reverse=True))
    return re.compile(rf"(?<![^.])({longest_first})(?![^.])")


_ATTENTION = {
    "to_q": "query_proj",
    "to_k": "key_proj",
    "to_v": "value_proj",
    "to_out.0": "out_proj",
}
_RESAMPLERS = {"downsamplers.0": "downsample", "upsamplers.0": "upsample"}

UNET = Layout(
    renames={**_ATTENTION, **_RESAMPLERS, "ff.net.0.proj": "ff.proj_in", "ff.net.2": "ff.proj_out"},
)
AUTOENCODER = Layout(
    renames={**_ATTENTION, **_RESAMPLERS},
    # Before diffusers 0.18.
    old_renames={"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"},
)
TEXT_ENCODER = Layout(
    renames={
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding": "position_embedding",
        "encoder.layers": "layers",
        "self_attn.q_proj": "attention.query_proj",
        "self_attn.k_proj": "attention.key_proj",
        "self_attn.v_proj": "attention.value_proj",
        "self_attn.out_proj": "attention.out_proj",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    },
    prefix="text_model.",  # absent from what transformers 5 writes of a CLIPTextModel
    ignored=frozenset({"position_ids"}),
)


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
            found = "; ".join(f"{what}: {listed(keys)}" for what, keys in by_kind.items() if keys)
            raise ValueError(f"{file} does not hold what the model asks for: {found}")


def listed(keys: Sequence[str]) -> str:
    """The first of `keys`, for a message, and how many more there are."""
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more


def read_weights(network: nn.Module, on_read: Callable[[int], object] | None = None) -> None:
    """Read, convert and quantize lazy weights now, one after another.

    So there is never more than one of them in two versions. `on_read` is told the bytes of each.
    """
    for _, value in tree_flatten(network.parameters()):
        mx.eval(value)
        if on_read is not None:
            on_read(value.nbytes)


def read_safetensors(file: Path) -> tuple[Header, dict[str, mx.array]]:
    """The header of a file, and its tensors, lazily.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, or has numbers of a kind that MLX does not read.
        RuntimeError: there is no memory for the threads in which it is read.
    """
    header = Header(str(file), file)
    if doubles := [key for key, tensor in header.tensors.items() if tensor.kind == "F64"]:
        raise ValueError(
            f"{file} has float64, which is not supported ({listed(doubles)}): save it in float32"
        )
    _start_readers()
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    return header, {key: tensors[key] for key in header.tensors}  # in the file's order


@cache
def _start_readers() -> None:
    """Have MLX start the threads in which it reads files, before memory is taken for anything.

    Where it cannot start one it may wait for ever, and so others try, which raise RuntimeError.
    Their stacks are used again.
    """
    done = Event()
    with ThreadPoolExecutor(MLX_READERS) as pool:
        try:
            for _ in range(MLX_READERS):
                pool.submit(done.wait, 1)  # second, should an interruption come between
        finally:
            done.set()
    file = io.BytesIO()
    np.save(file, np.zeros(1, np.float32))
    file.seek(0)
    mx.eval(mx.load(file, format="npy"))


def not_finite(file: Path, dtype: mx.Dtype, layout: Layout | None = None) -> list[str]:
    """The keys of tensors with a number that is not finite as `dtype`; of one network, or all.

    Raises: as `read_safetensors`.
    """
    _, tensors = read_safetensors(file)
    keys = [key for key in tensors if layout is None or layout.has(key)]
    # Taken out one by one, so that one of them is in memory.
    return [key for key in keys if not mx.isfinite(tensors.pop(key).astype(dtype)).all().item()]


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
