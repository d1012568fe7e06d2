"""The denoising network of Stable Diffusion, diffusers' UNet2DConditionModel.

Rombach et al. 2022 (arXiv:2112.10752); for SDXL, Podell et al. 2023 (arXiv:2307.01952).
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS
from .attention import Attention, KeysValues
from .config.networks import MID_WITH_ATTENTION, UNetConfig
from .layers import Conv3x3, GroupNorm, Linear, ResnetBlock2D, geglu
from .time_embedding import TimestepEmbedding, sinusoidal_embedding

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

    def __init__(self, config: UNetConfig, level: int, depth: int, has_self_attention: bool):
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

    def __init__(self, config: UNetConfig, level: int, in_channels: int, is_last: bool):
        super().__init__()
        channels = config.block_out_channels[level]
        n_layers = config.layers[level]
        inputs = [in_channels] + [channels] * (n_layers - 1)
        self.resnets = [_make_resnet(config, n, channels) for n in inputs]
        attends = config.down_block_types[level] == "CrossAttnDownBlock2D"
        self.attentions = _make_transformers(config, level, config.down_depths[level], attends)
        if not is_last:
            self.downsample = Downsample(channels)

    def __call__(self, x: mx.array, temb: mx.array, text: Text) -> tuple[mx.array, list[mx.array]]:
        """Return the output, and the skip connections: the results of all layers, in order."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions:
                x = self.attentions[i](x, text)
            skips.append(x)
        if "downsample" in self:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The bottom of the U: a transformer between two residual blocks, or one residual block."""

    def __init__(self, config: UNetConfig):
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
        for i, resnet in enumerate(self.resnets):
            x = resnet(mx.concatenate([x, skips.pop()], axis=-1), temb)
            if self.attentions:
                x = self.attentions[i](x, text)
        if "upsample" in self:
            _, height, width, _ = skips[-1].shape
            x = self.upsample(x, (height, width))
        return x


def _make_resnet(config: UNetConfig, in_channels: int, out_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        activation=config.act_fn,
        temb_channels=_count_temb_channels(config),
    )


def _make_transformers(
    config: UNetConfig, level: int, depths: Sequence[int], attends: bool
) -> list[Transformer2D]:
    """Return the transformers of a block, one for each depth, if the block attends."""
    has_self_attention = config.has_self_attention[level]
    return [Transformer2D(config, level, d, has_self_attention) for d in depths if attends]


def _count_temb_channels(config: UNetConfig) -> int:
    return 4 * config.block_out_channels[0]


class UNetModel(nn.Module):
    """The network from latents and a time to the prediction of noise, velocity or x_0."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        temb_channels = _count_temb_channels(config)
        self.activation = ACTIVATIONS[config.act_fn]
        self.conv_in = Conv3x3(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(
            channels[0], temb_channels, config.act_fn, config.time_cond_proj_dim
        )
        n_inputs = config.projection_class_embeddings_input_dim
        if config.addition_embed_type == "text_time" and n_inputs is not None:
            # With SiLU, as in diffusers, even if act_fn says something else.
            self.add_embedding = TimestepEmbedding(n_inputs, temb_channels, "silu")

        levels = range(len(channels))
        bottom = levels[-1]
        self.down_blocks = [
            DownBlock(config, level, channels[max(level - 1, 0)], is_last=level == bottom)
            for level in levels
        ]
        if config.mid_block_type is not None:
            self.mid_block = MidBlock(config)
        self.up_blocks = [
            UpBlock(config, level, channels[min(level + 1, bottom)], is_last=level == 0)
            for level in reversed(levels)
        ]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = Conv3x3(channels[0], config.out_channels)

    def __call__(
        self,
        x: mx.array,
        timestep: mx.array,
        encoder_x: mx.array | Sequence[KeysValues],
        text_time: tuple[mx.array, mx.array] | None = None,
        guidance: mx.array | None = None,
    ) -> mx.array:
        """Return the prediction [B, h, w, C] of noise, velocity or x_0, as the model was trained.

        Args:
            x: latents [B, h, w, C], scaled to unit variance; any height and width.
            timestep: the time on the training schedule, [B] or one for all.
            encoder_x: text embeddings [B, N, D], or the result of `project_text` for them.
            text_time: for SDXL, the pooled text [B, P] and the six time ids [B, 6]: original
                height and width, crop top and left, target height and width, in pixels.
            guidance: for a network that takes it, the result of `embed_guidance`, [B or 1, G].

        Raises:
            ValueError: if `text_time` is given to a network that is not SDXL's.
        """
        temb = self._embed_time(timestep, text_time, guidance, x.dtype)
        if isinstance(encoder_x, mx.array):
            encoder_x = self.project_text(encoder_x)
        text = iter(encoder_x)
        x = self.conv_in(x)
        skips = [x]
        for down_block in self.down_blocks:
            x, block_skips = down_block(x, temb, text)
            skips.extend(block_skips)
        if "mid_block" in self:
            x = self.mid_block(x, temb, text)
        for up_block in self.up_blocks:
            x = up_block(x, temb, text, skips)
        return self.conv_out(x, norm=self.conv_norm_out, activation=self.activation)

    def project_text(self, encoder_x: mx.array) -> list[KeysValues]:
        """Return the keys and values of text embeddings [B, N, D], the same at every step."""
        middle = [self.mid_block] if "mid_block" in self else []
        blocks = (*self.down_blocks, *middle, *self.up_blocks)
        transformers = [transformer for block in blocks for transformer in block.attentions]
        return [
            keys_values
            for transformer in transformers
            for block in transformer.transformer_blocks
            for keys_values in block.project_text(encoder_x)
        ]

    def _embed_time(
        self,
        timestep: mx.array,
        text_time: tuple[mx.array, mx.array] | None,
        guidance: mx.array | None,
        dtype: mx.Dtype,
    ) -> mx.array:
        """Return the embedding of the time, [B or 1, temb_channels], after the activation."""
        timestep = mx.array(timestep).reshape(-1)
        sinusoids = self._embed_numbers(timestep, self.config.block_out_channels[0], dtype)
        if guidance is not None:
            sinusoids = sinusoids + self.time_embedding.cond_proj(guidance.astype(dtype))
        temb = self.time_embedding(sinusoids)
        if text_time is not None:
            pooled, time_ids = text_time
            dims = self.config.addition_time_embed_dim
            if dims is None:
                raise ValueError(
                    "text_time is for the UNet of SDXL, and this one is of another kind"
                )
            ids = self._embed_numbers(time_ids, dims, dtype)
            ids = ids.flatten(1)  # [B, 6 × addition_time_embed_dim]
            temb = temb + self.add_embedding(mx.concatenate([pooled, ids], axis=-1))
        return self.activation(temb)

    def _embed_numbers(self, values: mx.array, dims: int, dtype: mx.Dtype) -> mx.array:
        config = self.config
        return sinusoidal_embedding(values, dims, config.flip_sin_to_cos, config.freq_shift).astype(
            dtype
        )
