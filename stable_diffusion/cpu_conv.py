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
MIN_TILES = 32

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

    # Strips of whole tiles, a multiple of the cores. Where pictures are too small for that, every
    # core does a part of the output of several instead.
    elements = height * width * max(channels, out_channels)
    n_strips = CORES * math.ceil(elements / STRIP / CORES) if elements > STRIP else 1
    step = 4 * math.ceil(height / (4 * n_strips))
    tops = range(0, height, step)
    n_pictures = min(batch, max(1, 2 * STRIP // elements))
    groups = [slice(i, i + n_pictures) for i in range(0, batch, n_pictures)]
    n_parts = CORES if len(groups) * len(tops) < CORES else 1

    n_tiles = n_pictures * math.ceil(height / 4) * math.ceil(width / 4)
    weight = weight.astype(mx.float32)
    if out_channels < MIN_CHANNELS:
        convolve, weights = _narrow, [_narrow_weight(part) for part in _split(weight, n_parts)]
    elif channels < MIN_CHANNELS or n_tiles < MIN_TILES:
        convolve, weights = _convolve, _split(weight, n_parts)
    else:
        convolve = _winograd
        # The cores share out the transform by outputs, as all else, or by terms of the result.
        terms = [_WEIGHT] if n_parts > 1 else _split(_WEIGHT, CORES)
        parts = _split(weight, n_parts)
        weights = share([partial(_winograd_weight, part, term) for part in parts for term in terms])
        weights = [weights[i : i + len(terms)] for i in range(0, len(weights), len(terms))]
    biases = _split(bias, n_parts)

    def strip(group: slice, top: int, part: int) -> mx.array:
        bottom = min(top + step, height)
        first, last = max(0, top - 1), min(height, bottom + 1)  # one row more on either side
        rows = x[group, first // factor : math.ceil(last / factor)]
        if prepare is not None:
            functions = zip(prepare[group], rows, strict=True)
            rows = mx.stack([function(picture) for function, picture in functions])
        if upsample:
            rows = _doubled(rows)[:, first % 2 :][:, : last - first]
        rows = mx.pad(rows, [(0, 0), (first - top + 1, bottom + 1 - last), (1, 1), (0, 0)])
        return convolve(rows, weights[part]) + biases[part]

    places = [(g, top, part) for g in groups for top in tops for part in range(n_parts)]
    strips = share([partial(strip, *place) for place in places])
    strips = join_by(n_parts, strips, axis=3)
    return join(join_by(len(tops), strips, axis=1))


def _split(outputs: mx.array, n_parts: int) -> list[mx.array]:
    """Contiguous parts of an array along its first axis, at most `n_parts` of them."""
    step = math.ceil(len(outputs) / n_parts)
    return [outputs[i : i + step] for i in range(0, len(outputs), step)]


def _doubled(rows: mx.array) -> mx.array:
    """Every pixel of [B, H, W, C] twice along both sides."""
    b, h, w, c = rows.shape
    rows = mx.broadcast_to(rows[:, :, None, :, None], (b, h, 2, w, 2, c))
    return rows.reshape(b, 2 * h, 2 * w, c)


def _convolve(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [B, H + 2, W + 2, C] → [B, H, W, O]."""
    return mx.conv2d(rows, weight)


def _narrow_weight(weight: mx.array) -> mx.array:
    """[O, 3, 3, C] → [C, 9 O]."""
    return weight.transpose(3, 1, 2, 0).reshape(weight.shape[-1], -1)


def _narrow(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [B, H + 2, W + 2, C] and weights [C, 9 O] of few outputs → [B, H, W, O]."""
    height, width = rows.shape[1] - 2, rows.shape[2] - 2
    taps = mx.unflatten(rows @ weight, -1, (3, 3, -1))  # [B, H + 2, W + 2, 3, 3, O]
    shifted = (taps[:, i : i + height, j : j + width, i, j] for i in range(3) for j in range(3))
    return sum(shifted)


def _winograd_weight(weight: mx.array, terms: mx.array) -> mx.array:
    """[O, 3, 3, C] and some rows of `_WEIGHT`, N of the 36 → [N, O, C]."""
    taps = weight.reshape(len(weight), 9, -1).swapaxes(0, 1)
    return mx.unflatten(terms @ taps.reshape(9, -1), 1, (len(weight), -1))


def _winograd(rows: mx.array, weights: list[mx.array]) -> mx.array:
    """Padded rows [B, H + 2, W + 2, C], 36 transformed weights [N, O, C], … → [B, H, W, O]."""
    batch, height, width, channels = rows.shape
    height, width = height - 2, width - 2
    n_rows, n_columns = math.ceil(height / 4), math.ceil(width / 4)
    if height % 4 or width % 4:
        rows = mx.pad(rows, [(0, 0), (0, 4 * n_rows - height), (0, 4 * n_columns - width), (0, 0)])
    stride = rows.shape[2] * channels
    tiles = mx.as_strided(
        rows,
        (6, 6, batch, n_rows, n_columns, channels),
        (stride, channels, rows.shape[1] * stride, 4 * stride, 4 * channels, 1),
    )
    tiles = (_TILE @ tiles.reshape(36, -1)).reshape(36, -1, channels)  # [36, tiles, C]
    result, first = mx.array(0.0), 0
    for weight in weights:
        terms = slice(first, first + len(weight))
        products = (tiles[terms] @ weight.swapaxes(1, 2)).reshape(len(weight), -1)
        result = mx.addmm(result, _RESULT[:, terms], products)
        first = terms.stop
    result = result.reshape(4, 4, batch, n_rows, n_columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return result.reshape(batch, 4 * n_rows, 4 * n_columns, -1)[:, :height, :width]
