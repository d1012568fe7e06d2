"""Weights of few bits, so that a model fits small memories.

All of it is lazy: a layer's float32 weights exist only while it is read and quantized.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from .config.networks import Quantization


def quantize_text_encoder(
    network: nn.Module, bits: int = 4, group_size: int | None = None
) -> Quantization:
    """Quantize a text encoder; as `quantize_linear`."""
    return quantize_linear(network, bits, 64 if group_size is None else group_size)


def quantize_unet(network: nn.Module, bits: int = 8, group_size: int | None = None) -> Quantization:
    """Quantize a UNet, and keep what is left of it in float16; as `quantize_linear`."""
    quantization = quantize_linear(network, bits, 32 if group_size is None else group_size)
    store_in_float16(network)
    return quantization


def quantize_linear(network: nn.Module, bits: int, group_size: int) -> Quantization:
    """Quantize the linear layers of `network`, in place, and say how.

    Layers whose input width does not divide into groups of `group_size` stay as they are, and so
    do convolutions, embeddings and norms.
    """
    layers = _linear_layers(network).items()
    odd = tuple(path for path, layer in layers if layer.weight.shape[-1] % group_size)
    quantization = Quantization(bits, group_size, odd)
    quantize_as(network, quantization)
    return quantization


def quantize_as(network: nn.Module, quantization: Quantization) -> None:
    """Quantize the linear layers of `network`, in place, as a config says it.

    Raises:
        ValueError: it names layers that `network` does not have, or does not name some whose
            input width does not divide into groups.
    """
    group_size, unquantized = quantization.group_size, quantization.unquantized
    layers = _linear_layers(network)
    if unknown := [path for path in unquantized if path not in layers]:
        raise ValueError(f"unquantized names {', '.join(unknown)}: there are no such linear layers")
    chosen = {path: layer for path, layer in layers.items() if path not in unquantized}
    for path, layer in chosen.items():
        if (width := layer.weight.shape[-1]) % group_size:
            raise ValueError(f"the {width} inputs of {path} are no groups of {group_size}")
    nn.quantize(
        network, group_size, quantization.bits, class_predicate=lambda path, _: path in chosen
    )


def is_quantized(network: nn.Module) -> bool:
    """Whether layers of `network` are quantized."""
    return any(isinstance(layer, nn.QuantizedLinear) for layer in network.modules())


def store_in_float16(network: nn.Module) -> None:
    """Keep the weights in float32 of linear layers and convolutions in float16, in place.

    Where they meet float32 they are widened, so `network` computes in float32 as before: not for
    networks with embeddings, whose own type is that of all that follows.
    """

    def store(path: str, value: mx.array) -> mx.array:
        is_matrix = path.endswith("weight") and value.ndim > 1
        return value.astype(mx.float16) if is_matrix and value.dtype == mx.float32 else value

    network.update(tree_map_with_path(store, network.parameters()))


def _linear_layers(network: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
