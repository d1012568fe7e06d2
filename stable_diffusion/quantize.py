"""Quantize networks: store their weights in few bits, so that a model fits a small memory.

Everything is lazy: the float32 weights of a layer exist only while it is read and quantized.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path, tree_unflatten

from .config.networks import Quantization
from .layers import Conv3x3
from .quantized_convolution import QuantizedConv3x3

UNET_BITS, UNET_GROUP_SIZE = 8, 32  # of linear layers; without a number of bits only of these
CONVOLUTION_GROUP_SIZE = 64
TEXT_ENCODER_BITS, TEXT_ENCODER_GROUP_SIZE = 4, 64

MORE_BITS = 8  # of the layers that suffer most from fewer
# With 4 bits in all layers of `tiny` the prediction has a relative error of 0.089; with 8 bits in
# the last convolution 0.062, also in the last block 0.043, in the 1×1 convolutions beside residual
# blocks 0.039, and in the first block 0.031. These are a small part of the real UNets.
SENSITIVE_LAYERS = ("conv_in", "conv_out", "time_embedding", "add_embedding", "conv_shortcut")

Layer = nn.Linear | Conv3x3


def quantize_text_encoder(
    network: nn.Module, bits: int | None = None, group_size: int | None = None
) -> Quantization:
    """Quantize the linear layers of a text encoder, in place; see `quantize_as`.

    Layers whose input width is not a multiple of `group_size`, embeddings and norms stay as they
    are.

    Args:
        bits: None for 4.

    Returns:
        The entry for a config file, with which `quantize_as` does the same.
    """
    bits = TEXT_ENCODER_BITS if bits is None else bits
    group_size = TEXT_ENCODER_GROUP_SIZE if group_size is None else group_size
    layers = _find_layers(network, has_convolutions=False)
    quantization = Quantization(bits, group_size, _find_indivisible(layers, group_size, group_size))
    quantize_as(network, quantization)
    return quantization


def quantize_unet(
    network: nn.Module, bits: int | None = None, group_size: int | None = None
) -> Quantization:
    """Quantize the linear layers and convolutions of a UNet or a control network, in place.

    With less than 8 bits, `SENSITIVE_LAYERS` and the first and the last block have 8. The weights
    of the layers that are not quantized, as in `quantize_text_encoder`, are stored in float16.

    Args:
        bits: of a weight. None quantizes linear layers only, to 8 bits: so `-q` without a number of
            bits has always done, and recipes of such pictures make them again.

    Returns:
        The entry for a config file, with which `quantize_as` does the same.
    """
    has_convolutions = bits is not None
    bits = UNET_BITS if bits is None else bits
    convolution_group_size = (group_size or CONVOLUTION_GROUP_SIZE) if has_convolutions else None
    group_size = UNET_GROUP_SIZE if group_size is None else group_size
    layers = _find_layers(network, has_convolutions)
    unquantized = _find_indivisible(layers, group_size, convolution_group_size or group_size)
    in_8_bits = tuple(
        path
        for path in layers
        if bits < MORE_BITS and path not in unquantized and _is_sensitive(path, network)
    )
    quantization = Quantization(bits, group_size, unquantized, convolution_group_size, in_8_bits)
    quantize_as(network, quantization)
    store_in_float16(network)
    return quantization


def quantize_networks(
    unet: nn.Module,
    text_encoders: Sequence[nn.Module],
    name: str,
    unet_bits: int | None = None,
    text_encoder_bits: int | None = None,
) -> None:
    """Quantize the networks of a model, in place, except those that are quantized already.

    Args:
        name: of the model, for the warning that a network stays as it is.
        unet_bits, text_encoder_bits: one of `config.networks.BITS`, or None: see `quantize_unet`
            and `quantize_text_encoder`.
    """
    networks = [unet, *text_encoders]
    if any(map(is_quantized, networks)):
        # The line that is named is the one that calls the pipeline's method.
        warnings.warn(f"{name} is quantized already, and stays as it is", stacklevel=3)
    if not is_quantized(unet):
        quantize_unet(unet, unet_bits)
    for network in text_encoders:
        if not is_quantized(network):
            quantize_text_encoder(network, text_encoder_bits)


def quantize_as(network: nn.Module, quantization: Quantization) -> None:
    """Quantize the layers of `network`, in place, as a config says.

    Raises:
        ValueError: if the config names layers that `network` does not have, or does not name a
            layer whose input width is not a multiple of the group size.
    """
    bits, group_size = quantization.bits, quantization.group_size
    convolution_group_size = quantization.convolution_group_size
    if bits is None or group_size is None:  # a `Quantization` has both
        raise ValueError("bits and group_size must be given")
    unquantized = quantization.unquantized
    layers = _find_layers(network, has_convolutions=convolution_group_size is not None)
    _require_known("unquantized", unquantized, layers)
    chosen = {path: layer for path, layer in layers.items() if path not in unquantized}
    _require_known("in_8_bits", quantization.in_8_bits, chosen)
    sizes = group_size, convolution_group_size or group_size
    if indivisible := _find_indivisible(chosen, *sizes):
        path = indivisible[0]
        name, size = ("group_size", sizes[0])
        if isinstance(chosen[path], Conv3x3):
            name, size = ("convolution_group_size", sizes[1])
        raise ValueError(
            f"{path} has {_count_inputs(chosen[path])} inputs, which is not a multiple of "
            f"{name} = {size}"
        )
    packed: dict[str, nn.Module] = {}
    for path, layer in chosen.items():
        layer_bits = MORE_BITS if path in quantization.in_8_bits else bits
        if isinstance(layer, Conv3x3):
            packed[path] = QuantizedConv3x3(layer, sizes[1], layer_bits)
        else:
            packed[path] = layer.to_quantized(group_size, layer_bits)
    network.update_modules(tree_unflatten(list(packed.items())))


def find_quantization(network: nn.Module) -> Quantization | None:
    """Return the `Quantization` with which `quantize_as` makes a network like this one.

    Layers that adapters have changed count as they were before. None if nothing is quantized.
    """
    layers = {
        path.removesuffix(".base"): layer
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.QuantizedLinear | Conv3x3)
    }
    packed = {
        path: layer
        for path, layer in layers.items()
        if isinstance(layer, nn.QuantizedLinear | QuantizedConv3x3)
    }
    if not packed:
        return None
    convolutions, others = (
        {layer.group_size for layer in packed.values() if isinstance(layer, kind)}
        for kind in (QuantizedConv3x3, nn.QuantizedLinear)
    )
    bits = min(layer.bits for layer in packed.values())
    return Quantization(
        bits,
        min(others or convolutions),
        tuple(
            path
            for path, layer in layers.items()
            if path not in packed and (convolutions or isinstance(layer, nn.Linear))
        ),
        min(convolutions, default=None),
        tuple(path for path, layer in packed.items() if layer.bits > bits),
    )


def is_quantized(network: nn.Module) -> bool:
    """Return whether any layer of `network` is quantized."""
    kinds = nn.QuantizedLinear | QuantizedConv3x3
    return any(isinstance(layer, kinds) for layer in network.modules())


def store_in_float16(network: nn.Module) -> None:
    """Store the float32 weights of linear layers and convolutions in float16, in place.

    Operations with float32 inputs widen them, so `network` computes in float32 as before. This is
    not for networks with embeddings, because everything after these has the embeddings' type.
    """

    def store(path: str, value: mx.array) -> mx.array:
        is_matrix = path.endswith("weight") and value.ndim > 1
        return value.astype(mx.float16) if is_matrix and value.dtype == mx.float32 else value

    network.update(tree_map_with_path(store, network.parameters()))


def _find_layers(network: nn.Module, has_convolutions: bool) -> dict[str, Layer]:
    """Return the layers of `network` that can be quantized and are not, by their paths.

    They are the linear layers, and the convolutions if `has_convolutions`.
    """
    return {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        or (has_convolutions and isinstance(layer, Conv3x3) and not is_quantized(layer))
    }


def _find_indivisible(
    layers: Mapping[str, Layer], group_size: int, convolution_group_size: int
) -> tuple[str, ...]:
    """Return the paths of layers whose number of inputs is not a multiple of their group size."""
    return tuple(
        path
        for path, layer in layers.items()
        if _count_inputs(layer)
        % (convolution_group_size if isinstance(layer, Conv3x3) else group_size)
    )


def _count_inputs(layer: Layer) -> int:
    """Return the length of the last axis of a weight, which groups divide."""
    return int(layer.weight.shape[-1])


def _is_sensitive(path: str, network: nn.Module) -> bool:
    """Return whether a layer is in one of `SENSITIVE_LAYERS`, or in the first or last block."""
    last_block = f"up_blocks.{len(network.get('up_blocks', ())) - 1}."
    is_outer = path.startswith(("down_blocks.0.", last_block))
    return is_outer or not set(SENSITIVE_LAYERS).isdisjoint(path.split("."))


def _require_known(option: str, paths: Collection[str], layers: Mapping[str, Layer]) -> None:
    """Raise ValueError if a config names layers that are not there."""
    if unknown := [path for path in paths if path not in layers]:
        raise ValueError(f"{option} names {', '.join(unknown)}: there are no such layers")
