"""ControlNets: networks that let a picture steer the UNet (Zhang et al. 2023, arXiv:2302.05543).

A ControlNet is a copy of the UNet's encoder that also sees the picture. Its results go through
layers that are zero before the training, and are added to the UNet's skip connections and middle.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .activations import silu
from .attention import KeysValues
from .config.controlnet import BGR, ControlNetConfig
from .layers import Conv3x3, Linear
from .unet import Residuals, TextTime, UNetEncoder


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
        self.controlnet_mid_block = Linear(
            config.block_out_channels[-1], config.block_out_channels[-1]
        )

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
        (features,) = prepared
        temb = self._embed_time(timestep, text_time, x.dtype)
        return self._compute_residuals(self.conv_in(x) + features, temb, text, scales[0])

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
        if self.config.global_pool_conditions:
            outputs = [average_over_picture(each) for each in outputs]
        if scale is not None:
            outputs = [each * mx.array(scale, each.dtype) for each in outputs]
        return Residuals(outputs[:-1], outputs[-1], [])


def average_over_picture(x: mx.array) -> mx.array:
    """Return the mean over height and width of [B, h, w, C]: [B, 1, 1, C]; summed in float32."""
    return x.astype(mx.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
