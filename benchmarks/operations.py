"""Count the operations that a UNet step and a decode launch on a GPU, from MLX's graphs.

This works on any machine, as only the weights are evaluated. The kernels for Linux CPUs are off,
and each operation of `mlx.core.fast`, which a GPU does in one launch, counts as one.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import mlx.core as mx
from tasks import pooled_width

from stable_diffusion.denoising import Predict, make_predict
from stable_diffusion.device import backend
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.weights import read_weights

# Primitives that launch nothing: views of their input, and `Full`, which is a constant.
VIEWS = {
    *("AsStrided", "Broadcast", "Depends", "ExpandDims"),
    *("Full", "Slice", "Split", "Squeeze", "Transpose"),
}
RESHAPES = {"Flatten", "Reshape", "Unflatten"}
MOVES = {"Transpose", "Broadcast"}  # a reshape after them copies


class Count(NamedTuple):
    """Operations launched, and the bytes that they write."""

    launched: int
    bytes_unfused: int  # without the fusion of `mx.compile`


def count_unet_step(folder: Path, *, hoisted: bool, compiled: bool) -> Count:
    """Count one step of one picture of 512×512 in half precision, without guidance.

    Args:
        hoisted: whether the keys and values of the text have been computed before.
        compiled: whether the step is compiled as a whole.
    """
    unet = loaders.load_unet(folder, float16=True)
    read_weights(unet)
    config = unet.config
    text = mx.zeros((1, 77, config.cross_attention_dim), mx.float16)
    text_time = None
    if config.addition_embed_type is not None:
        text_time = mx.zeros((1, pooled_width(config)), mx.float16), mx.zeros((1, 6))
    x = mx.zeros((1, 64, 64, config.in_channels))
    inputs = [x, mx.array(1.0), text]

    def predict(text: mx.array) -> Predict:
        return make_predict(unet, text, text_time, 1.0, 0.0, mx.float16)

    with _as_on_a_gpu(compiled):
        if not hoisted:
            return _count(lambda x, timestep, text: predict(text)(x, timestep), inputs)
        ready = [
            (mx.zeros(keys.shape, keys.dtype), mx.zeros(values.shape, values.dtype))
            for keys, values in unet.project_text(text)
        ]
        with mock.patch.object(type(unet), "project_text", lambda *_: ready):
            return _count(predict(text), inputs[:-1])


def count_vae_decode(folder: Path) -> Count:
    """Count the decoding of one picture of 512×512 in float32."""
    vae = loaders.load_autoencoder(folder)
    read_weights(vae)
    with _as_on_a_gpu(compiled=False):
        return _count(vae.decode, [mx.zeros((1, 64, 64, vae.config.latent_channels))])


@contextmanager
def _as_on_a_gpu(compiled: bool) -> Iterator[None]:
    """Trace what a GPU would run; `mx.sort` stands for each launch of `mlx.core.fast`."""
    compile_ = mx.compile if compiled else lambda function, **_: function
    with (
        mock.patch.object(backend, "find_backend", lambda: backend.Backend.METAL),
        mock.patch.object(mx, "compile", compile_),
        mock.patch.object(mx.fast, "layer_norm", lambda x, *_, **__: mx.sort(x)),
        mock.patch.object(
            mx.fast,
            "scaled_dot_product_attention",
            lambda q, k, v, **_: mx.sort(mx.depends(q, [k, v])),
        ),
    ):
        yield


def _count(function: Callable[..., mx.array], inputs: list[mx.array]) -> Count:
    dot = io.StringIO()
    mx.export_to_dot(dot, function(*inputs))
    return Count(_count_launched(dot.getvalue()), _count_bytes(function, inputs))


def _count_launched(dot: str) -> int:
    """Count the primitives of a graph in Graphviz' language, without views."""
    names = dict(re.findall(r'(\d+) \[label ="(\w+)"', dot))
    made_by = {array: node for node, array in re.findall(r'(\d+) -> "(\w+)"', dot)}
    sources: dict[str, list[str]] = {}
    for array, node in re.findall(r'"(\w+)" -> (\d+)', dot):
        sources.setdefault(node, []).append(names.get(made_by.get(array, ""), ""))
    return sum(_launches(name, sources.get(node, [])) for node, name in names.items())


def _count_bytes(function: Callable[..., mx.array], inputs: list[mx.array]) -> int:
    """Return the bytes of the outputs of all primitives, without views."""
    made_by: dict[str, str] = {}
    total = 0

    def visit(entry: dict) -> None:
        nonlocal total
        if entry["type"] != "primitive":
            return
        sources = [made_by.get(name, "") for name, *_ in entry["inputs"]]
        for name, shape, dtype in entry["outputs"]:
            made_by[name] = entry["name"]
            if _launches(entry["name"], sources):
                total += prod(shape) * dtype.size

    mx.disable_compile()
    try:
        mx.export_function(visit, function, *inputs)
    finally:
        mx.enable_compile()
    return total


def _launches(name: str, sources: list[str]) -> bool:
    """Return whether a primitive runs a kernel; a reshape after a transposition copies."""
    if name in RESHAPES:
        return any(source in MOVES for source in sources)
    return name not in VIEWS
