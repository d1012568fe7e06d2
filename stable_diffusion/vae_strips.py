"""The VAE's decoder in strips, for pictures whose decoding at once would not fit the memory.

A strip is some rows of a picture over its whole width. Layer by layer the picture goes through as
strips: each is computed with the rows of its neighbours that a convolution reaches, from the
statistics of the whole picture where it is normalised, and takes the place of what it came from.
So strips do not show: the result is that of decoding at once, but for rounding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels, kernel_calls
from .layers import ACTIVATIONS, Attention, ResnetBlock2D
from .vae import AttentionBlock, Autoencoder, Decoder

MAX_WHOLE_PIXELS = 768 * 768  # pixels of a picture: larger ones are decoded in strips
STRIP = 2**15  # pixels of a strip: 32 MB in float32 at the 256 channels of the widest layer
SCORES = 2**25  # attention scores held at once: 128 MB

Strips = list[mx.array]  # from top to bottom, [1, rows, W, C] each
Function = Callable[[mx.array], mx.array]


def decode(autoencoder: Autoencoder, z: mx.array, tiled: bool | None = None) -> mx.array:
    """`autoencoder.decode`, in strips where `tiled`, or where the picture is large and it is None.

    Strips hold little more than the largest layer of one picture: in the real models that is 1 kB
    a pixel, 1 GB for 1024×1024. They are computed now, not lazily.
    """
    if tiled is None:
        n_pixels = math.prod(z.shape[1:3]) * autoencoder.config.factor**2
        # MLX's own convolution copies its input nine times on a Linux CPU.
        is_large = n_pixels > MAX_WHOLE_PIXELS or (
            cpu_kernels.is_used() and not cpu_kernels.serves(z)
        )
        # A transformation keeps everything: strips would save nothing.
        tiled = is_large and not kernel_calls.is_traced(z)
    if not tiled:
        return autoencoder.decode(z)
    z = autoencoder.decoder_input(z)
    return mx.concatenate([_decode(autoencoder.decoder, picture[None]) for picture in z])


def _decode(decoder: Decoder, z: mx.array) -> mx.array:
    """One picture: [1, h, w, C] → [1, f·h, f·w, 3]."""
    # Of the size of the latents everything but the scores of the attention is small.
    x = decoder.mid_block.resnets[0](decoder.conv_in(z))
    for attention in decoder.mid_block.attentions:
        x = _attend(attention, x)
    strips = _split(decoder.mid_block.resnets[1](x), STRIP)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = _resnet(resnet, strips)
        if "upsample" in block:
            # Of a quarter of the pixels, to become strips of as many as before.
            strips = [part for strip in strips for part in _split(strip, STRIP // 4)]
            strips = [strip for strip, _ in _convolve(strips, block.upsample, scale=2)]
    norm, silu = _normalize(decoder.conv_norm_out, strips), ACTIVATIONS["silu"]
    pixels = _convolve(strips, lambda x: decoder.conv_out(silu(norm(x))))
    return mx.concatenate([strip for strip, _ in pixels], axis=1)


def _evaluate(x: mx.array) -> None:
    """Compute `x` now, unless MLX is tracing it for a transformation, which computes later."""
    with suppress(ValueError):
        mx.eval(x)


def _split(x: mx.array, n_pixels: int) -> Strips:
    """[1, H, W, C] as strips of at most so many pixels, but one row at least."""
    _evaluate(x)
    rows = max(1, n_pixels // x.shape[2])
    return [x[:, top : top + rows] for top in range(0, x.shape[1], rows)]


def _attend(block: AttentionBlock, x: mx.array) -> mx.array:
    """The attention block, some queries at a time."""
    h = block.group_norm(x).flatten(1, 2)  # [1, HW, C]
    n_queries = max(1, SCORES // h.shape[1])
    parts = []
    for start in range(0, h.shape[1], n_queries):
        parts.append(Attention.__call__(block, h[:, start : start + n_queries], memory=h))
        _evaluate(parts[-1])
    return x + mx.concatenate(parts, axis=1).reshape(x.shape)


def _resnet(block: ResnetBlock2D, strips: Strips) -> Strips:
    """A residual block without time. It empties `strips`."""
    norm1 = _normalize(block.norm1, strips)
    h, skips, result = [], [], []
    for strip, x in _convolve(strips, lambda x: block.conv1(block.activation(norm1(x)))):
        h.append(strip)
        skips.append(block.conv_shortcut(x) if "conv_shortcut" in block else x)
        _evaluate(skips[-1])
    norm2 = _normalize(block.norm2, h)
    for strip, _ in _convolve(h, lambda x: block.conv2(block.activation(norm2(x)))):
        result.append(skips.pop(0) + strip)
        _evaluate(result[-1])
    return result


def _convolve(
    strips: Strips, convolution: Function, scale: int = 1
) -> Iterator[tuple[mx.array, mx.array]]:
    """A 3×3 convolution that makes `scale` rows of each: strips of it, and what each came from.

    It takes the strips out of the list, so that they can be forgotten one by one.
    """
    above = strips[0][:, :0]  # beyond the edges the convolution itself puts zeros
    while strips:
        strip = strips.pop(0)
        below = strips[0][:, :1] if strips else strip[:, :0]
        x = convolution(mx.concatenate([above, strip, below], axis=1))
        # A copy, so that the rows of the neighbours can be forgotten.
        x = mx.contiguous(x[:, scale * above.shape[1] :][:, : scale * strip.shape[1]])
        _evaluate(x)
        yield x, strip
        above = strip[:, -1:]


def _normalize(norm: nn.GroupNorm, strips: Strips) -> Function:
    """The group norm (Wu & He 2018, arXiv:1803.08494) with the statistics of all strips."""

    def mean(function: Function) -> mx.array:
        """Of every channel's group, the mean of a function of all pixels: [C]."""
        total, n_pixels = mx.zeros(strips[0].shape[-1]), 0
        for strip in strips:
            # Sums of sums: one after another a million terms would lose digits.
            total = total + function(strip).sum(axis=2).sum(axis=(0, 1))
            n_pixels += strip.shape[1] * strip.shape[2]
            _evaluate(total)
        means = (total / n_pixels).reshape(norm.num_groups, -1).mean(axis=1)
        return mx.repeat(means, len(total) // norm.num_groups)

    means = mean(lambda x: x)
    variances = mean(lambda x: (x - means).square())
    gain = norm.weight * mx.rsqrt(variances + norm.eps)
    offset = norm.bias - means * gain
    return lambda x: x * gain + offset
