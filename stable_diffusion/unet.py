"""The denoising network of Stable Diffusion, diffusers' UNet2DConditionModel.

Rombach et al. 2022 (arXiv:2112.10752); for SDXL, Podell et al. 2023 (arXiv:2307.01952).
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS
from .attention import KeysValues, wait_for
from .config.networks import UNetConfig
from .config.unet_encoder import UNetEncoderConfig
from .layers import Conv3x3, GroupNorm
from .time_embedding import TimestepEmbedding, sinusoidal_embedding
from .unet_blocks import DownBlock, MidBlock, Text, UpBlock, count_temb_channels

TextTime = tuple[mx.array, mx.array]  # pooled text and time ids, for SDXL


class Residuals(NamedTuple):
    """What control networks add inside a UNet: arrays [B or 1, h, w, C], at the sizes there.

    A ControlNet that averages over the picture gives [B or 1, 1, 1, C].

    Attributes:
        down: for the skip connections, in order; empty if there is nothing to add to them.
        mid: for the output of the middle; None if there is nothing to add to it.
        inner: for the down blocks, in order, and for the middle of SDXL, from a T2I-Adapter.
    """

    down: list[mx.array]
    mid: mx.array | None
    inner: list[mx.array]


class Encoded(NamedTuple):
    """The results of the encoder of a UNet.

    Attributes:
        x: the output of the middle block, or of the last block if there is none.
        skips: the skip connections, in order, from the first convolution.
    """

    x: mx.array
    skips: list[mx.array]


class UNetEncoder(nn.Module):
    """The part of a UNet down to its middle, which ControlNets copy."""

    def __init__(self, config: UNetEncoderConfig, time_condition: int | None = None):
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        temb_channels = count_temb_channels(config)
        self.activation = ACTIVATIONS[config.act_fn]
        self.conv_in = Conv3x3(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(
            channels[0], temb_channels, config.act_fn, time_condition
        )
        n_inputs = config.projection_class_embeddings_input_dim
        if config.addition_embed_type == "text_time" and n_inputs is not None:
            # With SiLU, as in diffusers, even if act_fn says something else.
            self.add_embedding = TimestepEmbedding(n_inputs, temb_channels, "silu")

        levels = range(len(channels))
        self.down_blocks = [
            DownBlock(config, level, channels[max(level - 1, 0)], is_last=level == levels[-1])
            for level in levels
        ]
        if config.mid_block_type is not None:
            self.mid_block = MidBlock(config)

    def project_text(self, encoder_x: mx.array) -> list[KeysValues]:
        """Return the keys and values of text embeddings [B, N, D], the same at every step."""
        transformers = [each for block in self._list_blocks() for each in block.attentions]
        return [
            keys_values
            for transformer in transformers
            for block in transformer.transformer_blocks
            for keys_values in block.project_text(encoder_x)
        ]

    def _list_blocks(self) -> list[DownBlock | MidBlock | UpBlock]:
        """Return all blocks, in the order in which they take from the text."""
        middle = [self.mid_block] if "mid_block" in self else []
        return [*self.down_blocks, *middle]

    def _iterate_text(self, encoder_x: mx.array | Sequence[KeysValues]) -> Text:
        """Return the keys and values of the text for each attention, in order."""
        return iter(self.project_text(encoder_x) if isinstance(encoder_x, mx.array) else encoder_x)

    def _encode(
        self, x: mx.array, temb: mx.array, text: Text, inner: Sequence[mx.array] = ()
    ) -> Encoded:
        """Return the results for what follows the first convolution, [B, h, w, C].

        Args:
            temb: the result of `_embed_time`.
            inner: what a T2I-Adapter adds: see `Residuals`.
        """
        remaining = iter(inner)
        skips = [x]
        for down_block in self.down_blocks:
            x, block_skips = down_block(x, temb, text, next(remaining, None))
            skips.extend(block_skips)
        if "mid_block" in self:
            x = self.mid_block(x, temb, text)
            for each in remaining:  # of an adapter for SDXL
                x = x + each
        return Encoded(x, skips)

    def _embed_time(
        self,
        timestep: mx.array,
        text_time: TextTime | None,
        dtype: mx.Dtype,
        guidance: mx.array | None = None,
        added: mx.array | None = None,
    ) -> mx.array:
        """Return the embedding of the time, [B or 1, temb_channels], after the activation.

        Args:
            added: an embedding of something else, of the same width, that is added to it.
        """
        timestep = mx.array(timestep).reshape(-1)
        sinusoids = self._embed_numbers(timestep, self.config.block_out_channels[0], dtype)
        if guidance is not None:
            sinusoids = sinusoids + self.time_embedding.cond_proj(guidance.astype(dtype))
        temb = self.time_embedding(sinusoids)
        if added is not None:
            temb = temb + added
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


class UNetModel(UNetEncoder):
    """The network from latents and a time to the prediction of noise, velocity or x_0."""

    config: UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__(config, config.time_cond_proj_dim)
        channels = config.block_out_channels
        levels = range(len(channels))
        self.up_blocks = [
            UpBlock(config, level, channels[min(level + 1, levels[-1])], is_last=level == 0)
            for level in reversed(levels)
        ]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = Conv3x3(channels[0], config.out_channels)

    def __call__(
        self,
        x: mx.array,
        timestep: mx.array,
        encoder_x: mx.array | Sequence[KeysValues],
        text_time: TextTime | None = None,
        guidance: mx.array | None = None,
        residuals: Residuals | None = None,
    ) -> mx.array:
        """Return the prediction [B, h, w, C] of noise, velocity or x_0, as the model was trained.

        Args:
            x: latents [B, h, w, C], scaled to unit variance; any height and width.
            timestep: the time on the training schedule, [B] or one for all.
            encoder_x: text embeddings [B, N, D], or the result of `project_text` for them.
            text_time: for SDXL, the pooled text [B, P] and the six time ids [B, 6]: original
                height and width, crop top and left, target height and width, in pixels.
            guidance: for a network that takes it, the result of `embed_guidance`, [B or 1, G].
            residuals: what control networks add.

        Raises:
            ValueError: if `text_time` is given to a network that is not SDXL's.
        """
        arguments = x, timestep, encoder_x, text_time, guidance, residuals
        prediction, _ = self.predict_and_keep(*arguments)
        return prediction

    def predict_and_keep(
        self,
        x: mx.array,
        timestep: mx.array,
        encoder_x: mx.array | Sequence[KeysValues],
        text_time: TextTime | None = None,
        guidance: mx.array | None = None,
        residuals: Residuals | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Return the prediction, and deep features [B, h, w, D] for `predict_from_kept`.

        The features are the input of the last layer of the last block, a residual block and its
        transformer. See `__call__` for the arguments.
        """
        x, skips, temb, text = self._begin(x, timestep, encoder_x, text_time, guidance, residuals)
        *up_blocks, last_block = self.up_blocks
        for up_block in up_blocks:
            x = up_block(x, temb, text, skips)
        for layer in range(len(last_block.resnets) - 1):
            x = last_block.run_layer(layer, x, temb, text, skips.pop())
        return self._finish(x, skips.pop(), temb, text), x

    def predict_from_kept(
        self,
        kept: mx.array,
        x: mx.array,
        timestep: mx.array,
        encoder_x: mx.array | Sequence[KeysValues],
        text_time: TextTime | None = None,
        guidance: mx.array | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Return the prediction by the first and the last layers alone.

        Everything between them is replaced by what an earlier call kept: DeepCache (Ma et al. 2023,
        arXiv:2312.00858), with the first skip connection, the paper's branch for most speed.

        Args:
            kept: the features of `predict_and_keep` for a step before, [B, h, w, D].
            residual: what control networks add to the first skip connection.

        See `__call__` for the others.
        """
        temb = self._embed_time(timestep, text_time, x.dtype, guidance)
        skip = self.conv_in(x)
        if residual is not None:
            skip = skip + residual
        return self._finish(kept, skip, temb, self._iterate_last_text(encoder_x))

    def _begin(
        self,
        x: mx.array,
        timestep: mx.array,
        encoder_x: mx.array | Sequence[KeysValues],
        text_time: TextTime | None,
        guidance: mx.array | None,
        residuals: Residuals | None,
    ) -> tuple[mx.array, list[mx.array], mx.array, Text]:
        """Return what the up blocks take: the output of the middle, the skips, time and text."""
        temb = self._embed_time(timestep, text_time, x.dtype, guidance)
        text = self._iterate_text(encoder_x)
        inner = () if residuals is None else residuals.inner
        if residuals is not None and residuals.mid is not None:
            # Otherwise MLX computes both encoders at once, which takes half as much memory again.
            x = wait_for(residuals.mid, x)
        x, skips = self._encode(self.conv_in(x), temb, text, inner)
        if residuals is not None:
            x, skips = _add_residuals(x, skips, residuals)
        return x, skips, temb, text

    def _finish(self, x: mx.array, skip: mx.array, temb: mx.array, text: Text) -> mx.array:
        """Return the prediction for the input of the last layer of the last block."""
        last_block = self.up_blocks[-1]
        x = last_block.run_layer(len(last_block.resnets) - 1, x, temb, text, skip)
        return self.conv_out(x, norm=self.conv_norm_out, activation=self.activation)

    def _iterate_last_text(self, encoder_x: mx.array | Sequence[KeysValues]) -> Text:
        """Return the keys and values of the text for the last transformer of the last block."""
        transformers = self.up_blocks[-1].attentions[-1:]
        blocks = [block for each in transformers for block in each.transformer_blocks]
        if isinstance(encoder_x, mx.array):
            return iter([each for block in blocks for each in block.project_text(encoder_x)])
        return iter(encoder_x[len(encoder_x) - sum(block.n_texts for block in blocks) :])

    def _list_blocks(self) -> list[DownBlock | MidBlock | UpBlock]:
        return [*super()._list_blocks(), *self.up_blocks]


def _add_residuals(x: mx.array, skips: list[mx.array], residuals: Residuals) -> Encoded:
    """Return the results of an encoder with what ControlNets add to them.

    Raises:
        ValueError: if they are for another number of skip connections.
    """
    if residuals.down:
        if len(residuals.down) != len(skips):
            raise ValueError(
                f"residuals.down must have {len(skips)} arrays, one for each skip connection of "
                f"the UNet, got {len(residuals.down)}"
            )
        skips = [skip + added for skip, added in zip(skips, residuals.down, strict=True)]
    return Encoded(x if residuals.mid is None else x + residuals.mid, skips)
