"""RRDBNet, the network of ESRGAN, which enlarges pictures (Wang et al. 2018, arXiv:1809.00219).

Large pictures are enlarged in strips of rows. Each part of the network gets a strip together with
the rows around it that its result depends on, so the result is the same as of the whole picture.
"""

from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config.upscaler import COLOURS, UpscalerConfig
from .layers import Conv3x3, fold_pixels

Layer = Callable[[mx.array], mx.array]

RESIDUAL_SCALE = 0.2  # of the residuals of dense and of residual blocks (section 3.1)
SLOPE = 0.2  # of the activation for negative numbers

# Rows above and below that a row of the result depends on, in rows of the input: one for each
# convolution. Of those of `make_pixels` only two have rows that are not doubled before, or less.
REACH_OF_CONVOLUTION, REACH_OF_BLOCK, REACH_OF_PIXELS = 1, 15, 2
# Numbers that a strip may have in its widest layer, 128 MB in float32. Three or four such layers
# are in memory at once.
STRIP_NUMBERS = 2**25


class DenseBlock(nn.Module):
    """Five convolutions, each of which takes the results of all before it: [B, H, W, C]."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        for i in range(4):
            setattr(self, f"conv{i + 1}", Conv3x3(channels + i * growth, growth))
        self.conv5 = Conv3x3(channels + 4 * growth, channels)

    def __call__(self, x: mx.array) -> mx.array:
        features = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = mx.concatenate([features, activate(conv(features))], axis=-1)
        return x + RESIDUAL_SCALE * self.conv5(features)


class ResidualBlock(nn.Module):
    """A residual in residual dense block: three dense blocks, added to their input."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def __call__(self, x: mx.array) -> mx.array:
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """The network from pictures [B, H, W, 3] to [B, s·H, s·W, 3], both about in [0, 1].

    The result is larger if height or width is no multiple of `config.shuffle`, see `fold_pixels`.
    """

    def __init__(self, config: UpscalerConfig):
        super().__init__()
        self.config = config
        channels = config.num_feat
        self.conv_first = Conv3x3(config.in_channels, channels)
        self.body = [ResidualBlock(channels, config.num_grow_ch) for _ in range(config.num_block)]
        self.conv_body = Conv3x3(channels, channels)
        self.conv_up = [Conv3x3(channels, channels) for _ in range(config.num_upsample)]
        self.conv_hr = Conv3x3(channels, channels)
        self.conv_last = Conv3x3(channels, COLOURS)

    def __call__(self, x: mx.array) -> mx.array:
        features = self.conv_first(fold_pixels(x, self.config.shuffle))
        y = features
        for block in self.body:
            y = block(y)
        return self.make_pixels(self.conv_body(y, residual=features))

    def make_pixels(self, features: mx.array) -> mx.array:
        """Return the pixels [B, n·h, n·w, 3] of features [B, h, w, C], n = 2^num_upsample."""
        for conv in self.conv_up:
            features = activate(conv.convolve_upsampled(features))
        return self.conv_last(activate(self.conv_hr(features)))


def activate(x: mx.array) -> mx.array:
    """Return x, with negative numbers multiplied by 0.2: the leaky ReLU of ESRGAN."""
    return mx.maximum(x, SLOPE * x)


def enlarge(
    network: RRDBNet,
    picture: np.ndarray,
    strip_numbers: int = STRIP_NUMBERS,
    on_progress: Callable[[float], object] = lambda part: None,
) -> np.ndarray:
    """Enlarge a picture, uint8 [H, W, 3], to [s·H, s·W, 3]; it is computed now.

    Args:
        strip_numbers: how many numbers the widest layer of a strip may have.
        on_progress: is called with each part of the work that is done; all parts together are 1.

    Raises:
        ValueError: if a result is not finite, because the weights are damaged.
    """
    config = network.config
    height, width, _ = picture.shape
    x = fold_pixels(mx.array(picture[None], dtype=mx.float32) / 255, config.shuffle)

    # The blocks, and the layers after them, which take about as long as one of them.
    rows_in_all = (config.num_block + 1) * x.shape[1]

    def count_rows(n_rows: int) -> None:
        on_progress(n_rows / rows_in_all)

    dense = config.num_feat + 4 * config.num_grow_ch  # channels of the widest layer of a block
    features = _apply(network.conv_first, x, REACH_OF_CONVOLUTION, strip_numbers // dense)
    y = features
    for block in network.body:
        y = _apply(block, y, REACH_OF_BLOCK, strip_numbers // dense, count_rows)
    y = features + _apply(network.conv_body, y, REACH_OF_CONVOLUTION, strip_numbers // dense)

    growth = 2**config.num_upsample
    places = strip_numbers // (config.num_feat * growth**2)
    rows = []
    for strip in _run_strips(network.make_pixels, y, REACH_OF_PIXELS, places, growth):
        if not mx.isfinite(strip).all().item():
            raise ValueError("the upscaler's result is not finite: its weights are damaged")
        rows.append(np.array((mx.clip(strip[0], 0, 1) * 255).round().astype(mx.uint8)))
        count_rows(strip.shape[1] // growth)
    return np.concatenate(rows)[: height * config.scale, : width * config.scale]


def _apply(
    layer: Layer,
    x: mx.array,
    reach: int,
    n_places: int,
    count_rows: Callable[[int], None] = lambda n_rows: None,
) -> mx.array:
    """Return layer(x), computed in strips; `count_rows` is called with the rows of each."""
    strips = []
    for strip in _run_strips(layer, x, reach, n_places):
        strips.append(strip)
        count_rows(strip.shape[1])
    return mx.concatenate(strips, axis=1)


def _run_strips(
    layer: Layer, x: mx.array, reach: int, n_places: int, growth: int = 1
) -> Iterator[mx.array]:
    """Yield layer(x) in strips, from top to bottom, each of them evaluated.

    Args:
        x: [1, h, w, C].
        reach: how many rows above and below a row of the result depends on.
        n_places: how many places of x a strip has, at least one row.
        growth: how many times larger the result is, along each side.
    """
    height, width = x.shape[1:3]
    n_rows = max(n_places // width, 1)
    for start in range(0, height, n_rows):
        stop = min(start + n_rows, height)
        above, below = max(start - reach, 0), min(stop + reach, height)
        strip = layer(x[:, above:below])
        strip = strip[:, growth * (start - above) : growth * (stop - above)]
        mx.eval(strip)
        yield strip
