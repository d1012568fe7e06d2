"""The autoencoder between pictures and latents: diffusers' AutoencoderKL (arXiv:2112.10752)."""

import math

import mlx.core as mx
import mlx.nn as nn

from .activations import silu
from .attention import Attention
from .config.networks import AutoencoderConfig
from .device import cpu_kernels
from .layers import Conv3x3, GroupNorm, Linear
from .resnet_block import ResnetBlock2D

NORM_EPS = 1e-6  # diffusers' value for every norm of the VAE; it is in no config

# Bounds of the log variance, as in diffusers' DiagonalGaussianDistribution.
MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class AttentionBlock(Attention):
    """Single-head attention between pixels [B, HW, C], together with the norm of its input."""

    def __init__(self, dims: int, groups: int):
        super().__init__(dims, num_heads=1)
        self.group_norm = GroupNorm(groups, dims, eps=NORM_EPS)


class Downsample(nn.Module):
    """A convolution that halves height and width, with padding below and to the right only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2, padding=0)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x)


class Upsample(nn.Module):
    """A convolution of pixels that are first doubled along both sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv.convolve_upsampled(x)


class Block(nn.Module):
    """Residual blocks, then half or twice the size if `downsample` or `upsample` is set."""

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
        self.resnets = [_make_resnet(config, n, out_channels) for n in inputs]
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
    """Two residual blocks, with attention between them if the config says so."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = [_make_resnet(config, channels, channels) for _ in range(2)]
        attends = config.mid_block_add_attention
        self.attentions = [AttentionBlock(channels, config.norm_num_groups)] if attends else []

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resnets[0](x)
        for attention in self.attentions:
            pixels = x.flatten(1, 2)  # [B, HW, C]
            attended = attention(pixels, norm=attention.group_norm, residual=pixels)
            x = attended.reshape(x.shape)
        return self.resnets[1](x)


def _make_resnet(config: AutoencoderConfig, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=NORM_EPS,
        activation=config.act_fn,
    )


class Encoder(nn.Module):
    """The network from pictures [B, H, W, 3] to mean and log variance [B, H / f, W / f, 2C]."""

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
        return self.conv_out(x, norm=self.conv_norm_out, activation=silu)


class Decoder(nn.Module):
    """The network from latents [B, h, w, C] to pictures [B, f·h, f·w, 3]."""

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
        return self.conv_out(x, norm=self.conv_norm_out, activation=silu)


class NetworkPair(nn.Module):
    """The networks between pictures and scaled latents, of either kind of VAE.

    f is the number of pixels per latent along each side: `config.factor`, 8 in the real models.
    They compute in the type of their weights, except that a Linux CPU computes in float32; what
    they are given is converted to that type. Their results are float32.

    A kind of VAE has its `config`, `encoder`, `decoder` and `dtype`, and `scale` and `unscale`.
    """

    @property
    def latent_channels(self) -> int:
        """Return the number C of channels of the latents."""
        return self.config.latent_channels

    def encode(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return mean and log variance of the scaled latents, [B, H / f, W / f, C] each.

        Args:
            x: pictures [B, H, W, 3] in [-1, 1], whose sides are multiples of f.
        """
        return self.scale(self.encoder(x.astype(self.dtype)))

    def decode(self, z: mx.array) -> mx.array:
        """Return pictures [B, f·h, f·w, 3], about in [-1, 1], for scaled latents [B, h, w, C]."""
        return self.decoder(self.unscale(z)).astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        """Return pictures [B, H, W, 3] after encoding and decoding them, without noise."""
        mean, _ = self.encode(x)
        return self.decode(mean)


class Autoencoder(NetworkPair):
    """The VAE of Stable Diffusion, whose scaled latents have about unit variance."""

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

    @property
    def dtype(self) -> mx.Dtype:
        """Return the type that the networks compute in."""
        return cpu_kernels.compute_dtype(self.decoder.conv_in.weight.dtype)

    def scale(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return mean and log variance of the scaled latents for what the encoder returns.

        Args:
            x: [B, h, w, 2C].
        """
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, logvar = x.astype(mx.float32).split(2, axis=-1)
        scale = self.config.scaling_factor
        mean = mean * scale
        logvar = mx.clip(logvar, MIN_LOGVAR, MAX_LOGVAR) + 2 * math.log(abs(scale))
        return mean, logvar

    def unscale(self, z: mx.array) -> mx.array:
        """Return the input of the decoder for scaled latents, of the same shape."""
        # Divided in float32: a small factor could exceed half precision.
        z = (z.astype(mx.float32) / self.config.scaling_factor).astype(self.dtype)
        return self.post_quant_conv(z) if "post_quant_conv" in self else z
