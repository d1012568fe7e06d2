"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C].

A layer is given the norm before it and the residual after it, so that a kernel can compute all of
it in one pass over the memory. Every layer with these arguments keeps one contract:

    layer(x, norm=n, residual=r) = r + layer(n(x))

An argument that is left out does nothing. So x + attention(norm(x)) is written
attention(x, norm=norm, residual=x). The kernels are those of `device.cpu_kernels`, for a Linux
CPU; on other devices MLX's operations compute the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels

Activation = Callable[[mx.array], mx.array]
KeysValues = tuple[mx.array, mx.array]  # [B, M, D] each
Norm = nn.LayerNorm | nn.GroupNorm


def silu(x: mx.array) -> mx.array:
    """Return x times the logistic function of x."""
    return _activate(x, cpu_kernels.Activation.SILU, nn.silu)


def gelu(x: mx.array) -> mx.array:
    """Return x times the normal distribution function of x."""
    return _activate(x, cpu_kernels.Activation.GELU, nn.gelu)


def quick_gelu(x: mx.array) -> mx.array:
    """Return CLIP's approximation of `gelu`."""
    return _activate(x, cpu_kernels.Activation.QUICK_GELU, nn.gelu_fast_approx)


def _activate(x: mx.array, activation: cpu_kernels.Activation, plain: Activation) -> mx.array:
    return cpu_kernels.try_kernels(x, lambda: cpu_kernels.activate(x, activation), lambda: plain(x))


# Keyed by the names in config files; `config.ACTIVATIONS` lists the same names.
ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "mish": nn.mish,
    "gelu": gelu,
    "relu": nn.relu,
    "quick_gelu": quick_gelu,
}


class LinearLayer(Protocol):
    """A layer from [..., D] to [..., O] that keeps the contract of this module."""

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array: ...


class Linear(nn.Linear):
    """A fully connected layer with the contract of this module; its weight is [O, D]."""

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        return _apply(self, super().__call__, x, norm, residual)

    def full_weight(self) -> mx.array:
        """Return the weight [O, D] that the kernels multiply with."""
        return self.weight

    def to_quantized(self, *arguments: Any, **options: Any) -> "QuantizedLinear":
        """Return the layer with a quantized weight; MLX's layer has the same arguments."""
        return QuantizedLinear.from_linear(self, *arguments, **options)


class QuantizedLinear(nn.QuantizedLinear):
    """A `Linear` whose weight is quantized."""

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        return _apply(self, super().__call__, x, norm, residual)

    def full_weight(self) -> mx.array:
        """Return the weight [O, D], dequantized, that the kernels multiply with."""
        offsets = self["biases"]
        return cpu_kernels.dequantize(self.weight, self.scales, offsets, self.group_size, self.bits)


def multiply(x: mx.array, weight: mx.array, residual: mx.array | None = None) -> mx.array:
    """Return residual + x [..., D] times the transpose of the weight [O, D]: [..., O]."""
    return cpu_kernels.try_kernels(
        x,
        lambda: cpu_kernels.linear(x, [weight], [None], residual=residual)[0],
        lambda: _add(residual, x @ weight.T),
    )


def apply_each(
    layers: Sequence[LinearLayer], x: mx.array, norm: Norm | None = None
) -> list[mx.array]:
    """Return layer(norm(x)) for each of some linear layers whose weights have the same shape."""

    def plain() -> list[mx.array]:
        y = _normalize(norm, x)
        return [layer(y) for layer in layers]

    products = [layer for layer in layers if isinstance(layer, Linear | QuantizedLinear)]
    if len(products) < len(layers):  # a LoRA is more than one product
        return plain()
    return cpu_kernels.try_kernels(x, lambda: _multiply_by_kernels(products, x, norm), plain)


def geglu(layer: LinearLayer, x: mx.array, norm: Norm) -> mx.array:
    """Return half of layer(norm(x)) [..., 2D] times the GELU of the rest (arXiv:2002.05202)."""

    def plain() -> mx.array:
        hidden, gate = layer(x, norm=norm).split(2, axis=-1)
        return hidden * gelu(gate)

    if not isinstance(layer, Linear | QuantizedLinear):
        return plain()
    kernel = partial(_multiply_by_kernels, [layer], x, norm, gated=True)
    return cpu_kernels.try_kernels(x, lambda: kernel()[0], plain)


def _apply(
    layer: Linear | QuantizedLinear,
    plain: Activation,
    x: mx.array,
    norm: Norm | None,
    residual: mx.array | None,
) -> mx.array:
    """Return residual + layer(norm(x)); `plain` is the layer by MLX's own operations."""
    return cpu_kernels.try_kernels(
        x,
        lambda: _multiply_by_kernels([layer], x, norm, residual)[0],
        lambda: _add(residual, plain(_normalize(norm, x))),
    )


def _multiply_by_kernels(
    layers: Sequence[Linear | QuantizedLinear],
    x: mx.array,
    norm: Norm | None,
    residual: mx.array | None = None,
    gated: bool = False,
) -> list[mx.array]:
    weights = [layer.full_weight() for layer in layers]
    biases = [layer.get("bias") for layer in layers]
    return cpu_kernels.linear(x, weights, biases, _prepare_norm(norm, x), residual, gated)


def _prepare_norm(norm: Norm | None, x: mx.array) -> cpu_kernels.Norm | None:
    """Return a norm as the kernels take it; a GroupNorm with the statistics of x."""
    if isinstance(norm, nn.GroupNorm):
        return _compute_statistics(norm, x)
    return None if norm is None else cpu_kernels.Norm(norm.weight, norm.bias, norm.eps)


def _compute_statistics(norm: nn.GroupNorm, x: mx.array) -> cpu_kernels.Norm:
    return cpu_kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _normalize(norm: Norm | None, x: mx.array) -> mx.array:
    """Return norm(x), or x if there is no norm."""
    return x if norm is None else norm(x)


def _add(residual: mx.array | None, y: mx.array) -> mx.array:
    """Return residual + y, or y if there is no residual."""
    return y if residual is None else residual + y


class GroupNorm(nn.GroupNorm):
    """GroupNorm that groups the channels as PyTorch does (Wu & He 2018, arXiv:1803.08494)."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        plain = super().__call__
        return cpu_kernels.try_kernels(
            x, lambda: cpu_kernels.normalize(x, _compute_statistics(self, x)), lambda: plain(x)
        )


class Conv3x3(nn.Conv2d):
    """3×3 convolution of pictures [B, H, W, C] padded with zeros: [B, h, w, O].

    Args:
        stride: 2 halves height and width, rounded up.
        padding: rows above and columns to the left; there is always 1 below and to the right.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=padding)

    def __call__(
        self,
        x: mx.array,
        *,
        norm: GroupNorm | None = None,
        activation: Activation | None = None,
        bias: mx.array | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Return residual + conv(activation(norm(x))) + bias.

        Args:
            bias: [B or 1, O], one for each picture, in addition to the layer's own.
            residual: [B, h, w, O].
        """
        convolve = super().__call__
        if activation is not None and (norm is None or activation is not silu):
            # The kernels apply SiLU only, and only after a norm.
            x, norm, activation = activation(_normalize(norm, x)), None, None

        def plain() -> mx.array:
            y = _normalize(norm, x)
            y = y if activation is None else activation(y)
            if not self.padding[0]:
                y = mx.pad(y, [(0, 0), (0, 1), (0, 1), (0, 0)])
            y = convolve(y)
            return _add(residual, y if bias is None else y + bias[:, None, None, :])

        def kernel() -> mx.array:
            kinds = cpu_kernels.Activation
            kind = kinds.NONE if activation is None else kinds.SILU
            own_bias = self.bias if bias is None else bias + self.bias
            arrays = x, self.weight, own_bias, _prepare_norm(norm, x), kind, residual
            return cpu_kernels.conv3x3(*arrays, stride=self.stride[0], padding=self.padding[0])

        return cpu_kernels.try_kernels(x, kernel, plain)

    def convolve_upsampled(self, x: mx.array) -> mx.array:
        """Return the convolution of `upsample_nearest(x)`: [B, 2H, 2W, O]."""
        return cpu_kernels.try_kernels(
            x,
            lambda: cpu_kernels.conv3x3(x, self.weight, self.bias, upsample=True),
            lambda: self(upsample_nearest(x)),
        )


def upsample_nearest(x: mx.array) -> mx.array:
    """Repeat every pixel of [B, H, W, C] along both sides: [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, num_heads: int, causal: bool = False
) -> mx.array:
    """Return the scaled dot-product attention of [B, L, D] to [B, M, D] and [B, M, D]: [B, L, D].

    D is split evenly between the heads. If causal, position i attends to positions 0 … i.
    """
    inputs = queries, keys, values
    scale = (queries.shape[-1] // num_heads) ** -0.5

    def plain() -> mx.array:
        heads = (mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2) for x in inputs)
        mask = "causal" if causal else None
        attended = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
        return attended.swapaxes(1, 2).flatten(2)

    kernel = partial(cpu_kernels.attention, *inputs, num_heads, scale, causal)
    return cpu_kernels.try_kernels(queries, kernel, plain)


class Attention(nn.Module):
    """Multi-head attention of `x` [B, L, D] to itself, or to a `memory` [B, M, E].

    Args:
        dims: the width D of `x` and of the output; each head has D / num_heads of it.
        memory_dims: the width E of the memory; None if it is D.
        bias: whether the projections of query, key and value have a bias; the output always has.
    """

    def __init__(
        self, dims: int, num_heads: int, memory_dims: int | None = None, bias: bool = True
    ):
        super().__init__()
        memory_dims = dims if memory_dims is None else memory_dims
        self.num_heads = num_heads
        self.query_proj = Linear(dims, dims, bias=bias)
        self.key_proj = Linear(memory_dims, dims, bias=bias)
        self.value_proj = Linear(memory_dims, dims, bias=bias)
        self.out_proj = Linear(dims, dims)

    def __call__(
        self,
        x: mx.array,
        memory: mx.array | KeysValues | None = None,
        *,
        causal: bool = False,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Return residual + the attention of norm(x) to the memory, or to itself without a memory.

        A memory that is used more than once can be given as the result of `project_memory`.
        """
        if memory is None:
            projections = [self.query_proj, self.key_proj, self.value_proj]
            queries, keys, values = apply_each(projections, x, norm)
        else:
            keys, values = memory if isinstance(memory, tuple) else self.project_memory(memory)
            queries = self.query_proj(x, norm=norm)
        attended = attend(queries, keys, values, self.num_heads, causal)
        return self.out_proj(attended, residual=residual)

    def project_memory(self, memory: mx.array) -> KeysValues:
        """Return the keys and values [B, M, D] of a memory [B, M, E]."""
        return self.key_proj(memory), self.value_proj(memory)


class ResnetBlock2D(nn.Module):
    """Two 3×3 convolutions with norms and a skip connection; the time enters between them.

    `temb_channels` is the width of the time embedding; None in the VAE, which has no time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        activation: str,
        temb_channels: int | None = None,
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        if temb_channels is not None:
            self.time_emb_proj = Linear(temb_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut = Linear(in_channels, out_channels)

    def __call__(self, x: mx.array, temb: mx.array | None = None) -> mx.array:
        """Return the output [B, H, W, out_channels] for x [B, H, W, in_channels].

        `temb` [B or 1, temb_channels] is the time embedding, after its activation.
        """
        time = None if temb is None else self.time_emb_proj(temb)
        h = self.conv1(x, norm=self.norm1, activation=self.activation, bias=time)
        skip = self.conv_shortcut(x) if "conv_shortcut" in self else x
        return self.conv2(h, norm=self.norm2, activation=self.activation, residual=skip)
