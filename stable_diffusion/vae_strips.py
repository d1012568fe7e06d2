"""The VAE in strips, for pictures that would need too much memory if computed at once.

A strip is some rows of a picture over its whole width. The picture goes through the layers as a
list of strips. Each convolution gets a strip together with the rows next to it, each norm uses the
statistics of the whole picture, and a result replaces the strip that it was made from. The result
is the same as if it were computed at once, except for rounding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import mlx.core as mx
import mlx.nn as nn

from . import compiled
from .activations import relu, silu
from .autoencoder_tiny import AutoencoderTiny, TinyBlock, TinyDecoder, TinyEncoder, TinyUpsample
from .config.autoencoder_tiny import require_encoder
from .device import backend, cpu_kernels, kernel_calls, memory
from .layers import Conv3x3
from .resnet_block import ResnetBlock2D
from .vae import Autoencoder, Decoder, Encoder

Vae = Autoencoder | AutoencoderTiny
Strips = list[mx.array]  # from top to bottom, [1, rows, W, C] each
Function = Callable[[mx.array], mx.array]


def decode(autoencoder: Vae, z: mx.array, tiled: bool | None = None) -> mx.array:
    """Return `autoencoder.decode(z)`, decoded in strips if `tiled`.

    Strips need little more memory than the largest layer of one picture, which in the real models
    takes 1 kB for each pixel, 1 GB for 1024×1024, or half of it in half precision. (A tiny VAE
    needs half as much.) They are computed now, not lazily.

    Args:
        z: scaled latents [B, h, w, C].
        tiled: whether to decode in strips; if None, only what is too large for the memory is.

    Returns:
        Pictures [B, f·h, f·w, 3], about in [-1, 1].
    """
    if tiled is None:
        n_pixels = math.prod(z.shape[1:3]) * autoencoder.config.factor**2
        tiled = _needs_strips(z, n_pixels, memory.choose_whole_pixels(autoencoder.dtype.size))
    if not tiled:
        return compiled.run(type(autoencoder).decode, autoencoder, z)
    z = autoencoder.unscale(z)
    pictures = [_decode_picture(autoencoder.decoder, picture[None]) for picture in z]
    return mx.concatenate(pictures).astype(mx.float32)


def encode(autoencoder: Vae, x: mx.array, tiled: bool | None = None) -> tuple[mx.array, mx.array]:
    """Return `autoencoder.encode(x)`, encoded in strips if `tiled`; see `decode`.

    Args:
        x: pictures [B, H, W, 3] in [-1, 1], whose sides are multiples of f.
        tiled: whether to encode in strips; if None, only what is too large for the memory is.

    Returns:
        Mean and log variance of the scaled latents, [B, H / f, W / f, C] each.

    Raises:
        ValueError: if the VAE has no encoder.
    """
    require_encoder(autoencoder.config)
    if tiled is None:
        # The encoder's largest layer is half as large as the decoder's.
        max_pixels = 2 * memory.choose_whole_pixels(autoencoder.dtype.size)
        tiled = _needs_strips(x, math.prod(x.shape[1:3]), max_pixels)
    if not tiled:
        return compiled.run(type(autoencoder).encode, autoencoder, x)
    x = x.astype(autoencoder.dtype)
    encoded = [_encode_picture(autoencoder.encoder, picture[None]) for picture in x]
    return autoencoder.scale(mx.concatenate(encoded))


def _needs_strips(x: mx.array, n_pixels: int, max_pixels: int) -> bool:
    """Return whether the pictures or latents `x` are too large to be computed at once.

    Args:
        n_pixels: of each picture.
        max_pixels: see `memory.choose_whole_pixels`.
    """
    if backend.is_gpu():
        n_pixels *= len(x)
    # On a Linux CPU MLX's own convolution copies its input nine times.
    is_large = n_pixels > max_pixels or (cpu_kernels.is_used() and not cpu_kernels.supports(x))
    # A transformation keeps all intermediate results: strips would save nothing.
    return is_large and not kernel_calls.is_traced(x)


def _decode_picture(decoder: Decoder | TinyDecoder, z: mx.array) -> mx.array:
    """Decode one picture in strips: [1, h, w, C] → [1, f·h, f·w, 3]."""
    if isinstance(decoder, TinyDecoder):
        return decoder.finish(_run_tiny(decoder, z))
    x = decoder.mid_block(decoder.conv_in(z))  # at the size of the latents everything is small
    n_pixels = memory.choose_strip_pixels(z.dtype.size)
    strips = _split(x, n_pixels)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = _apply_resnet(resnet, strips)
        if "upsample" in block:
            # A strip will have four times as many pixels, so it starts with a quarter of them.
            strips = [part for strip in strips for part in _split(strip, n_pixels // 4)]
            strips = _compute(_convolve(strips, block.upsample, scale=2))
    norm = _make_norm(decoder.conv_norm_out, strips)
    pixels = _compute(_convolve(strips, lambda x: decoder.conv_out(silu(norm(x)))))
    return mx.concatenate(pixels, axis=1)


def _encode_picture(encoder: Encoder | TinyEncoder, x: mx.array) -> mx.array:
    """Encode one picture in strips: [1, H, W, 3] → what the encoder returns for it."""
    if isinstance(encoder, TinyEncoder):
        return _run_tiny(encoder, x)
    strips = _split(x, memory.choose_strip_pixels(x.dtype.size), multiple=2)
    strips = _compute(_convolve(strips, encoder.conv_in))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            strips = _apply_resnet(resnet, strips)
        if "downsample" in block:
            strips = _join(_compute(_downsample(strips, block.downsample)))
    x = encoder.mid_block(mx.concatenate(strips, axis=1))
    return encoder.conv_out(x, norm=encoder.conv_norm_out, activation=silu)


def _run_tiny(network: TinyEncoder | TinyDecoder, x: mx.array) -> mx.array:
    """Return what the last layer of half of a tiny VAE gives for one picture, in strips."""
    n_pixels = memory.choose_strip_pixels(x.dtype.size)
    strips = _split(network.prepare(x), n_pixels, multiple=2)
    for layer in network.layers:
        if isinstance(layer, TinyBlock):
            strips = _apply_tiny_block(layer, strips)
        elif isinstance(layer, TinyUpsample):
            strips = [part for strip in strips for part in _split(strip, n_pixels // 4, 2)]
            strips = _compute(_convolve(strips, layer, scale=2))
        elif isinstance(layer, Conv3x3) and layer.stride[0] == 2:
            # Strips begin at even rows, so that each row of the result has its middle in one strip.
            strips = _join(_compute(_halve(strips, layer)))
        elif isinstance(layer, Conv3x3):
            strips = _compute(_convolve(strips, layer))
        else:  # of each pixel alone
            strips = [layer(strip) for strip in strips]
    return mx.concatenate(strips, axis=1)


def _apply_tiny_block(block: TinyBlock, strips: Strips) -> Strips:
    """Return the results of a block of a tiny VAE; `strips` is empty afterwards."""
    conv1, activation1, conv2, activation2, conv3 = block.conv
    h = _compute(_convolve([*strips], lambda x: activation1(conv1(x))))
    h = _compute(_convolve(h, lambda x: activation2(conv2(x))))
    result = []
    for strip, _ in _convolve(h, conv3):
        result.append(relu(strips.pop(0) + strip))
        _evaluate(result[-1])
    return result


def _halve(strips: Strips, convolution: Function) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield the results of a convolution that halves the size and pads all sides by one.

    All strips, except the last one, have an even number of rows.
    """
    above = strips[0][:, :0]
    while strips:
        strip = strips.pop(0)
        x = convolution(mx.concatenate([above, strip], axis=1))
        yield mx.contiguous(x[:, above.shape[1] // 2 :]), strip
        above = strip[:, -2:]


def _evaluate(*arrays: mx.array, waits: bool = True) -> None:
    """Compute arrays now, unless MLX is tracing them for a transformation, which computes later.

    Args:
        waits: whether to wait for the results.
    """
    with suppress(ValueError):
        (mx.eval if waits else mx.async_eval)(arrays)


def _split(x: mx.array, n_pixels: int, multiple: int = 1) -> Strips:
    """Split [1, H, W, C] into strips of at most `n_pixels` pixels.

    All strips, except the last one, have a multiple of `multiple` rows, and at least so many.
    """
    _evaluate(x)
    rows = max(1, n_pixels // (x.shape[2] * multiple)) * multiple
    return [x[:, top : top + rows] for top in range(0, x.shape[1], rows)]


def _compute(results: Iterator[tuple[mx.array, mx.array]]) -> Strips:
    """Return the results of `_convolve` or `_downsample`, each computed before the next one."""
    computed = []
    for strip, _ in results:
        _evaluate(strip)
        computed.append(strip)
    return computed


def _join(strips: Strips) -> Strips:
    """Return each four strips as one, because they have a quarter of the pixels of a strip."""
    groups = [strips[i : i + 4] for i in range(0, len(strips), 4)]
    joined = [mx.concatenate(group, axis=1) for group in groups]
    _evaluate(*joined)
    return joined


def _apply_resnet(block: ResnetBlock2D, strips: Strips) -> Strips:
    """Return the results of a residual block without time; `strips` is empty afterwards."""
    norm1 = _make_norm(block.norm1, strips)
    h, skips, result = [], [], []
    for strip, x in _convolve(strips, lambda x: block.conv1(block.activation(norm1(x)))):
        h.append(strip)
        skips.append(block.conv_shortcut(x) if "conv_shortcut" in block else x)
        _evaluate(h[-1], skips[-1])
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
    that their memory can be freed; evaluate a result before the next one is taken.
    """
    above = strips[0][:, :0]  # the convolution itself pads the edges of the picture
    while strips:
        strip = strips.pop(0)
        below = strips[0][:, :1] if strips else strip[:, :0]
        x = convolution(mx.concatenate([above, strip, below], axis=1))
        # A copy, so that the rows of the neighbours can be freed.
        yield mx.contiguous(x[:, scale * above.shape[1] :][:, : scale * strip.shape[1]]), strip
        above = strip[:, -1:]


def _downsample(strips: Strips, convolution: Function) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield the results of a `Downsample`, as `_convolve` does.

    All strips, except the last one, have an even number of rows. A row of the result is made of
    three rows: it begins at an even row and ends at the next one.
    """
    while strips:
        strip = strips.pop(0)
        if strip.shape[1] == 1:  # the last row of an odd height, which the strip above has used
            return
        below = strips[0][:, :1] if strips else strip[:, :0]
        yield convolution(mx.concatenate([strip, below], axis=1)), strip


def _make_norm(norm: nn.GroupNorm, strips: Strips) -> Function:
    """Return the group norm (Wu & He 2018, arXiv:1803.08494) with the statistics of all strips.

    The statistics are float32, as is the norm before its result gets the type of its input.
    """

    def average(function: Function) -> mx.array:
        """Return the mean of function(x) over all pixels and each channel's group: [C]."""
        total, n_pixels = mx.zeros(strips[0].shape[-1]), 0
        for strip in strips:
            # Sums of sums: adding a million terms one by one would lose digits.
            total = total + function(strip.astype(mx.float32)).sum(axis=2).sum(axis=(0, 1))
            n_pixels += strip.shape[1] * strip.shape[2]
            # One after another, or MLX might compute `function` of all strips first. Waiting for
            # each of them would cost time on a GPU only.
            _evaluate(total, waits=not backend.is_gpu())
        means = (total / n_pixels).reshape(norm.num_groups, -1).mean(axis=1)
        return mx.repeat(means, len(total) // norm.num_groups)

    means = average(lambda x: x)
    variances = average(lambda x: (x - means).square())
    gain = norm.weight * mx.rsqrt(variances + norm.eps)
    offset = norm.bias - means * gain
    _evaluate(gain, offset)
    return lambda x: (x * gain + offset).astype(x.dtype)
