"""Count the operations that a GPU launches for a step and a decode, and the bytes that they write.

    python benchmarks/operations.py        # a few seconds, on any machine, without torch

The networks of the real models are traced, not computed, in half precision. MLX's export lists the
operations, and `fuse` joins those that `mx.compile` joins. An operation of `mlx.core.fast` that a
GPU does in one launch counts as one, and writes its result. Attention that the backend does not
fuse counts as MLX computes it: products, a softmax, and the scores between them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import stable_diffusion  # noqa: F401  isort: skip  (before mlx, for its BLAS)

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from real_sizes import MODELS
from tasks import pooled_width

from stable_diffusion.device import backend, fused_attention, memory
from stable_diffusion.device.backend import Backend
from stable_diffusion.prediction import Conditions, predict_with_guidance
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder

DTYPE = mx.float16
N_TOKENS = 77
MEMORY = 2**34  # bytes, of the machine: with less, more scores of attention are in chunks

# Primitives that launch nothing, and the view that each makes of its input, for MLX's arguments.
VIEWS: dict[str, Callable[..., np.ndarray]] = {
    "AsStrided": lambda x, *_: x,
    "Broadcast": lambda x, shape: np.broadcast_to(x, shape),
    "Depends": lambda x: x,
    "ExpandDims": lambda x, axes: np.expand_dims(x, axes),
    "Full": lambda x: x,  # a constant
    "Slice": lambda x, *ends: x[tuple(map(slice, *ends))],
    "Split": lambda x, *_: x,
    "Squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "Transpose": lambda x, axes: x.transpose(axes),
}
RESHAPES = {"Flatten", "Reshape", "Unflatten"}
# Primitives of these networks that `mx.compile` joins.
FUSABLE = {
    *("Add", "AsType", "Broadcast", "Cos", "Divide", "Equal", "Erf", "Exp", "Greater", "Maximum"),
    *("Minimum", "Multiply", "Negative", "NotEqual", "Select", "Sigmoid", "Sin", "Square"),
    *("Sqrt", "Subtract", "Tanh"),
}
MAX_FUSED_DEPTH = 11  # of `mx.compile`

Function = Callable[..., mx.array]


class Array(NamedTuple):
    """An array of a graph: its name, its shape and the bytes of its numbers."""

    name: str
    shape: tuple[int, ...]
    n_bytes: int


class Operation(NamedTuple):
    """A primitive of a graph."""

    name: str
    arguments: list
    inputs: list[str]
    outputs: list[Array]


class Count(NamedTuple):
    """Operations launched, and the bytes that they write."""

    launched: int
    bytes_written: int


def make_table() -> list[str]:
    """Return a Markdown table of the real models, on Metal and on CUDA."""
    kinds = Backend.METAL, Backend.CUDA
    lines = [
        "| compiled, float16 | Metal: launched | written | CUDA: launched | written |",
        "|---|---|---|---|---|",
    ]

    def add(title: str, count: Callable[[Backend], Count]) -> None:
        counts = [count(kind) for kind in kinds]
        cells = [f"{n:,} | {n_bytes / 1e9:.2f} GB" for n, n_bytes in counts]
        lines.append(f"| {title} | {' | '.join(cells)} |")

    for name, model in MODELS.items():
        step = f"{model.title}, {model.size}×{model.size}, step"
        add(step, lambda kind, name=name: count_step(name, kind, guidance=False))
        add(f"{step} with guidance", lambda kind, name=name: count_step(name, kind, guidance=True))
    for name in ("sd-2.1", "sdxl"):  # SD 1.5 has the autoencoder of SD 2.1
        size = MODELS[name].size
        add(f"decode, {size}×{size}", lambda kind, name=name: count_decode(name, kind))
        add(f"encode, {size}×{size}", lambda kind, name=name: count_encode(name, kind))
    return lines


def count_step(model: str, kind: Backend, *, guidance: bool) -> Count:
    """Count a compiled UNet step of one picture of the model's size, in half precision.

    The keys and values of the text have been computed before.

    Args:
        model: one of `real_sizes.MODELS`.
        guidance: whether the network also gets the latents with the negative text.
    """
    with _as_on(kind):
        unet = _make_network(UNetModel, MODELS[model].unet)
        batch = 2 if guidance else 1
        text = unet.project_text(_zeros(batch, N_TOKENS, unet.config.cross_attention_dim))
        added: tuple[mx.array, mx.array] | None = None
        if unet.config.addition_embed_type is not None:
            added = _zeros(batch, pooled_width(unet.config)), mx.zeros((batch, 6))
        ready = [(_zeros(*keys.shape), _zeros(*values.shape)) for keys, values in text]

        def step(x: mx.array, timestep: mx.array, *weight: mx.array) -> mx.array:
            return predict_with_guidance(unet, x, timestep, Conditions(ready, added, weight))

        side = MODELS[model].size // MODELS[model].autoencoder.factor
        numbers = [mx.array(1.0)] * batch  # the time, and the weight if there is guidance
        return count(step, [_zeros(1, side, side, unet.config.in_channels), *numbers])


def count_decode(model: str, kind: Backend) -> Count:
    """Count a compiled decode of one picture of the model's size, in half precision."""
    with _as_on(kind):
        vae = _make_network(Autoencoder, MODELS[model].autoencoder)
        side = MODELS[model].size // vae.config.factor
        return count(vae.decode, [_zeros(1, side, side, vae.config.latent_channels)])


def count_encode(model: str, kind: Backend) -> Count:
    """Count a compiled encoding of one picture of the model's size, in half precision."""
    with _as_on(kind):
        vae = _make_network(Autoencoder, MODELS[model].autoencoder)
        side = MODELS[model].size
        return count(lambda x: vae.encode(x)[0], [_zeros(1, side, side, 3)])


def count(function: Function, inputs: list[mx.array]) -> Count:
    """Count what a GPU launches for a function after `mx.compile`."""
    operations, results = trace(function, inputs)
    strides: dict[str, np.ndarray] = {}
    launched = bytes_written = 0
    for fused in fuse(operations, results):
        last = fused[-1]
        if len(fused) == 1 and _view(last, strides):
            continue
        launched += 1
        written = [array for each in fused for array in each.outputs if array.name in results]
        written = list({array.name: array for array in [*written, *last.outputs]}.values())
        bytes_written += sum(prod(array.shape) * array.n_bytes for array in written)
        strides |= {array.name: _lay_out(array) for array in written}
    return Count(launched, bytes_written)


def trace(function: Function, inputs: list[mx.array]) -> tuple[list[Operation], set[str]]:
    """Return the primitives of a function, in order, and the names of its results."""
    operations: list[Operation] = []
    results: set[str] = set()

    def visit(entry: dict) -> None:
        if entry["type"] == "outputs":
            results.update(name for name, *_ in entry["outputs"])
        if entry["type"] == "primitive":
            sources = [name for name, *_ in entry["inputs"]]
            made = [Array(name, shape, dtype.size) for name, shape, dtype in entry["outputs"]]
            operations.append(Operation(entry["name"], entry["arguments"], sources, made))

    mx.disable_compile()  # or the activations of constants, which are compiled, cannot be exported
    try:
        mx.export_function(visit, function, *inputs)
    finally:
        mx.enable_compile()
    return operations, results


def fuse(operations: list[Operation], results: set[str]) -> list[list[Operation]]:
    """Return the operations in groups, each of which `mx.compile` makes one kernel.

    From the last operation on, a kernel takes in the elementwise operations that it depends on, if
    nothing else uses their results.
    """
    made_by = {array.name: at for at, each in enumerate(operations) for array in each.outputs}
    users: dict[int, set[int]] = {at: set() for at in range(len(operations))}
    for at, each in enumerate(operations):
        for name in each.inputs:
            if name in made_by:
                users[made_by[name]].add(at)

    def join(at: int, group: dict[int, None], depth: int = 0) -> None:
        each = operations[at]
        has_other_users = depth > 0 and not users[at] <= group.keys()
        if depth >= MAX_FUSED_DEPTH or each.name not in FUSABLE or has_other_users:
            return
        if at in group or (depth > 0 and each.outputs[0].name in results):
            return
        group[at] = None
        for name in each.inputs:
            if name in made_by:
                join(made_by[name], group, depth + 1)

    groups: list[list[Operation]] = []
    done: set[int] = set()
    for at in reversed(range(len(operations))):
        if at not in done:
            group: dict[int, None] = {}
            join(at, group)
            done |= group.keys()
            groups.append([operations[i] for i in sorted(group or {at: None})])
    return groups[::-1]


def _view(operation: Operation, strides: dict[str, np.ndarray]) -> bool:
    """Return whether the result of an operation is only a view of its input.

    Args:
        strides: a stand-in for each array, with its strides. Those of a view are added.
    """
    name, arguments, inputs, outputs = operation
    if name not in VIEWS and name not in RESHAPES:
        return False
    source = strides.get(inputs[0])
    if source is not None and name in RESHAPES:
        try:
            source = source.reshape(outputs[0].shape, copy=False)
        except ValueError:  # it needs a copy
            return False
    elif source is not None:
        source = VIEWS[name](source, *arguments)
    for array in outputs:
        # Inputs and constants are contiguous, and so are views of them that are not in `strides`.
        strides[array.name] = _lay_out(array) if source is None else source
    return True


def _lay_out(array: Array) -> np.ndarray:
    """Return a stand-in for an array whose rows are contiguous, which takes no memory."""
    strides = [prod(array.shape[axis + 1 :]) for axis in range(len(array.shape))]
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), array.shape, strides)


def _make_network(kind: type, config: object) -> nn.Module:
    """Make a network whose weights are views of one number, so that they take no memory."""
    network = kind(config)
    network.update(tree_map(lambda weight: _zeros(*weight.shape), network.parameters()))
    mx.eval(network.parameters())
    return network


def _zeros(*shape: int) -> mx.array:
    x = mx.broadcast_to(mx.zeros((), DTYPE), shape)
    mx.eval(x)
    return x


@contextmanager
def _as_on(kind: Backend) -> Iterator[None]:
    """Trace what another backend would run; `mx.sort` stands for each launch of `mlx.core.fast`."""
    attend = mx.fast.scaled_dot_product_attention

    def stand_in(q: mx.array, k: mx.array, v: mx.array, **options: object) -> mx.array:
        if not fused_attention.is_fused(q.shape[-1], q.dtype):
            return attend(q, k, v, **options)
        # The result lies in memory as the queries do: [B, L, H, D].
        return mx.sort(mx.depends(q, [k, v]).swapaxes(1, 2)).swapaxes(1, 2)

    with ExitStack() as stack:
        for target, name, replacement in (
            (backend, "find_backend", lambda: kind),
            (memory, "read_total_memory", lambda: MEMORY),
            (mx.fast, "layer_norm", lambda x, *_, **__: mx.sort(x)),
            (mx.fast, "scaled_dot_product_attention", stand_in),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield


if __name__ == "__main__":
    print("\n".join(make_table()))
