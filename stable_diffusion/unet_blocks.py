"""The blocks that the UNet and the control networks are built from.

Rombach et al. 2022 (arXiv:2112.10752); the blocks are those of diffusers.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from .attention import Attention, KeysValues
from .config.networks import UNetConfig
from .config.unet_encoder import MID_WITH_ATTENTION, UNetEncoderConfig
from .layers import Conv3x3, GroupNorm, Linear, geglu
from .resnet_block import ResnetBlock2D

Text = Iterator[KeysValues]  # of the text, for each attention to it in turn

TRANSFORMER_NORM_EPS = 1e-6  # as in diffusers' Transformer2DModel, which ignores norm_eps


class FeedForward(nn.Module):
    """The two-layer perceptron of a transformer block, whose first layer is a GEGLU."""

    def __init__(self, dims: int):
        super().__init__()
        self.proj_in = Linear(dims, 8 * dims)  # hidden and gate, 4 × dims each
        self.proj_out = Linear(4 * dims, dims)

    def __call__(self, x: mx.array, *, norm: nn.LayerNorm, residual: mx.array) -> mx.array:
        """Return residual + the perceptron of norm(x), all [B, L, D]."""
        return self.proj_out(geglu(self.proj_in, x, norm), residual=residual)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, and a perceptron, each added to its input.

    Without self-attention the first is attention to the text, too.
    """

    def __init__(self, dims: int, num_heads: int, memory_dims: int, has_self_attention: bool):
        super().__init__()
        self.has_self_attention = has_self_attention
        self.norm1 = nn.LayerNorm(dims)
        first_dims = None if has_self_attention else memory_dims
        self.attn1 = Attention(dims, num_heads, first_dims, bias=False)
        self.norm2 = nn.LayerNorm(dims)
        self.attn2 = Attention(dims, num_heads, memory_dims, bias=False)
        self.norm3 = nn.LayerNorm(dims)
        self.ff = FeedForward(dims)

    @property
    def n_texts(self) -> int:
        """Return how many keys and values a call takes from `text`."""
        return 1 if self.has_self_attention else 2

    def __call__(self, x: mx.array, text: Text) -> mx.array:
        """Return the output [B, L, D] for x [B, L, D]; take what it needs from `text`."""
        memory = None if self.has_self_attention else next(text)
        x = self.attn1(x, memory, norm=self.norm1, residual=x)
        x = self.attn2(x, next(text), norm=self.norm2, residual=x)
        return self.ff(x, norm=self.norm3, residual=x)

    def project_text(self, encoder_x: mx.array) -> list[KeysValues]:
        """Return the keys and values that a call takes from `text`, for embeddings [B, N, D]."""
        attentions = [self.attn2] if self.has_self_attention else [self.attn1, self.attn2]
        return [attention.project_memory(encoder_x) for attention in attentions]


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of [B, H, W, C], with a skip connection."""

    def __init__(self, config: UNetEncoderConfig, level: int, depth: int, has_self_attention: bool):
        super().__init__()
        dims = config.block_out_channels[level]
        block = dims, config.heads[level], config.cross_attention_dim, has_self_attention
        self.norm = GroupNorm(config.norm_num_groups, dims, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = Linear(dims, dims)
        self.transformer_blocks = [TransformerBlock(*block) for _ in range(depth)]
        self.proj_out = Linear(dims, dims)

    def __call__(self, x: mx.array, text: Text) -> mx.array:
        pixels = x.flatten(1, 2)  # [B, HW, C]
        h = self.proj_in(pixels, norm=self.norm)
        for block in self.transformer_blocks:
            h = block(h, text)
        return self.proj_out(h, residual=pixels).reshape(x.shape)


class Downsample(nn.Module):
    """A convolution that halves height and width, rounded up."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x)


class Upsample(nn.Module):
    """A convolution of pixels doubled along both sides, cut to the size of the skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def __call__(self, x: mx.array, size: tuple[int, int]) -> mx.array:
        return self.conv.convolve_upsampled(x, size)


class DownBlock(nn.Module):
    """Residual blocks, each with a transformer if the config says so, then half the size.

    The last block keeps the size.
    """

    def __init__(self, config: UNetEncoderConfig, level: int, in_channels: int, is_last: bool):
        super().__init__()
        channels = config.block_out_channels[level]
        n_layers = config.layers[level]
        inputs = [in_channels] + [channels] * (n_layers - 1)
        self.resnets = [_make_resnet(config, n, channels) for n in inputs]
        attends = config.down_block_types[level] == "CrossAttnDownBlock2D"
        self.attentions = _make_transformers(config, level, config.down_depths[level], attends)
        if not is_last:
            self.downsample = Downsample(channels)

    def __call__(
        self, x: mx.array, temb: mx.array, text: Text, inner: mx.array | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        """Return the output, and the skip connections: the results of all layers, in order.

        Args:
            inner: what a T2I-Adapter adds: to the last layer if the block has transformers, and
                else to the output. In both cases to the skip connection, too.
        """
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions:
                x = self.attentions[i](x, text)
            skips.append(x)
        if inner is not None and self.attentions:
            x = skips[-1] = x + inner
        if "downsample" in self:
            x = self.downsample(x)
            skips.append(x)
        if inner is not None and not self.attentions:
            x = skips[-1] = x + inner
        return x, skips


class MidBlock(nn.Module):
    """The bottom of the U: a transformer between two residual blocks, or one residual block."""

    def __init__(self, config: UNetEncoderConfig):
        super().__init__()
        channels = config.block_out_channels[-1]
        attends = config.mid_block_type == MID_WITH_ATTENTION
        n_resnets = 2 if attends else 1
        self.resnets = [_make_resnet(config, channels, channels) for _ in range(n_resnets)]
        self.attentions = [Transformer2D(config, -1, config.mid_depth, True)] if attends else []

    def __call__(self, x: mx.array, temb: mx.array, text: Text) -> mx.array:
        x = self.resnets[0](x, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, text), temb)
        return x


class UpBlock(nn.Module):
    """Residual blocks as in a `DownBlock`, each also given a skip connection, then twice the size.

    The last block keeps the size.
    """

    def __init__(self, config: UNetConfig, level: int, in_channels: int, is_last: bool):
        super().__init__()
        channels = config.block_out_channels[level]
        # The skips come in the reverse order of the down path: the layers of this level, and last
        # the input of the level.
        level_input = config.block_out_channels[max(level - 1, 0)]
        skips = [channels] * config.layers[level] + [level_input]
        inputs = [in_channels] + [channels] * (len(skips) - 1)
        self.resnets = [
            _make_resnet(config, n + skip, channels) for n, skip in zip(inputs, skips, strict=True)
        ]
        attends = config.up_block_types[-1 - level] == "CrossAttnUpBlock2D"
        self.attentions = _make_transformers(config, level, config.up_depths[-1 - level], attends)
        if not is_last:
            self.upsample = Upsample(channels)

    def __call__(self, x: mx.array, temb: mx.array, text: Text, skips: list[mx.array]) -> mx.array:
        """Return the output; take the skip connections that it needs off the end of `skips`."""
        for layer in range(len(self.resnets)):
            x = self.run_layer(layer, x, temb, text, skips.pop())
        if "upsample" in self:
            _, height, width, _ = skips[-1].shape
            x = self.upsample(x, (height, width))
        return x

    def run_layer(
        self, layer: int, x: mx.array, temb: mx.array, text: Text, skip: mx.array
    ) -> mx.array:
        """Return the output of a residual block and its transformer, if it has one."""
        x = self.resnets[layer](mx.concatenate([x, skip], axis=-1), temb)
        return self.attentions[layer](x, text) if self.attentions else x


def _make_resnet(config: UNetEncoderConfig, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        activation=config.act_fn,
        temb_channels=count_temb_channels(config),
    )


def _make_transformers(
    config: UNetEncoderConfig, level: int, depths: Sequence[int], attends: bool
) -> list[Transformer2D]:
    """Return the transformers of a block, one for each depth, if the block attends."""
    has_self_attention = config.has_self_attention[level]
    return [Transformer2D(config, level, d, has_self_attention) for d in depths if attends]


def count_temb_channels(config: UNetEncoderConfig) -> int:
    """Return the width of the embedding of the time."""
    return 4 * config.block_out_channels[0]
