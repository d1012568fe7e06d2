"""Weights in half precision as the kernels for a Linux CPU multiply them: in bfloat16."""

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels
from .stored_weights import convert_weight

LAYERS = (nn.Linear, nn.QuantizedLinear, nn.Conv2d)


def prepare_half_weights(network: nn.Module) -> None:
    """Convert the float16 weights of a network to bfloat16, in place, if kernels multiply it.

    Only matrices are multiplied: those of linear layers and convolutions, or the scales of their
    weights of few bits. Biases and norms become float32, and embeddings stay as they are. The
    arrays stay lazy.
    """
    if not cpu_kernels.multiplies_halves():
        return
    for layer in network.modules():
        if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding):
            continue
        for name, value in layer.items():
            if isinstance(value, mx.array) and value.dtype == mx.float16:
                is_factor = isinstance(layer, LAYERS) and value.ndim > 1
                if is_factor and name == "weight":
                    convert_weight(layer, mx.bfloat16)
                else:
                    layer[name] = value.astype(mx.bfloat16 if is_factor else mx.float32)
