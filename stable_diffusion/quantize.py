"""Quantize networks: store their weights in few bits, so that a model fits a small memory.

Everything is lazy: the float32 weights of a layer exist only while it is read and quantized.
"""

import warnings
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from .config.networks import Quantization


def quantize_text_encoder(
    network: nn.Module, bits: int = 4, group_size: int | None = None
) -> Quantization:
    """Quantize the linear layers of a text encoder, in place; see `quantize_linear`."""
    return quantize_linear(network, bits, 64 if group_size is None else group_size)


def quantize_networks(unet: nn.Module, text_encoders: Sequence[nn.Module], name: str) -> None:
    """Quantize the networks of a model, in place, except those that are quantized already.

    Args:
        name: of the model, for the warning that a network stays as it is.
    """
    networks = [unet, *text_encoders]
    if any(map(is_quantized, networks)):
        # The line that is named is the one that calls the pipeline's method.
        warnings.warn(f"{name} is quantized already, and stays as it is", stacklevel=3)
    for network in networks:
        if not is_quantized(network):
            (quantize_unet if network is unet else quantize_text_encoder)(network)


def quantize_unet(network: nn.Module, bits: int = 8, group_size: int | None = None) -> Quantization:
    """Quantize the linear layers of a UNet, in place; see `quantize_linear`.

    The weights of its convolutions, and of the linear layers that cannot be quantized, are stored
    in float16.
    """
    quantization = quantize_linear(network, bits, 32 if group_size is None else group_size)
    store_in_float16(network)
    return quantization


def quantize_linear(network: nn.Module, bits: int, group_size: int) -> Quantization:
    """Quantize the linear layers of `network`, in place.

    Layers whose input width is not a multiple of `group_size` stay as they are, and so do
    convolutions, embeddings and norms.

    Returns:
        The entry for a config file, with which `quantize_as` does the same.
    """
    layers = _find_linear_layers(network).items()
    unquantized = tuple(path for path, layer in layers if layer.weight.shape[-1] % group_size)
    quantization = Quantization(bits, group_size, unquantized)
    quantize_as(network, quantization)
    return quantization


def quantize_as(network: nn.Module, quantization: Quantization) -> None:
    """Quantize the linear layers of `network`, in place, as a config says.

    Raises:
        ValueError: if the config names layers that `network` does not have, or does not name a
            layer whose input width is not a multiple of the group size.
    """
    bits, group_size = quantization.bits, quantization.group_size
    if bits is None or group_size is None:  # a `Quantization` has both
        raise ValueError("bits and group_size must be given")
    unquantized = quantization.unquantized
    layers = _find_linear_layers(network)
    if unknown := [path for path in unquantized if path not in layers]:
        raise ValueError(f"unquantized names {', '.join(unknown)}: there are no such linear layers")
    chosen = {path: layer for path, layer in layers.items() if path not in unquantized}
    for path, layer in chosen.items():
        if (width := layer.weight.shape[-1]) % group_size:
            raise ValueError(
                f"{path} has {width} inputs, which is not a multiple of group_size = {group_size}"
            )
    nn.quantize(network, group_size, bits, class_predicate=lambda path, _: path in chosen)


def is_quantized(network: nn.Module) -> bool:
    """Return whether any layer of `network` is quantized."""
    return any(isinstance(layer, nn.QuantizedLinear) for layer in network.modules())


def store_in_float16(network: nn.Module) -> None:
    """Store the float32 weights of linear layers and convolutions in float16, in place.

    Operations with float32 inputs widen them, so `network` computes in float32 as before. This is
    not for networks with embeddings, because everything after these has the embeddings' type.
    """

    def store(path: str, value: mx.array) -> mx.array:
        is_matrix = path.endswith("weight") and value.ndim > 1
        return value.astype(mx.float16) if is_matrix and value.dtype == mx.float32 else value

    network.update(tree_map_with_path(store, network.parameters()))


def _find_linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of `network` that are not quantized, by their paths."""
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
