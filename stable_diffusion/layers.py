"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C].

A layer is given the norm before it and the residual after it, so that a kernel can compute all of
it in one pass over the memory. Every layer with these arguments keeps one contract:

    layer(x, norm=n, residual=r) = r + layer(n(x))

An argument that is left out does nothing. So x + attention(norm(x)) is written
attention(x, norm=norm, residual=x). The kernels are those of `device.cpu_kernels`, for a Linux
CPU; on other devices MLX's operations compute the same.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from .activations import Activation, gelu, silu
from .device import cpu_kernels, winograd
from .stored_weights import StoredLayer, note_quantized, quantize_now

Norm = nn.LayerNorm | nn.GroupNorm


class LinearLayer(Protocol):
    """A layer from [..., D] to [..., O] that keeps the contract of this module."""

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array: ...


class Linear(StoredLayer, nn.Linear):
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
        quantized: QuantizedLinear = QuantizedLinear.from_linear(self, *arguments, **options)
        if quantized.mode == "affine":
            note_quantized(quantized, self)
        return quantized


class QuantizedLinear(StoredLayer, nn.QuantizedLinear):
    """A `Linear` whose weight is quantized."""

    def __call__(
        self, x: mx.array, *, norm: Norm | None = None, residual: mx.array | None = None
    ) -> mx.array:
        return _apply(self, super().__call__, x, norm, residual)

    def full_weight(self) -> mx.array:
        """Return the weight [O, D], dequantized, that the kernels multiply with.

        It is in bfloat16 if the scales are, and if the kernels multiply it.
        """
        quantize_now(self)
        offsets = self["biases"]
        return cpu_kernels.dequantize(self.weight, self.scales, offsets, self.group_size, self.bits)


def has_half_weights(layer: nn.Module) -> bool:
    """Return whether the weights of a layer, without those of adapters, are in bfloat16.

    Weights of few bits are, if their scales are.
    """
    plain: Any = layer
    for name in ("base", "product"):  # of layers with adapters
        plain = getattr(plain, name, plain)
    stored: mx.array = plain.scales if isinstance(plain, QuantizedLinear) else plain.weight
    return stored.dtype == mx.bfloat16


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

    def __call__(
        self, x: mx.array, activation: Activation | None = None, shifts: Sequence[mx.array] = ()
    ) -> mx.array:
        """Return activation(norm(x + shifts)) for x [B, ..., C] and shifts [C] or [B or 1, C]."""

        def kernel() -> mx.array:
            y = cpu_kernels.normalize(x, _compute_statistics(self, x))
            return y if activation is None else activation(y)

        plain = partial(self._normalize_by_mlx, x, activation, shifts)
        return plain() if shifts else cpu_kernels.try_kernels(x, kernel, plain)

    def _normalize_by_mlx(
        self, x: mx.array, activation: Activation | None, shifts: Sequence[mx.array]
    ) -> mx.array:
        """Return the same by MLX's operations.

        What is computed for each number is computed in the transposed view, so that a compiled GPU
        does it in the two passes that transpose: before the statistics, and back.
        """
        groups = (self.num_groups, x.shape[-1] // self.num_groups)
        y = x.reshape(len(x), -1, *groups).swapaxes(1, 2)  # [B, G, N, C / G]
        for shift in shifts:
            y = y + shift.reshape(-1, groups[0], 1, groups[1])
        # Its sums are in float32, also of half precision; those of `mx.mean` are not.
        normalized = mx.fast.layer_norm(y.flatten(2), None, None, self.eps)
        y = normalized.reshape(y.shape).swapaxes(1, 2)  # [B, N, G, C / G]
        y = self.weight.reshape(groups) * y + self.bias.reshape(groups)
        y = y if activation is None else activation(y)
        return y.reshape(x.shape)


class Conv3x3(StoredLayer, nn.Conv2d):
    """3×3 convolution of pictures [B, H, W, C] padded with zeros: [B, h, w, O].

    Args:
        stride: 2 halves height and width, rounded up.
        padding: rows above and columns to the left; there is always 1 below and to the right.
        bias: whether the layer has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        padding: int = 1,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, 3, stride, padding, bias=bias)

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
        if norm is None:
            x, activation = x if activation is None else activation(x), None
        elif activation not in (None, silu):  # the kernels apply SiLU only
            x, norm, activation = norm(x, activation), None, None

        def plain() -> mx.array:
            y = self._add_bias(
                self.convolve_without_bias(x if norm is None else norm(x, activation))
            )
            return _add(residual, y if bias is None else y + bias[:, None, None, :])

        def kernel() -> mx.array:
            kinds = cpu_kernels.Activation
            kind = kinds.NONE if activation is None else kinds.SILU
            own_bias = self._kernel_bias() if bias is None else bias + self._kernel_bias()
            arrays = x, own_bias, _prepare_norm(norm, x), kind, residual
            return self.run_kernel(*arrays, stride=self.stride[0], padding=self.padding[0])

        return cpu_kernels.try_kernels(x, kernel, plain)

    def convolve_without_bias(self, x: mx.array) -> mx.array:
        """Return the convolution by MLX's operations, before the bias is added."""
        if not self.padding[0]:
            x = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        return mx.conv2d(x, self.plain_weight(), self.stride, self.padding)

    def convolve_upsampled(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        """Return the convolution of `upsample_nearest(x)`: [B, 2H, 2W, O].

        Args:
            size: height and width to cut the doubled pixels to, before they are convolved.
        """
        doubled = 2 * x.shape[1], 2 * x.shape[2]
        height, width = doubled if size is None else size

        def plain() -> mx.array:
            scale = winograd.choose_input_scale(x.dtype)
            y = upsample_nearest(x if scale == 1 else x / scale)[:, :height, :width]
            if scale == 1:
                return Conv3x3.__call__(self, y)  # what a subclass calls may double it again
            return self._add_bias(self.convolve_without_bias(y) * scale)

        if (height, width) != doubled:
            return plain()

        def kernel() -> mx.array:
            return self.run_kernel(x, self._kernel_bias(), upsample=True)

        return cpu_kernels.try_kernels(x, kernel, plain)

    def run_kernel(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        """Return the result of `cpu_kernels.conv3x3` with the layer's weight.

        Args:
            arguments, options: those of the kernel, after the weight.
        """
        return cpu_kernels.conv3x3(x, self.weight, *arguments, **options)

    def plain_weight(self) -> mx.array:
        """Return the weight [O, 3, 3, C] for MLX's own operations."""
        return self.weight

    def _add_bias(self, y: mx.array) -> mx.array:
        """Return y plus the bias, if the layer has one."""
        return y + self.bias if "bias" in self else y

    def _kernel_bias(self) -> mx.array:
        """Return the bias for the kernels: zeros if the layer has none."""
        return self.bias if "bias" in self else mx.zeros(len(self.weight))


def upsample_nearest(x: mx.array) -> mx.array:
    """Repeat every pixel of [B, H, W, C] along both sides: [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def fold_pixels(x: mx.array, factor: int) -> mx.array:
    """Return pixels [B, H, W, C] with squares of them as channels, [B, H/f, W/f, C·f·f].

    It is PyTorch's PixelUnshuffle (the inverse of arXiv:1609.05158, formula 4). Incomplete squares
    are filled up with the pixels at the edge.
    """
    b, height, width, c = x.shape
    x = mx.pad(x, [(0, 0), (0, -height % factor), (0, -width % factor), (0, 0)], mode="edge")
    x = x.reshape(b, x.shape[1] // factor, factor, x.shape[2] // factor, factor, c)
    return x.transpose(0, 1, 3, 5, 2, 4).flatten(3)
