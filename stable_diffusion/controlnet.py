"""ControlNets: networks that let a picture steer the UNet (Zhang et al. 2023, arXiv:2302.05543).

A ControlNet is a copy of the UNet's encoder that also sees the picture. Its results go through
layers that are zero before the training, and are added to the UNet's skip connections and middle.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .activations import quick_gelu, silu
from .attention import Attention, KeysValues
from .config.controlnet import BGR, ControlNetConfig, ControlNetUnionConfig
from .layers import Conv3x3, Linear
from .time_embedding import TimestepEmbedding
from .unet import Residuals, TextTime, UNetEncoder
from .unet_blocks import count_temb_channels


class PictureEmbedding(nn.Module):
    """Convolutions from a picture to features of the size of the latents."""

    def __init__(self, config: ControlNetConfig):
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = Conv3x3(config.conditioning_channels, widths[0])
        self.blocks = []
        for i, width in enumerate(widths[:-1]):
            self.blocks.append(Conv3x3(width, width))
            self.blocks.append(Conv3x3(width, widths[i + 1], stride=2))
        self.conv_out = Conv3x3(widths[-1], config.block_out_channels[0])

    def __call__(self, picture: mx.array) -> mx.array:
        """Return the features [B, h, w, C] of pictures [B, H, W, 3] in [0, 1]."""
        x = self.conv_in(picture)
        for block in self.blocks:
            x = block(x, activation=silu)
        return self.conv_out(x, activation=silu)


class ControlNet(UNetEncoder):
    """The network from latents, a time and a picture to `Residuals`: diffusers' ControlNetModel."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        self.controlnet_cond_embedding = PictureEmbedding(config)
        self.controlnet_down_blocks = [Linear(n, n) for n in config.skip_channels]
        bottom = config.block_out_channels[-1]
        self.controlnet_mid_block = Linear(bottom, bottom)

    @property
    def is_conditional_only(self) -> bool:
        """Return whether the residuals are for the conditional half of guidance only.

        The other half is then computed without them, as in diffusers' guess mode.
        """
        return self.config.global_pool_conditions

    def prepare(self, pictures: Sequence[mx.array], types: Sequence[int] = ()) -> list[mx.array]:
        """Return what depends on the picture alone, for all steps.

        Args:
            pictures: one, [B or 1, H, W, 3] in [0, 1], of the type to compute in; `config.factor`
                times as large as the latents along each side.
            types: none.
        """
        (picture,) = pictures
        if self.config.controlnet_conditioning_channel_order == BGR:
            picture = picture[..., ::-1]
        return [self.controlnet_cond_embedding(picture)]

    def __call__(
        self,
        x: mx.array,
        timestep: mx.array,
        text: mx.array | Sequence[KeysValues],
        text_time: TextTime | None,
        prepared: Sequence[mx.array],
        scales: Sequence[float | mx.array],
    ) -> Residuals:
        """Return the residuals for the UNet.

        Args:
            x: latents [B, h, w, C], scaled to unit variance.
            timestep: the time on the training schedule, [B] or one for all.
            text: text embeddings [B, N, D], or the result of `project_text` for them.
            text_time: for SDXL, as the UNet takes it.
            prepared: the result of `prepare`.
            scales: one number, which the residuals are multiplied by.
        """
        temb = self._embed_time(timestep, text_time, x.dtype)
        x, scale = self._add_pictures(x, prepared, scales)
        return self._compute_residuals(x, temb, text, scale)

    def compute_first_residual(
        self, x: mx.array, prepared: Sequence[mx.array], scales: Sequence[float | mx.array]
    ) -> mx.array | None:
        """Return the first of the residuals alone, that for the UNet's first skip connection.

        It takes two layers. The arguments are those of `__call__`.
        """
        x, scale = self._add_pictures(x, prepared, scales)
        return self._scale_output(self.controlnet_down_blocks[0](x), scale)

    def _add_pictures(
        self, x: mx.array, prepared: Sequence[mx.array], scales: Sequence[float | mx.array]
    ) -> tuple[mx.array, float | mx.array | None]:
        """Return the input of the blocks, and the scale of the residuals, None for 1."""
        (features,) = prepared
        return self.conv_in(x) + features, scales[0]

    def _compute_residuals(
        self,
        x: mx.array,
        temb: mx.array,
        text: mx.array | Sequence[KeysValues],
        scale: float | mx.array | None,
    ) -> Residuals:
        """Return the residuals, times the scale if there is one, for the input of the blocks."""
        encoded = self._encode(x, temb, self._iterate_text(text))
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        outputs = [
            layer(each) for layer, each in zip(layers, [*encoded.skips, encoded.x], strict=True)
        ]
        outputs = [self._scale_output(each, scale) for each in outputs]
        return Residuals(outputs[:-1], outputs[-1], [])

    def _scale_output(self, x: mx.array, scale: float | mx.array | None) -> mx.array:
        """Return the residual for an output of the network."""
        if self.config.global_pool_conditions:
            x = average_over_picture(x)
        return x if scale is None else x * mx.array(scale, x.dtype)


class UnionAttention(nn.Module):
    """A transformer block over the pictures of a union.

    As in diffusers, whose attention has the batch first in its place for the sequence, each
    picture attends to the same picture in the other rows of the batch.
    """

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dims)
        self.attn = Attention(dims, num_heads)
        self.ln_2 = nn.LayerNorm(dims)
        self.c_fc = Linear(dims, 4 * dims)
        self.c_proj = Linear(4 * dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        """Return the output [N, B, C] for N pictures in B rows of a batch, [N, B, C]."""
        x = self.attn(x, norm=self.ln_1, residual=x)
        return self.c_proj(quick_gelu(self.c_fc(x, norm=self.ln_2)), residual=x)


class ControlNetUnion(ControlNet):
    """A ControlNet for pictures of several types at once: diffusers' ControlNetUnionModel.

    Attributes:
        task_embedding: what tells the types apart, [number of types, C].
    """

    config: ControlNetUnionConfig

    def __init__(self, config: ControlNetUnionConfig):
        super().__init__(config)
        dims = config.num_trans_channel
        self.task_embedding = mx.zeros((config.num_control_type, dims))
        self.transformer_layers = [
            UnionAttention(dims, config.num_trans_head) for _ in range(config.num_trans_layer)
        ]
        self.spatial_ch_projs = Linear(dims, config.num_proj_channel)
        # With SiLU, as in diffusers, even if act_fn says something else.
        self.control_add_embedding = TimestepEmbedding(
            config.type_channels, count_temb_channels(config), "silu"
        )

    def prepare(self, pictures: Sequence[mx.array], types: Sequence[int] = ()) -> list[mx.array]:
        """Return what depends on the pictures alone, for all steps.

        Args:
            pictures: one or more, as `ControlNet.prepare` takes it.
            types: the number of the type of each picture.

        Raises:
            ValueError: if there is not one type for each picture, or the network has no such type.
        """
        n_types = self.config.num_control_type
        if len(types) != len(pictures) or not pictures:
            raise ValueError(
                f"a union needs one type for each of its pictures, got {len(pictures)} pictures "
                f"and {len(types)} types"
            )
        if unknown := [each for each in types if not 0 <= each < n_types]:
            raise ValueError(f"types must be from 0 to {n_types - 1}, got {unknown[0]}")
        prepared = [self._embed_types(types, pictures[0].dtype)]
        for picture, number in zip(pictures, types, strict=True):
            features = self.controlnet_cond_embedding(picture)
            mean = average_over_picture(features)[:, 0, 0]  # [B or 1, C]
            prepared += [features, mean + self.task_embedding[number].astype(mean.dtype)]
        return prepared

    def _embed_types(self, types: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """Return the embedding of the types that are present, [1, temb_channels]."""
        is_present = mx.array([float(i in types) for i in range(self.config.num_control_type)])
        dims = self.config.addition_time_embed_dim
        assert dims is not None  # the config checks it
        return self.control_add_embedding(
            self._embed_numbers(is_present, dims, dtype).reshape(1, -1)
        )

    def __call__(
        self,
        x: mx.array,
        timestep: mx.array,
        text: mx.array | Sequence[KeysValues],
        text_time: TextTime | None,
        prepared: Sequence[mx.array],
        scales: Sequence[float | mx.array],
    ) -> Residuals:
        """Return the residuals for the UNet.

        Args:
            scales: one number for each picture. A single one multiplies the residuals; several
                multiply what the pictures add to the input, as in diffusers.

        See `ControlNet` for the others.
        """
        temb = self._embed_time(timestep, text_time, x.dtype, added=prepared[0])
        x, scale = self._add_pictures(x, prepared, scales)
        return self._compute_residuals(x, temb, text, scale)

    def _add_pictures(
        self, x: mx.array, prepared: Sequence[mx.array], scales: Sequence[float | mx.array]
    ) -> tuple[mx.array, float | mx.array | None]:
        _, *rest = prepared
        features, tokens = rest[::2], rest[1::2]
        outer_scale = None
        if len(features) == 1:
            outer_scale, scales = scales[0], [1.0]
        return self.conv_in(x) + self._fuse(features, tokens, scales), outer_scale

    def _fuse(
        self,
        features: Sequence[mx.array],
        tokens: Sequence[mx.array],
        scales: Sequence[float | mx.array],
    ) -> mx.array:
        """Return what the pictures add to the input, [B or 1, h, w, C].

        Args:
            features: of the pictures, [B or 1, h, w, C] each.
            tokens: their means with the embedding of their types, [B or 1, C] each.
        """
        factors = [mx.array(scale, features[0].dtype) for scale in scales]
        h = mx.stack([token * factor for token, factor in zip(tokens, factors, strict=True)])
        for layer in self.transformer_layers:
            h = layer(h)
        shifts = self.spatial_ch_projs(h)[:, :, None, None]  # [N, B or 1, 1, 1, C]
        parts = [
            (each + shift) * factor
            for each, shift, factor in zip(features, shifts, factors, strict=True)
        ]
        return sum(parts[1:], start=parts[0])


def average_over_picture(x: mx.array) -> mx.array:
    """Return the mean over height and width of [B, h, w, C]: [B, 1, 1, C]; summed in float32."""
    return x.astype(mx.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
