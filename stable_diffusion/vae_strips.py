"""The VAE's decoder in strips, for pictures that would need too much memory if decoded at once.

A strip is some rows of a picture over its whole width. The picture goes through the layers as a
list of strips. Each convolution gets a strip together with the rows next to it, each norm uses the
statistics of the whole picture, and a result replaces the strip that it was made from. The picture
is the same as if it were decoded at once, except for rounding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import mlx.core as mx
import mlx.nn as nn

from . import compiled
from .device import cpu_kernels, kernel_calls
from .layers import ResnetBlock2D, silu
from .vae import AttentionBlock, Autoencoder, Decoder

MAX_WHOLE_PIXELS = 768 * 768  # of a picture: larger ones are decoded in strips
MAX_STRIP_PIXELS = 2**15  # 32 MB in float32 at the 256 channels of the widest layer
MAX_SCORES = 2**25  # attention scores held at once: 128 MB

Strips = list[mx.array]  # from top to bottom, [1, rows, W, C] each
Function = Callable[[mx.array], mx.array]


def decode(autoencoder: Autoencoder, z: mx.array, tiled: bool | None = None) -> mx.array:
    """Return `autoencoder.decode(z)`, decoded in strips if `tiled`.

    Strips need little more memory than the largest layer of one picture, which in the real models
    takes 1 kB for each pixel, 1 GB for 1024×1024. They are computed now, not lazily.

    Args:
        z: scaled latents [B, h, w, C].
        tiled: whether to decode in strips; if None, only large pictures are.

    Returns:
        Pictures [B, f·h, f·w, 3], about in [-1, 1].
    """
    if tiled is None:
        n_pixels = math.prod(z.shape[1:3]) * autoencoder.config.factor**2
        # On a Linux CPU MLX's own convolution copies its input nine times.
        is_large = n_pixels > MAX_WHOLE_PIXELS or (
            cpu_kernels.is_used() and not cpu_kernels.supports(z)
        )
        # A transformation keeps all intermediate results: strips would save nothing.
        tiled = is_large and not kernel_calls.is_traced(z)
    if not tiled:
        return compiled.run(type(autoencoder).decode, autoencoder, z)
    z = autoencoder.unscale(z)
    return mx.concatenate([_decode_picture(autoencoder.decoder, picture[None]) for picture in z])


def _decode_picture(decoder: Decoder, z: mx.array) -> mx.array:
    """Decode one picture in strips: [1, h, w, C] → [1, f·h, f·w, 3]."""
    # At the size of the latents everything is small, except the scores of the attention.
    x = decoder.mid_block.resnets[0](decoder.conv_in(z))
    for attention in decoder.mid_block.attentions:
        x = _attend(attention, x)
    strips = _split(decoder.mid_block.resnets[1](x), MAX_STRIP_PIXELS)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = _apply_resnet(resnet, strips)
        if "upsample" in block:
            # A strip will have four times as many pixels, so it starts with a quarter of them.
            strips = [part for strip in strips for part in _split(strip, MAX_STRIP_PIXELS // 4)]
            strips = [strip for strip, _ in _convolve(strips, block.upsample, scale=2)]
    norm = _make_norm(decoder.conv_norm_out, strips)
    pixels = _convolve(strips, lambda x: decoder.conv_out(silu(norm(x))))
    return mx.concatenate([strip for strip, _ in pixels], axis=1)


def _evaluate(x: mx.array) -> None:
    """Compute `x` now, unless MLX is tracing it for a transformation, which computes later."""
    with suppress(ValueError):
        mx.eval(x)


def _split(x: mx.array, n_pixels: int) -> Strips:
    """Split [1, H, W, C] into strips of at most `n_pixels` pixels, but at least one row."""
    _evaluate(x)
    rows = max(1, n_pixels // x.shape[2])
    return [x[:, top : top + rows] for top in range(0, x.shape[1], rows)]


def _attend(block: AttentionBlock, x: mx.array) -> mx.array:
    """Return x + attention(norm(x)) for x [1, H, W, C], computed for some queries at a time."""
    h = block.group_norm(x).flatten(1, 2)  # [1, HW, C]
    n_queries = max(1, MAX_SCORES // h.shape[1])
    parts = []
    for start in range(0, h.shape[1], n_queries):
        parts.append(block(h[:, start : start + n_queries], memory=h))
        _evaluate(parts[-1])
    return x + mx.concatenate(parts, axis=1).reshape(x.shape)


def _apply_resnet(block: ResnetBlock2D, strips: Strips) -> Strips:
    """Return the results of a residual block without time; `strips` is empty afterwards."""
    norm1 = _make_norm(block.norm1, strips)
    h, skips, result = [], [], []
    for strip, x in _convolve(strips, lambda x: block.conv1(block.activation(norm1(x)))):
        h.append(strip)
        skips.append(block.conv_shortcut(x) if "conv_shortcut" in block else x)
        _evaluate(skips[-1])
    norm2 = _make_norm(block.norm2, h)
    for strip, _ in _convolve(h, lambda x: block.conv2(block.activation(norm2(x)))):
        result.append(skips.pop(0) + strip)
        _evaluate(result[-1])
    return result


def _convolve(
    strips: Strips, convolution: Function, scale: int = 1
) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield each strip of a 3×3 convolution's result, and the strip that it was made from.

    The convolution makes `scale` rows of each row. Strips are taken out of the list one by one, so
    that their memory can be freed.
    """
    above = strips[0][:, :0]  # the convolution itself pads the edges of the picture
    while strips:
        strip = strips.pop(0)
        below = strips[0][:, :1] if strips else strip[:, :0]
        x = convolution(mx.concatenate([above, strip, below], axis=1))
        # A copy, so that the rows of the neighbours can be freed.
        x = mx.contiguous(x[:, scale * above.shape[1] :][:, : scale * strip.shape[1]])
        _evaluate(x)
        yield x, strip
        above = strip[:, -1:]


def _make_norm(norm: nn.GroupNorm, strips: Strips) -> Function:
    """Return the group norm (Wu & He 2018, arXiv:1803.08494) with the statistics of all strips."""

    def average(function: Function) -> mx.array:
        """Return the mean of function(x) over all pixels and each channel's group: [C]."""
        total, n_pixels = mx.zeros(strips[0].shape[-1]), 0
        for strip in strips:
            # Sums of sums: adding a million terms one by one would lose digits.
            total = total + function(strip).sum(axis=2).sum(axis=(0, 1))
            n_pixels += strip.shape[1] * strip.shape[2]
            _evaluate(total)
        means = (total / n_pixels).reshape(norm.num_groups, -1).mean(axis=1)
        return mx.repeat(means, len(total) // norm.num_groups)

    means = average(lambda x: x)
    variances = average(lambda x: (x - means).square())
    gain = norm.weight * mx.rsqrt(variances + norm.eps)
    offset = norm.bias - means * gain
    return lambda x: x * gain + offset
