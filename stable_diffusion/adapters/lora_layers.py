"""Layers with changes by adapters, and how to put them into a network and take them out.

The layer that is changed stays as it is, quantized or not, so that after removing the changes the
network is as it was before, to the bit. A low-rank change of a linear layer is computed beside it,
unless the caller wants it merged. Other changes are merged with its weight: at each call, or once
for the steps of a batch, see `merged_layers`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..activations import Activation
from ..layers import Conv3x3, GroupNorm, Linear, Norm, QuantizedLinear, multiply
from ..quantized_convolution import QuantizedConv3x3
from .changes import Change, LowRank, apply_changes, chain, prepare_changes


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


class AdaptedLinear(nn.Module):
    """A linear layer, quantized or not, with changes. It keeps the contract of `layers`.

    Args:
        base: the layer.
        changes: its changes, in the order in which they are applied.
    """

    def __init__(self, base: Linear | QuantizedLinear, changes: Sequence[Change]):
        super().__init__()
        self.base = base
        self.changes = list(changes)

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        return self.merge()(x, norm=norm, residual=residual)

    def merge(self) -> "Linear | PreparedLinear":
        """Return a layer that computes the same, see `merged_layers`.

        It has the changed weight. If the weight is quantized the changes stay beside it.
        """
        if not isinstance(self.base, QuantizedLinear):
            return merge_changes(self.base, self.changes)
        product = copy.copy(self.base)
        product.pop("bias", None)
        prepared = prepare_changes(self.changes, dequantize(self.base))
        return PreparedLinear(product, prepared, change_bias(self.base, self.changes))


class PreparedLinear(nn.Module):
    """A quantized layer with changes beside it, prepared for many calls.

    Args:
        product: the layer, without its bias.
        changes: the result of `prepare_changes`.
        bias: the changed bias [out], or None.
    """

    def __init__(self, product: QuantizedLinear, changes: Sequence[Change], bias: mx.array | None):
        super().__init__()
        self.product = product
        self.changes = list(changes)
        self.bias = bias

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        y = chain(self.changes, self.product)(x if norm is None else norm(x))
        y = y if self.bias is None else y + self.bias
        return y if residual is None else residual + y


def dequantize(layer: QuantizedLinear) -> mx.array:
    """Return the weight [out, in] of a quantized layer, which is computed only if it is used."""
    offsets = layer["biases"]
    return mx.dequantize(layer.weight, layer.scales, offsets, layer.group_size, layer.bits)


class AdaptedConv3x3(nn.Module):
    """A convolution with changes. It has the methods of `Conv3x3`.

    Args:
        base: the layer.
        changes: its changes, in the order in which they are applied.
    """

    def __init__(self, base: Conv3x3, changes: Sequence[Change]):
        super().__init__()
        self.base = base
        self.changes = list(changes)

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
        """Return the changed bias [out]."""
        return change_bias(self.base, self.changes)

    def convolve_without_bias(self, x: mx.array) -> mx.array:
        """Return the convolution before the bias is added, as `Conv3x3` does."""
        return self.merge().convolve_without_bias(x)

    def convolve_upsampled(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        """Return the convolution of `upsample_nearest(x)`, as `Conv3x3` does."""
        return self.merge().convolve_upsampled(x, size)

    def merge(self) -> Conv3x3:
        """Return a layer with the changed weight, which computes the same; see `merged_layers`."""
        base = self.base
        plain = base.to_plain() if isinstance(base, QuantizedConv3x3) else base
        return merge_changes(plain, self.changes)


class AdaptedGroupNorm(GroupNorm):
    """A GroupNorm with changes of its weight [C] and bias [C].

    Args:
        base: the layer.
        changes: its changes, in the order in which they are applied.
    """

    def __init__(self, base: GroupNorm, changes: Sequence[Change]):
        nn.Module.__init__(self)
        self.num_groups, self.eps = base.num_groups, base.eps
        self.base = base
        self.changes = list(changes)

    def __call__(
        self, x: mx.array, activation: Activation | None = None, shifts: Sequence[mx.array] = ()
    ) -> mx.array:
        return self.merge()(x, activation, shifts)

    @property
    def weight(self) -> mx.array:  # type: ignore[override]
        """Return the changed weight [C]."""
        return change_weight(self.base, self.changes)

    @property
    def bias(self) -> mx.array:  # type: ignore[override]
        """Return the changed bias [C]."""
        return change_bias(self.base, self.changes)

    def merge(self) -> GroupNorm:
        """Return a layer with the changed weight and bias; see `merged_layers`."""
        return merge_changes(self.base, self.changes)


class AdaptedLayerNorm(nn.LayerNorm):
    """A LayerNorm with changes of its weight [C] and bias [C].

    Args:
        base: the layer.
        changes: its changes, in the order in which they are applied.
    """

    def __init__(self, base: nn.LayerNorm, changes: Sequence[Change]):
        nn.Module.__init__(self)
        self.eps, self.dims = base.eps, base.dims
        self.base = base
        self.changes = list(changes)

    def __call__(self, x: mx.array) -> mx.array:
        return self.merge()(x)

    @property
    def weight(self) -> mx.array:  # type: ignore[override]
        """Return the changed weight [C]."""
        return change_weight(self.base, self.changes)

    @property
    def bias(self) -> mx.array:  # type: ignore[override]
        """Return the changed bias [C]."""
        return change_bias(self.base, self.changes)

    def merge(self) -> nn.LayerNorm:
        """Return a layer with the changed weight and bias; see `merged_layers`."""
        return merge_changes(self.base, self.changes)


PlainLayer = Linear | QuantizedLinear | Conv3x3 | GroupNorm | nn.LayerNorm
AdaptedLayer = LoRALinear | AdaptedLinear | AdaptedConv3x3 | AdaptedGroupNorm | AdaptedLayerNorm
Layer = PlainLayer | AdaptedLayer
T = TypeVar("T", bound=PlainLayer)


def merge_changes(base: T, changes: Sequence[Change]) -> T:
    """Return a copy of a layer with the weight and the bias after changes."""
    layer = copy.copy(base)
    layer.weight = change_weight(base, changes)
    bias = change_bias(base, changes)
    if bias is not None:
        layer.bias = bias
    return layer


def change_weight(base: PlainLayer, changes: Sequence[Change]) -> mx.array:
    """Return the weight of a layer after changes, computed in float32 and converted once."""
    factors: Any = tree_flatten(list(changes))
    dtype = mx.result_type(base.weight, *(array for _, array in factors))
    return apply_changes(changes, base.weight).astype(dtype)


def change_bias(base: PlainLayer, changes: Sequence[Change]) -> Any:
    """Return the bias of a layer after changes; None if there is none."""
    bias: mx.array | None = base.get("bias")
    for change in changes:
        bias = change.change_bias(bias)
    return bias


def find_layers(network: nn.Module) -> dict[str, Layer]:
    """Return the layers that an adapter can change, or has changed, by their paths.

    They are all that have a weight, except embeddings.
    """
    layers = network.filter_and_map(
        nn.Module.valid_child_filter, is_leaf_fn=lambda _, __, child: isinstance(child, Layer)
    )
    return dict(tree_flatten(layers, is_leaf=nn.Module.is_module))


def find_adapted(network: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the layers that an adapter has changed, by their paths."""
    layers = find_layers(network).items()
    return {path: layer for path, layer in layers if isinstance(layer, AdaptedLayer)}


def replace_layers(network: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Put layers into a network, at their paths."""
    if layers:
        network.update_modules(tree_unflatten(list(layers.items())))


def get_weight_shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape that the layer's weight has without changes and quantization."""
    base = get_base(layer)
    if isinstance(base, QuantizedLinear):
        out_dims, groups = base.scales.shape
        return (out_dims, groups * base.group_size)
    return base.weight_shape if isinstance(base, QuantizedConv3x3) else base.weight.shape


def get_base(layer: Layer) -> PlainLayer:
    """Return the layer without its changes."""
    return layer.base if isinstance(layer, AdaptedLayer) else layer


def list_changes(layer: Layer) -> list[Change]:
    """Return the changes of a layer, in the order in which they are applied."""
    if isinstance(layer, LoRALinear):
        return [LowRank(layer.down, layer.up)]
    return list(layer.changes) if isinstance(layer, AdaptedLayer) else []


def add_changes(layer: Layer, added: Sequence[Change], merged: bool = False) -> AdaptedLayer:
    """Return the layer with changes, after any that it has.

    Args:
        merged: merge low-rank changes of a linear layer, too. That is faster in each step, and
            takes a copy of the weight. The layer stays so. A quantized layer is never merged.
    """
    changes = list_changes(layer)
    for change in added:
        if changes and isinstance(change, LowRank) and isinstance(changes[-1], LowRank):
            changes[-1] = changes[-1].append(change)
        else:
            changes.append(change)
    base = get_base(layer)
    if isinstance(base, Conv3x3):
        return AdaptedConv3x3(base, changes)
    if isinstance(base, GroupNorm):
        return AdaptedGroupNorm(base, changes)
    if isinstance(base, nn.LayerNorm):
        return AdaptedLayerNorm(base, changes)
    merged = (merged or isinstance(layer, AdaptedLinear)) and not isinstance(base, QuantizedLinear)
    first, *others = changes
    if isinstance(first, LowRank) and not others and not merged:
        return LoRALinear(base, first.down, first.up)
    return AdaptedLinear(base, changes)
