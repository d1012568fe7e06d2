"""Layers with a low-rank change, and how to put them into a network and take them out.

The change is kept beside a layer, whose weight stays as it is, quantized or not. That takes little
memory, and after removing it the network is as it was before, to the bit.
"""

import copy
from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..activations import Activation
from ..layers import Conv3x3, GroupNorm, Linear, Norm, QuantizedLinear, multiply


class LoRALinear(nn.Module):
    """A linear layer, quantized or not, plus a low-rank product: W x + U D x.

    It keeps the contract of `layers`, as `layers.Linear` does.

    Args:
        base: the layer.
        down: D [rank, in].
        up: U [out, rank], multiplied by the scale.
    """

    def __init__(self, base: Linear | QuantizedLinear, down: mx.array, up: mx.array):
        super().__init__()
        self.base = base
        self.down = down
        self.up = up

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        x = x if norm is None else norm(x)
        return multiply(multiply(x, self.down), self.up, residual=self.base(x, residual=residual))


class LoRAConv3x3(nn.Module):
    """A convolution with a low-rank change of its weight: W + U D. It has the methods of `Conv3x3`.

    Args:
        base: the layer.
        down: D [rank, 3, 3, in].
        up: U [out, rank], multiplied by the scale.
    """

    def __init__(self, base: Conv3x3, down: mx.array, up: mx.array):
        super().__init__()
        self.base = base
        self.down = down
        self.up = up

    def __call__(
        self,
        x: mx.array,
        *,
        norm: GroupNorm | None = None,
        activation: Activation | None = None,
        bias: mx.array | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Return residual + conv(activation(norm(x))) + bias, as `Conv3x3` does."""
        return self.merge()(x, norm=norm, activation=activation, bias=bias, residual=residual)

    @property
    def bias(self) -> mx.array:
        """Return the bias [out], which has no change."""
        return self.base.bias

    def convolve_without_bias(self, x: mx.array) -> mx.array:
        """Return the convolution before the bias is added, as `Conv3x3` does."""
        return self.merge().convolve_without_bias(x)

    def convolve_upsampled(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        """Return the convolution of `upsample_nearest(x)`, as `Conv3x3` does."""
        return self.merge().convolve_upsampled(x, size)

    def merge(self) -> Conv3x3:
        """Return a layer with the changed weight, which computes the same; see `merged_layers`."""
        layer = copy.copy(self.base)
        change = self.up @ self.down.flatten(1)  # [out, 3 · 3 · in]
        layer.weight = layer.weight + change.reshape(layer.weight.shape)
        return layer


BaseLayer = Linear | QuantizedLinear | Conv3x3
LoRALayer = LoRALinear | LoRAConv3x3
Layer = BaseLayer | LoRALayer


def find_layers(network: nn.Module) -> dict[str, Layer]:
    """Return the layers that a LoRA can change, or has changed, by their paths."""
    layers = network.filter_and_map(
        nn.Module.valid_child_filter, is_leaf_fn=lambda _, __, child: isinstance(child, Layer)
    )
    return dict(tree_flatten(layers, is_leaf=nn.Module.is_module))


def find_lora(network: nn.Module) -> dict[str, LoRALayer]:
    """Return the layers that a LoRA has changed, by their paths."""
    layers = find_layers(network).items()
    return {path: layer for path, layer in layers if isinstance(layer, LoRALayer)}


def replace_layers(network: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Put layers into a network, at their paths."""
    if layers:
        network.update_modules(tree_unflatten(list(layers.items())))


def get_weight_shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape that the layer's weight has without LoRA and quantization."""
    if isinstance(layer, LoRALayer):
        layer = layer.base
    if isinstance(layer, QuantizedLinear):
        out_dims, groups = layer.scales.shape
        return (out_dims, groups * layer.group_size)
    return layer.weight.shape


def add_lora(layer: Layer, down: mx.array, up: mx.array) -> LoRALayer:
    """Return the layer with a low-rank change, in addition to any that it has."""
    if isinstance(layer, LoRALayer):
        down, up = mx.concatenate([layer.down, down]), mx.concatenate([layer.up, up], axis=1)
        layer = layer.base
    if isinstance(layer, Conv3x3):
        return LoRAConv3x3(layer, down, up)
    return LoRALinear(layer, down, up)
