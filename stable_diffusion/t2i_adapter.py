"""T2I-Adapters: small networks from a picture to features for the UNet (arXiv:2302.08453).

They do not depend on the step: the UNet adds the same features in every step.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .activations import relu
from .attention import KeysValues
from .config.controlnet import FULL_XL, LIGHT, LIGHT_NARROWING, T2IAdapterConfig
from .layers import Conv3x3, Linear, fold_pixels
from .unet import Residuals, TextTime

# Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601), as Pillow has them.
BRIGHTNESS = (0.299, 0.587, 0.114)


class AdapterResnet(nn.Module):
    """Two convolutions with a skip connection; the second is 1×1, but 3×3 in a light adapter."""

    def __init__(self, channels: int, is_light: bool):
        super().__init__()
        self.block1 = Conv3x3(channels, channels)
        self.block2 = (Conv3x3 if is_light else Linear)(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.block2(relu(self.block1(x)), residual=x)


class AdapterBlock(nn.Module):
    """Residual blocks, at half the size of the input if `halves`."""

    def __init__(self, in_channels: int, out_channels: int, n_resnets: int, halves: bool):
        super().__init__()
        self.halves = halves
        if in_channels != out_channels:
            self.in_conv = Linear(in_channels, out_channels)
        self.resnets = [AdapterResnet(out_channels, False) for _ in range(n_resnets)]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the features [B, h, w, out_channels] of [B, H, W, in_channels]."""
        x = average_pool(x) if self.halves else x
        x = self.in_conv(x) if "in_conv" in self else x
        for resnet in self.resnets:
            x = resnet(x)
        return x


class LightAdapterBlock(nn.Module):
    """Residual blocks between layers that narrow and widen, after halving the size if `halves`."""

    def __init__(self, in_channels: int, out_channels: int, n_resnets: int, halves: bool):
        super().__init__()
        self.halves = halves
        inner = out_channels // LIGHT_NARROWING
        self.in_conv = Linear(in_channels, inner)
        self.resnets = [AdapterResnet(inner, True) for _ in range(n_resnets)]
        self.out_conv = Linear(inner, out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        """Return the features [B, h, w, out_channels] of [B, H, W, in_channels]."""
        x = self.in_conv(average_pool(x) if self.halves else x)
        for resnet in self.resnets:
            x = resnet(x)
        return self.out_conv(x)


class T2IAdapter(nn.Module):
    """The network from a picture to features: diffusers' T2IAdapter, of each of its types."""

    is_conditional_only = False

    def __init__(self, config: T2IAdapterConfig):
        super().__init__()
        self.config = config
        is_light = config.adapter_type == LIGHT
        width = config.in_channels * config.downscale_factor**2
        if not is_light:
            self.conv_in = Conv3x3(width, config.channels[0])
            width = config.channels[0]
        make_block = LightAdapterBlock if is_light else AdapterBlock
        self.body = []
        for block, (channels, _) in enumerate(config.features):
            halves = block == 2 if config.adapter_type == FULL_XL else block > 0
            self.body.append(make_block(width, channels, config.num_res_blocks, halves))
            width = channels

    def prepare(self, pictures: Sequence[mx.array], types: Sequence[int] = ()) -> list[mx.array]:
        """Return the features of a picture, [B or 1, h, w, C] each, the same for all steps.

        Args:
            pictures: one, [B or 1, H, W, 3] in [0, 1], of the type to compute in.
            types: none.
        """
        (x,) = pictures
        if self.config.in_channels == 1:
            x = (x * mx.array(BRIGHTNESS, x.dtype)).sum(axis=-1, keepdims=True)
        x = fold_pixels(x, self.config.downscale_factor)
        x = self.conv_in(x) if "conv_in" in self else x
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features

    def __call__(
        self,
        x: mx.array,
        timestep: mx.array,
        text: mx.array | Sequence[KeysValues],
        text_time: TextTime | None,
        prepared: Sequence[mx.array],
        scales: Sequence[float | mx.array],
    ) -> Residuals:
        """Return the residuals for the UNet: the features, times the scale.

        Args:
            prepared: the result of `prepare`.
            scales: one number.

        The others have no effect; they are those of `ControlNet`.
        """
        (scale,) = scales
        return Residuals([], None, [each * mx.array(scale, each.dtype) for each in prepared])

    def compute_first_residual(
        self, x: mx.array, prepared: Sequence[mx.array], scales: Sequence[float | mx.array]
    ) -> mx.array | None:
        """Return None: nothing is added to the UNet's first skip connection."""
        return None

    def project_text(self, encoder_x: mx.array) -> list[KeysValues]:
        """Return nothing: the text has no effect."""
        return []


def average_pool(x: mx.array) -> mx.array:
    """Return the means of squares of 2×2, [B, H, W, C] → [B, H/2, W/2, C], rounded up.

    At the edge of an odd size the mean is that of the pixels that there are.
    """
    b, height, width, c = x.shape
    x = mx.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    x = x.reshape(b, x.shape[1] // 2, 2, x.shape[2] // 2, 2, c)
    return x.astype(mx.float32).mean(axis=(2, 4)).astype(x.dtype)
