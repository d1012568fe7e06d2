"""TAESD, a tiny VAE: diffusers' AutoencoderTiny (github.com/madebyollin/taesd).

It has no norms and no attention. It is faster than `vae.Autoencoder`, and its pictures are a little
less accurate. Its latents are the scaled latents of the sampler. Parts are numbered as
in the files, also those without weights.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS, Activation, relu
from .config.autoencoder_tiny import AutoencoderTinyConfig
from .device import cpu_kernels
from .layers import Conv3x3
from .vae import MIN_LOGVAR, NetworkPair

Layer = Callable[..., mx.array]  # a module, or an activation

MAX_LATENT = 3  # the decoder squeezes latents into (-3, 3)


class TinyBlock(nn.Module):
    """Three 3×3 convolutions with activations between them, added to their input."""

    def __init__(self, channels: int, activation: Activation):
        super().__init__()
        self.conv: list[Layer] = [
            Conv3x3(channels, channels),
            activation,
            Conv3x3(channels, channels),
            activation,
            Conv3x3(channels, channels),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        h = x
        for layer in self.conv[:-1]:
            h = layer(h)
        return relu(self.conv[-1](h, residual=x))


class TinyUpsample(Conv3x3):
    """A convolution without bias of pixels that are first doubled along both sides."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, bias=False)

    def __call__(self, x: mx.array, **options: Any) -> mx.array:
        return self.convolve_upsampled(x, **options)


class TinyEncoder(nn.Module):
    """The network from pictures [B, H, W, 3] in [-1, 1] to latents [B, H / f, W / f, C]."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        width = config.encoder_block_out_channels[0]
        activation = ACTIVATIONS[config.act_fn]
        self.layers: list[Layer] = []
        for level, n_blocks in enumerate(config.num_encoder_blocks):
            if level == 0:
                self.layers.append(Conv3x3(config.in_channels, width))
            else:
                self.layers.append(Conv3x3(width, width, stride=2, bias=False))
            self.layers += [TinyBlock(width, activation) for _ in range(n_blocks)]
        self.layers.append(Conv3x3(width, config.latent_channels))

    def __call__(self, x: mx.array) -> mx.array:
        x = self.prepare(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def prepare(self, x: mx.array) -> mx.array:
        """Return pictures in [-1, 1] as the layers take them, in [0, 1]."""
        return (x + 1) / 2


class TinyDecoder(nn.Module):
    """The network from latents [B, h, w, C] to pictures [B, f·h, f·w, 3], about in [-1, 1]."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        width = config.decoder_block_out_channels[0]
        activation = ACTIVATIONS[config.act_fn]
        self.layers: list[Layer] = [Conv3x3(config.latent_channels, width), activation]
        last = len(config.num_decoder_blocks) - 1
        for level, n_blocks in enumerate(config.num_decoder_blocks):
            self.layers += [TinyBlock(width, activation) for _ in range(n_blocks)]
            if level < last:
                # The doubling has a number of its own in the files.
                self.layers += [nn.Identity(), TinyUpsample(width)]
        self.layers.append(Conv3x3(width, config.out_channels))

    @property
    def first(self) -> Any:
        """Return the first layer, a convolution."""
        return self.layers[0]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.prepare(x)
        for layer in self.layers:
            x = layer(x)
        return self.finish(x)

    def prepare(self, x: mx.array) -> mx.array:
        """Return latents as the layers take them, squeezed into (-3, 3)."""
        return mx.tanh(x / MAX_LATENT) * MAX_LATENT

    def finish(self, x: mx.array) -> mx.array:
        """Return what the last layer gives, about in [0, 1], as pictures about in [-1, 1]."""
        return x * 2 - 1


class AutoencoderTiny(NetworkPair):
    """The tiny VAE. There is no `encoder` if the config says that it is missing.

    Diffusers' `forward` also stores the latents in bytes between encoding and decoding.
    """

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        self.config = config
        if config._missing_encoder is None:
            self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    @property
    def dtype(self) -> mx.Dtype:
        """Return the type that the networks compute in."""
        return cpu_kernels.compute_dtype(self.decoder.first.weight.dtype)

    def scale(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return mean and log variance of the scaled latents for what the encoder returns.

        It returns the latents themselves, so their variance is the least that there is.
        """
        mean = x.astype(mx.float32) * self.config.scaling_factor
        return mean, mx.full(mean.shape, MIN_LOGVAR)

    def unscale(self, z: mx.array) -> mx.array:
        """Return the input of the decoder for scaled latents, of the same shape."""
        # Divided in float32: a small factor could exceed half precision.
        return (z.astype(mx.float32) / self.config.scaling_factor).astype(self.dtype)
