"""A convolution whose weight is stored in few bits, and unpacked when it is used."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels
from .layers import Conv3x3
from .stored_weights import note_quantized, quantize_now

UNPACKED_NUMBERS = 2**23  # of a weight, 32 MB; the largest of the real models have 29 million
OUTPUTS = 24  # that the kernel computes together


class QuantizedConv3x3(Conv3x3):
    """A `Conv3x3` whose weight is quantized, as a matrix [O, 9 C].

    Scales and offsets are stored in float16, which adds little to the rounding of the weights: the
    error of a weight grows by less than 1 / 1000 of the largest one of its group. They stay in
    bfloat16 if the weight is, so that the kernels multiply it (see `half_weights`).

    Args:
        convolution: the layer to quantize; its C must be a multiple of the group size.
        group_size: how many weights share a scale and an offset.
        bits: of a weight.
    """

    def __init__(self, convolution: Conv3x3, group_size: int, bits: int):
        nn.Module.__init__(self)
        for name in ("stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(convolution, name))
        self.group_size, self.bits = group_size, bits
        matrix = convolution.weight.flatten(1)  # [O, 9 C]
        self.weight, scales, offsets = mx.quantize(matrix, group_size, bits)
        dtype = mx.bfloat16 if matrix.dtype == mx.bfloat16 else mx.float16
        self.scales, self.biases = scales.astype(dtype), offsets.astype(dtype)
        if "bias" in convolution:
            self.bias = convolution.bias
        self.freeze()
        note_quantized(self, convolution)

    def unfreeze(self, *arguments: Any, **options: Any) -> nn.Module:
        """Do nothing, as `nn.QuantizedLinear` does: packed weights have no gradient."""
        return self

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the weight that is not packed, [O, 3, 3, C]."""
        n_outputs, n_groups = self.scales.shape
        return n_outputs, 3, 3, n_groups * self.group_size // 9

    def run_kernel(
        self,
        x: mx.array,
        bias: mx.array,
        norm: cpu_kernels.Norm | None = None,
        activation: cpu_kernels.Activation = cpu_kernels.Activation.NONE,
        residual: mx.array | None = None,
        **options: Any,
    ) -> mx.array:
        """Return the result of `cpu_kernels.conv3x3`, for some outputs at a time.

        So only a part of the weight is unpacked at once.
        """
        quantize_now(self)
        n_outputs, _, _, channels = self.weight_shape
        n_together = max(UNPACKED_NUMBERS // (9 * channels * OUTPUTS), 1) * OUTPUTS
        parts = []
        for first in range(0, n_outputs, n_together):
            part = slice(first, first + n_together)
            packed = (self.weight[part], self.scales[part], self.biases[part])
            weight = cpu_kernels.dequantize(*packed, self.group_size, self.bits)
            arguments = (
                *(x, weight.reshape(-1, 3, 3, channels), bias[..., part], norm, activation),
                None if residual is None else residual[..., part],
            )
            parts.append(cpu_kernels.conv3x3(*arguments, **options))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    def plain_weight(self) -> mx.array:
        """Return the weight [O, 3, 3, C], unpacked by MLX: in float32 on a Linux CPU."""
        quantize_now(self)
        dtype = cpu_kernels.compute_dtype(self.scales.dtype)
        scales, offsets = self.scales.astype(dtype), self.biases.astype(dtype)
        weight = mx.dequantize(self.weight, scales, offsets, self.group_size, self.bits)
        return weight.reshape(self.weight_shape)

    def to_plain(self) -> Conv3x3:
        """Return a `Conv3x3` with the unpacked weight, which is computed only if it is used."""
        n_outputs, _, _, channels = self.weight_shape
        plain = Conv3x3(channels, n_outputs, self.stride[0], self.padding[0], "bias" in self)
        plain.weight = self.plain_weight()
        if "bias" in self:
            plain.bias = self.bias
        return plain

    def _extra_repr(self) -> str:
        n_outputs, _, _, channels = self.weight_shape
        return f"{channels}, {n_outputs}, bits={self.bits}, group_size={self.group_size}"
