"""The autoencoder between pictures and latents, diffusers' AutoencoderKL (arXiv:2112.10752)."""

import math

import mlx.core as mx
import mlx.nn as nn

from .config.networks import AutoencoderConfig
from .layers import Attention, Conv3x3, GroupNorm, Linear, ResnetBlock2D, silu

NORM_EPS = 1e-6  # diffusers' value for every norm of the VAE; no config says it

# Bounds of the log variance, diffusers' DiagonalGaussianDistribution.
MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class AttentionBlock(Attention):
    """Single-head attention over the positions of [B, H, W, C], beside a skip connection."""

    def __init__(self, dims: int, groups: int):
        super().__init__(dims, num_heads=1)
        self.group_norm = GroupNorm(groups, dims, eps=NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        pixels = x.flatten(1, 2)  # [B, HW, C]
        return super().__call__(pixels, norm=self.group_norm, added=pixels).reshape(x.shape)


class Downsample(nn.Module):
    """Half the height and width; the padding is right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2, padding=0)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv.of_upsampled(x)


class Block(nn.Module):
    """Residual blocks, then half or twice the size where asked."""

    def __init__(
        self,
        config: AutoencoderConfig,
        in_channels: int,
        out_channels: int,
        n_layers: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (n_layers - 1)
        self.resnets = [_resnet(config, n, out_channels) for n in inputs]
        if downsample:
            self.downsample = Downsample(out_channels)
        if upsample:
            self.upsample = Upsample(out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        for resnet in self.resnets:
            x = resnet(x)
        if "downsample" in self:
            x = self.downsample(x)
        if "upsample" in self:
            x = self.upsample(x)
        return x


class MidBlock(nn.Module):
    """Two residual blocks, with attention in between where the config has it."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = [_resnet(config, channels, channels) for _ in range(2)]
        attends = config.mid_block_add_attention
        self.attentions = [AttentionBlock(channels, config.norm_num_groups)] if attends else []

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


def _resnet(config: AutoencoderConfig, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=NORM_EPS,
        activation=config.act_fn,
    )


class Encoder(nn.Module):
    """Pictures [B, H, W, 3] → mean and log variance [B, H / f, W / f, 2C], not yet split."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels
        last = len(channels) - 1
        self.conv_in = Conv3x3(config.in_channels, channels[0])
        self.down_blocks = [
            Block(
                config,
                channels[max(level - 1, 0)],
                channels[level],
                config.layers_per_block,
                downsample=level < last,
            )
            for level in range(len(channels))
        ]
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], eps=NORM_EPS)
        self.conv_out = Conv3x3(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(x, self.conv_norm_out, silu)


class Decoder(nn.Module):
    """Latents [B, h, w, C] → pictures [B, f·h, f·w, 3]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels[::-1]
        last = len(channels) - 1
        self.conv_in = Conv3x3(config.latent_channels, channels[0])
        self.mid_block = MidBlock(config)
        self.up_blocks = [
            Block(
                config,
                channels[max(level - 1, 0)],
                channels[level],
                config.layers_per_block + 1,
                upsample=level < last,
            )
            for level in range(len(channels))
        ]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], eps=NORM_EPS)
        self.conv_out = Conv3x3(channels[-1], config.out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, self.conv_norm_out, silu)


class Autoencoder(nn.Module):
    """Pictures ↔ latents of about unit variance."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = Linear(2 * channels, 2 * channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = Linear(channels, channels)

    def encode(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Mean and log variance of the scaled latents, [B, H / f, W / f, C] each.

        `x` [B, H, W, 3] is in [-1, 1], its sides multiples of the factor f.
        """
        x = self.encoder(x)
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, logvar = x.split(2, axis=-1)
        scale = self.config.scaling_factor
        mean = mean * scale
        logvar = mx.clip(logvar, MIN_LOGVAR, MAX_LOGVAR) + 2 * math.log(abs(scale))
        return mean, logvar

    def decode(self, z: mx.array) -> mx.array:
        """Pictures [B, f·h, f·w, 3], about in [-1, 1], of scaled latents [B, h, w, C]."""
        return self.decoder(self.decoder_input(z))

    def decoder_input(self, z: mx.array) -> mx.array:
        """What the decoder takes for scaled latents, of the same shape."""
        z = z / self.config.scaling_factor
        return self.post_quant_conv(z) if "post_quant_conv" in self else z

    def __call__(self, x: mx.array) -> mx.array:
        """A picture through the bottleneck and back, without noise."""
        mean, _ = self.encode(x)
        return self.decode(mean)
