"""The residual block of convolutions that the UNet and the VAE share."""

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS
from .device import cpu_kernels
from .layers import Conv3x3, GroupNorm, Linear


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
        act = self.activation
        if cpu_kernels.supports(x):
            h = self.conv1(x, norm=self.norm1, activation=act, bias=time)
            return self.conv2(h, norm=self.norm2, activation=act, residual=self._skip(x))
        # Adding bias and time to the result of the convolution would be one more pass over it. The
        # next norm adds them in its first pass.
        shifts = [self.conv1.bias] if time is None else [self.conv1.bias, time]
        h = self.conv1.convolve_without_bias(self.norm1(x, act))
        return self.conv2(self.norm2(h, act, shifts), residual=self._skip(x))

    def _skip(self, x: mx.array) -> mx.array:
        """Return x with the channels of the output."""
        return self.conv_shortcut(x) if "conv_shortcut" in self else x
