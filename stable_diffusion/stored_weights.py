"""Weights once more, as they are in a file, to quantize them on all cores of a Linux CPU.

MLX quantizes on one core, and only after it has converted a weight to the type of the network. The
kernel of `quantize_weight` does both at once on all cores. But it computes at once, not lazily, and
a lazy array cannot be asked what it is made from. So a layer that is loaded keeps the tensor of the
file as a second lazy array, which is read only if the layer is quantized, and freed then.
Everything else sees a usual layer, whose arrays MLX can compute.

A weight that is replaced or changed in place is noticed, so that what is quantized is what the
layer has: MLX's graph of the weight says whether it is still made as it was when it was loaded.
"""

import io
import threading
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .device.quantize_weights import quantize_weight

QUANTIZED = ("weight", "scales", "biases")  # the arrays of a quantized layer
LARGE_BYTES = 2**24  # of a weight; those of the real models' largest convolutions have 59 MB


class Stored:
    """The tensor of a file that the arrays of a layer are made from.

    Attributes:
        tensor: lazy, of the shape that the weight has and of the type that the file has; None when
            it has been used.
        dtype: of the weight before it is quantized.
        arrays: of the layer, by name, as they were made.
        graph: how the arrays are made, see `_describe_graph`.
    """

    def __init__(self, tensor: mx.array, dtype: mx.Dtype, arrays: Mapping[str, mx.array]):
        self.tensor: mx.array | None = tensor
        self.dtype = dtype
        self.arrays = arrays
        self.graph = _describe_graph(arrays)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Return how to copy or pickle it: as None, so that a file is not read for that."""
        return type(None), ()


class StoredLayer(nn.Module):
    """A layer whose weight may be known as a file has it."""

    _stored: Stored | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if self._stored is not None and name in self._stored.arrays:
            self._stored = None
        super().__setattr__(name, value)


_streams = threading.local()  # MLX evaluates in a thread only what uses the streams of this thread


def use_reading_stream() -> mx.StreamContext:
    """Return a context in which arrays are made that are read while others are computed."""
    if not hasattr(_streams, "reading"):
        _streams.reading = mx.new_stream(mx.cpu)
    return mx.stream(_streams.reading)


def remember_tensors(network: nn.Module, tensors: Mapping[str, mx.array]) -> None:
    """Note the tensors that the weights of a network were just made from, by their paths."""
    for path, layer in network.named_modules():
        tensor = tensors.get(f"{path}.weight")
        if isinstance(layer, StoredLayer) and tensor is not None:
            layer._stored = Stored(tensor, layer.weight.dtype, {"weight": layer.weight})


def convert_weight(layer: nn.Module, dtype: mx.Dtype) -> None:
    """Convert the weight of a layer, in place and lazily; what is noted of it stays known."""
    stored = _find_stored(layer)
    layer.weight = layer.weight.astype(dtype)
    if isinstance(layer, StoredLayer) and stored is not None and stored.tensor is not None:
        with use_reading_stream():
            tensor = stored.tensor.astype(stored.dtype).astype(dtype)  # rounded as the weight is
        layer._stored = Stored(tensor, dtype, {"weight": layer.weight})


def note_quantized(quantized: StoredLayer, layer: nn.Module) -> None:
    """Note in a quantized layer, before its arrays are read, the tensor of the `layer` it was."""
    stored = _find_stored(layer)
    if stored is not None and stored.tensor is not None:
        arrays = {name: quantized[name] for name in QUANTIZED}
        quantized._stored = Stored(stored.tensor, stored.dtype, arrays)


def quantize_now(layer: nn.Module) -> None:
    """Compute the arrays of a layer that `note_quantized` was called with, if it still has these.

    Other layers stay as they are.
    """
    stored = _find_stored(layer)
    if stored is None or stored.tensor is None or "scales" not in stored.arrays:
        return
    matrix = stored.tensor.flatten(1)  # weights of convolutions are quantized as matrices, too
    stored.tensor = None  # others may refer to `stored`
    packed, *ranges = quantize_weight(matrix, layer.group_size, layer.bits, stored.dtype)
    arrays = [packed, *(each.astype(layer.scales.dtype) for each in ranges)]
    mx.eval(arrays)
    for name, array in zip(QUANTIZED, arrays, strict=True):
        setattr(layer, name, array)


def quantize_all_now(network: nn.Module) -> Iterator[nn.Module]:
    """Call `quantize_now` with the layers of a network, and yield each that it changes.

    While it computes, the tensor of the next layer is read. Large layers are the first, when little
    else is in memory.
    """
    layers = sorted(filter(is_waiting, network.modules()), key=lambda layer: not _is_large(layer))
    waiting: list[nn.Module | None] = [*layers, None]
    for layer, following in pairwise(waiting):
        if following is not None and (stored := _find_stored(following)) is not None:
            mx.async_eval(stored.tensor)
        if layer is not None:
            quantize_now(layer)
            yield layer


def is_waiting(layer: nn.Module) -> bool:
    """Return whether a layer is quantized by `quantize_now`, if that is called with it."""
    stored = _find_stored(layer)
    return stored is not None and stored.tensor is not None and "scales" in stored.arrays


def is_large(array: mx.array) -> bool:
    """Return whether an array should be read before others, while there is little in memory.

    Reading a weight takes up to three times its memory: as in the file, transposed, and converted.
    """
    return array.nbytes >= LARGE_BYTES


def forget_tensors(network: nn.Module) -> None:
    """Remove what is noted in a network, so that the files can be closed."""
    for layer in network.modules():
        forget_tensor(layer)


def forget_tensor(layer: nn.Module) -> None:
    """Remove what is noted in a layer, which keeps its arrays in memory."""
    if isinstance(layer, StoredLayer):
        layer._stored = None


def _is_large(layer: nn.Module) -> bool:
    """Return whether the tensor of a layer that waits is large."""
    stored = _find_stored(layer)
    return stored is not None and stored.tensor is not None and is_large(stored.tensor)


def _find_stored(layer: nn.Module) -> Stored | None:
    """Return what the arrays of a layer are made from; None if that is not known."""
    stored = layer._stored if isinstance(layer, StoredLayer) else None
    if stored is None or any(layer.get(name) is not made for name, made in stored.arrays.items()):
        return None
    if stored.tensor is not None and _describe_graph(stored.arrays) != stored.graph:
        return None  # evaluated, or changed in place
    return stored


def _describe_graph(arrays: Mapping[str, mx.array]) -> str:
    """Return the operations that the arrays are made by, as MLX writes them for a drawing.

    Nothing is evaluated. Operations are named by where they are in memory, so that a graph is equal
    to itself only. The tensor beside them is no part of it: it is read before it is used.
    """
    drawing = io.StringIO()
    mx.export_to_dot(drawing, **arrays)
    return drawing.getvalue()
