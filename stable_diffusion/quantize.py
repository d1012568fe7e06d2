"""Weights of few bits, so that a model fits small memories.

All of it is lazy: a layer's float32 weights exist only while it is read and quantized.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


def quantize_linear(network: nn.Module, bits: int, group_size: int) -> None:
    """Quantize the linear layers of `network`, in place.

    Layers whose input width does not divide into groups of `group_size` stay as they are, and so
    do convolutions, embeddings and norms.
    """

    def is_quantizable(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and layer.weight.shape[-1] % group_size == 0

    nn.quantize(network, group_size, bits, class_predicate=is_quantizable)


def store_in_float16(network: nn.Module) -> None:
    """Keep what takes memory in `network`, all but biases and norms, in float16, in place.

    Where it meets float32 it is widened, so `network` computes in float32 as before: not for
    networks with embeddings, whose own type is that of all that follows.
    """

    def store(value: mx.array) -> mx.array:
        takes_memory = value.ndim > 1 and value.dtype == mx.float32
        return value.astype(mx.float16) if takes_memory else value

    network.update(tree_map(store, network.parameters()))
