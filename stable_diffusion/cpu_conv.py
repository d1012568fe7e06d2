"""3×3 convolutions for MLX on a Linux CPU: strip by strip, shared out over the cores.

Where pictures are large, by Winograd's method, F(4×4, 3×3) (arXiv:1509.09308): 36 products for a
tile of 16 pixels, where the plain sum takes 144.
"""

import math
from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from .cpu import CORES, STRIP, Function, join, join_by, share

# Winograd's method pays from so many channels and tiles of 4×4 pixels on: below, the transform of
# the weights costs more than it saves.
MIN_CHANNELS = 32
MIN_TILES = 64

# Winograd's F(4×4, 3×3) (arXiv:1509.09308), here with both sides' transforms in one matrix: of a
# 6×6 tile of the input, of the 3×3 weights, and of the result, a 4×4 tile.
_TILE_1D = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_WEIGHT_1D = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_RESULT_1D = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_sides(matrix: list[list[float]]) -> mx.array:
    return mx.array(np.kron(matrix, matrix).astype(np.float32))


_TILE, _WEIGHT, _RESULT = map(_both_sides, (_TILE_1D, _WEIGHT_1D, _RESULT_1D))


def conv3x3(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    prepare: Sequence[Function] | None = None,
    upsample: bool = False,
) -> mx.array:
    """3×3 convolution, stride 1, of x [B, H, W, C] padded with zeros → [B, H, W, O].

    Args:
        weight, bias: [O, 3, 3, C] and [O].
        prepare: what to do with the rows of each picture first, pixel by pixel.
        upsample: whether every pixel is doubled along both sides before: → [B, 2H, 2W, O].
    """
    batch, height, width, channels = x.shape
    factor = 2 if upsample else 1
    height, width = factor * height, factor * width
    out_channels = len(weight)
    n_tiles = batch * math.ceil(height / 4) * math.ceil(width / 4)
    if out_channels < MIN_CHANNELS:
        transform, convolve = _narrow_weight, _narrow
    elif channels < MIN_CHANNELS or n_tiles < MIN_TILES:
        transform, convolve = None, _convolve
    else:
        transform, convolve = _winograd_weight, _winograd

    # Strips of whole tiles, a multiple of the cores. Where a picture is too small for that, every
    # core does a part of the output instead.
    n_strips = math.ceil(height * width * max(channels, out_channels) / STRIP)
    n_strips = CORES * math.ceil(n_strips / CORES) if n_strips > 1 else 1
    step = 4 * math.ceil(height / (4 * n_strips))
    tops = range(0, height, step)
    n_parts = CORES if batch * len(tops) < CORES else 1
    weight = weight.astype(mx.float32)
    if transform is None:
        weights = _split(weight, n_parts)
    else:
        weights = share([partial(transform, part) for part in _split(weight, CORES)])
        weights = weights if n_parts > 1 else [join(weights, axis=1)]
    biases = _split(bias, n_parts)

    def strip(i: int, top: int, part: int) -> mx.array:
        bottom = min(top + step, height)
        first, last = max(0, top - 1), min(height, bottom + 1)  # one row more on either side
        rows = x[i, first // factor : math.ceil(last / factor)]
        if prepare is not None:
            rows = prepare[i](rows)
        if upsample:
            rows = _doubled(rows)[first % 2 :][: last - first]
        rows = mx.pad(rows, [(first - top + 1, bottom + 1 - last), (1, 1), (0, 0)])
        return convolve(rows, weights[part]) + biases[part]

    places = [(i, top, part) for i in range(batch) for top in tops for part in range(len(weights))]
    strips = share([partial(strip, *place) for place in places])
    strips = join_by(len(weights), strips, axis=2)
    return mx.stack(join_by(len(tops), strips, axis=0))


def _split(outputs: mx.array, n_parts: int) -> list[mx.array]:
    """Contiguous parts of an array along its first axis, at most `n_parts` of them."""
    step = math.ceil(len(outputs) / n_parts)
    return [outputs[i : i + step] for i in range(0, len(outputs), step)]


def _doubled(rows: mx.array) -> mx.array:
    """Every pixel of [H, W, C] twice along both sides."""
    h, w, c = rows.shape
    return mx.broadcast_to(rows[:, None, :, None], (h, 2, w, 2, c)).reshape(2 * h, 2 * w, c)


def _convolve(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] → [H, W, O]."""
    return mx.conv2d(rows[None], weight)[0]


def _narrow_weight(weight: mx.array) -> mx.array:
    """[O, 3, 3, C] → [9, O, C]."""
    return weight.reshape(len(weight), 9, -1).swapaxes(0, 1)


def _narrow(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] and weights [9, O, C] of few outputs → [H, W, O]."""
    height, width = rows.shape[0] - 2, rows.shape[1] - 2
    taps = mx.unflatten(rows @ weight.flatten(0, 1).T, -1, (3, 3, -1))  # [H + 2, W + 2, 3, 3, O]
    return sum(taps[i : i + height, j : j + width, i, j] for i in range(3) for j in range(3))


def _winograd_weight(weight: mx.array) -> mx.array:
    """[O, 3, 3, C] → [36, O, C]."""
    taps = weight.reshape(len(weight), 9, -1).swapaxes(0, 1)
    return (_WEIGHT @ taps.reshape(9, -1)).reshape(36, len(weight), -1)


def _winograd(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] and transformed weights [36, O, C] → [H, W, O]."""
    height, width, channels = rows.shape[0] - 2, rows.shape[1] - 2, rows.shape[2]
    n_rows, n_columns = math.ceil(height / 4), math.ceil(width / 4)
    rows = mx.pad(rows, [(0, 4 * n_rows - height), (0, 4 * n_columns - width), (0, 0)])
    stride = rows.shape[1] * channels
    tiles = mx.as_strided(
        rows,
        (6, 6, n_rows, n_columns, channels),
        (stride, channels, 4 * stride, 4 * channels, 1),
    )
    tiles = (_TILE @ tiles.reshape(36, -1)).reshape(36, -1, channels)  # [36, tiles, C]
    result = (_RESULT @ (tiles @ weight.swapaxes(1, 2)).reshape(36, -1)).reshape(4, 4, n_rows, n_columns, -1)
    result = result.transpose(2, 0, 3, 1, 4).reshape(4 * n_rows, 4 * n_columns, -1)
    return result[:height, :width]
