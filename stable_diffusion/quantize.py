"""Weights of few bits, so that a model fits small memories.

All of it is lazy: a layer's float32 weights exist only while it is read and quantized.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path


def quantize_linear(network: nn.Module, bits: int, group_size: int) -> None:
    """Quantize the linear layers of `network`, in place.

    Layers whose input width does not divide into groups of `group_size` stay as they are, and so
    do convolutions, embeddings and norms.
    """

    def is_quantizable(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and layer.weight.shape[-1] % group_size == 0

    nn.quantize(network, group_size, bits, class_predicate=is_quantizable)


def store_in_float16(network: nn.Module) -> None:
    """Keep the weights in float32 of linear layers and convolutions in float16, in place.

    Where they meet float32 they are widened, so `network` computes in float32 as before: not for
    networks with embeddings, whose own type is that of all that follows.
    """

    def store(path: str, value: mx.array) -> mx.array:
        is_matrix = path.endswith("weight") and value.ndim > 1
        return value.astype(mx.float16) if is_matrix and value.dtype == mx.float32 else value

    network.update(tree_map_with_path(store, network.parameters()))
