"""Operations that MLX does slowly on a Linux CPU, made of those that it does well there.

There an exponential costs as much as 60 additions, and a convolution copies its input nine times.
Matrix products are fast (see `blas`), and so is arithmetic that `mx.compile` fuses: it vectorises
sums, products and quotients. Large operations go strip by strip, so that a strip stays in the
processor's cache and whole intermediate results never exist.

`layers` takes these functions for what `serves` accepts, and MLX's own for everything else. They
compute in float32, whatever type the weights are stored in.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

STRIP = 2**20  # elements of a strip, 4 MB in float32; tests make it small

# Winograd's convolution pays from so many channels and tiles of 4×4 pixels on: below, the
# transform of the weights costs more than it saves.
MIN_CHANNELS = 32
MIN_TILES = 64

Function = Callable[[mx.array], mx.array]


def is_used() -> bool:
    """Whether the default device is a Linux CPU."""
    return sys.platform == "linux" and mx.default_device().type == mx.cpu


def serves(x: mx.array) -> bool:
    """Whether these functions are the ones to take for `x`."""
    return x.dtype == mx.float32 and is_used()


def keep_freed_memory() -> None:
    """Have glibc keep large buffers for the next operation, not return them to the system.

    Each would be faulted in again page by page, which costs as much as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


# --- elementwise ----------------------------------------------------------------------------------


def _polynomial(coefficients: Sequence[float], x: mx.array) -> mx.array:
    """Estrin's scheme: few operations one after another, for `mx.compile` fuses 11 at most."""
    terms = list(coefficients)
    while len(terms) > 1:
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
        x = x * x
    return terms[0]


class _Gate:
    """x G(x) for a G that rises from 0 to 1, even but for 1/2, as the gates of SiLU and GELU are.

    G(x) is 1/2 + x P(x²) / Q(x²) within the limit and constant beyond; `tools/fit_gates.py` fits P
    and Q. Lower powers first.
    """

    def __init__(self, limit: float, above: Sequence[float], below: Sequence[float]):
        self._limit = limit

        def gated(x: mx.array, limited: mx.array) -> mx.array:
            square = limited * limited
            return x * (0.5 + limited * (_polynomial(above, square) / _polynomial(below, square)))

        self._gated = mx.compile(gated)

    def __call__(self, x: mx.array, gain: float = 1.0) -> mx.array:
        """x G(gain · x)."""
        x = mx.contiguous(x)
        # Clipped outside of what is compiled: it would keep the loop from being vectorised.
        return self._gated(x, mx.clip(x if gain == 1 else gain * x, -self._limit, self._limit))


# x times the logistic function of x.
silu = _Gate(
    18.0,
    above=[0.249999998, 0.00861125434, 6.24884781e-05, 1.22642185e-07, 4.8959677e-11],
    below=[1.0, 0.117778343, 0.00173148462, 6.54839609e-06, 6.26190975e-09, 7.08404929e-13],
)

# x times the normal distribution function of x.
gelu = _Gate(
    5.5,
    above=[0.398941985, 0.0351423998, 4.76162168e-3, 1.82858942e-4, 6.53074728e-6, 2.22159005e-8],
    below=[1.0, 0.25475252, 0.0293987372, 1.96243907e-3, 7.86105219e-5, 1.1953976e-6],
)


def quick_gelu(x: mx.array) -> mx.array:
    """x times the logistic function of 1.702 x, as in CLIP."""
    return silu(x, gain=1.702)


# exp(x) = exp(x / 32)^32, by the Taylor series to the sixth power: just what one loop can fuse.
# Relative error 1e-6 for |x| ≤ 8, and 4e-3 at the limit, where e^-30 is lost beside 1.
_EXP = [32.0**-n / math.factorial(n) for n in range(7)]
_EXP_LIMIT = 30.0


@mx.compile
def _exp(x: mx.array) -> mx.array:
    """exp(x) for |x| ≤ 30."""
    power = _polynomial(_EXP, x)
    for _ in range(5):
        power = power * power
    return power


# --- attention ------------------------------------------------------------------------------------


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Softmax attention over blocks of queries: [B, H, L, D], [B, H, M, D] twice → [B, H, L, D].

    No block of scores is larger than a strip (arXiv:2112.05682 does the same).
    """
    *batch, length, width = queries.shape
    n_keys = keys.shape[-2]
    queries = (queries * scale).reshape(-1, length, width)
    keys = keys.reshape(-1, n_keys, width).swapaxes(1, 2)  # [BH, D, M]
    values = values.reshape(-1, n_keys, width)
    # A column of ones beside the values: the product then also sums the rows.
    values = mx.concatenate([values, mx.ones((*values.shape[:2], 1))], axis=-1)

    n_heads = max(1, STRIP // (length * n_keys))
    n_queries = max(1, STRIP // n_keys) if n_heads == 1 else length
    heads = []
    for i in range(0, len(queries), n_heads):
        some = slice(i, i + n_heads)
        blocks = [
            _attend(queries[some, j : j + n_queries], keys[some], values[some])
            for j in range(0, length, n_queries)
        ]
        heads.append(_joined(blocks, axis=1))
    return _joined(heads, axis=0).reshape(*batch, length, width)


def _attend(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """One block: scaled queries [h, n, D], keys [h, D, M], values with ones [h, M, D + 1]."""
    scores = queries @ keys
    scores = mx.maximum(scores - scores.max(axis=-1, keepdims=True), -_EXP_LIMIT)
    weighted = _exp(scores) @ values
    return weighted[..., :-1] / weighted[..., -1:]


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return mx.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]


# --- normalisation --------------------------------------------------------------------------------

_affine = mx.compile(lambda x, gain, offset: x * gain + offset)
_squared_distance = mx.compile(lambda x, mean: (x - mean) * (x - mean))


def group_norm(
    x: mx.array, groups: int, weight: mx.array, bias: mx.array, eps: float
) -> list[Function]:
    """GroupNorm (PyTorch's grouping) of x [B, ..., C], as a function of rows of each picture.

    Only the statistics are taken here: `conv3x3` then normalises strip by strip.
    """
    return [
        _affine_function(*_gain_and_offset(pixels, groups, weight, bias, eps))
        for pixels in x.reshape(len(x), -1, x.shape[-1])
    ]


def _affine_function(gain: mx.array, offset: mx.array) -> Function:
    return lambda x: _affine(x, gain, offset)


def _gain_and_offset(
    pixels: mx.array, groups: int, weight: mx.array, bias: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """What normalises pixels [N, C] when multiplied and added: [C] each."""
    mean = _group_means(_mean(pixels, lambda strip: strip), groups)
    variance = _group_means(_mean(pixels, lambda strip: _squared_distance(strip, mean)), groups)
    gain = weight * mx.rsqrt(variance + eps)
    return gain, bias - mean * gain


def _mean(pixels: mx.array, function: Function) -> mx.array:
    """The mean of a function of pixels [N, C], in strips: [C].

    Sums of sums: one float32 after another, a quarter of a million would lose four digits.
    """
    size, channels = pixels.shape
    few = 64
    step = few * max(1, STRIP // (few * channels))
    total = mx.zeros(channels)
    for i in range(0, size, step):
        strip = function(pixels[i : i + step])
        whole = len(strip) // few * few
        if whole:
            total = total + strip[:whole].reshape(few, -1, channels).sum(axis=1).sum(axis=0)
        if whole < len(strip):
            total = total + strip[whole:].sum(axis=0)
    return total / size


def _group_means(channels: mx.array, groups: int) -> mx.array:
    """The mean of every channel's group: [C] → [C]."""
    means = channels.reshape(groups, -1).mean(axis=1)
    return mx.repeat(means, len(channels) // groups)


# --- convolution ----------------------------------------------------------------------------------

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
    weight = weight.astype(mx.float32)
    if out_channels < MIN_CHANNELS:
        convolve, weight = _narrow, weight.transpose(3, 1, 2, 0).reshape(channels, -1)
    elif channels < MIN_CHANNELS or n_tiles < MIN_TILES:
        convolve = _convolve
    else:
        convolve, weight = _winograd, _winograd_weight(weight)
    # Rows of a strip: whole tiles, and an even number.
    step = 4 * max(1, STRIP // (4 * width * max(channels, out_channels)))

    pictures = []
    for i in range(batch):
        strips = []
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first, last = max(0, top - 1), min(height, bottom + 1)  # one row more on either side
            rows = x[i, first // factor : math.ceil(last / factor)]
            if prepare is not None:
                rows = prepare[i](rows)
            if upsample:
                rows = _doubled(rows)[first % 2 :][: last - first]
            rows = mx.pad(rows, [(first - top + 1, bottom + 1 - last), (1, 1), (0, 0)])
            strips.append(convolve(rows, weight) + bias)
        pictures.append(_joined(strips, axis=0)[None])
    return _joined(pictures, axis=0)


def _doubled(rows: mx.array) -> mx.array:
    """Every pixel of [H, W, C] twice along both sides."""
    h, w, c = rows.shape
    return mx.broadcast_to(rows[:, None, :, None], (h, 2, w, 2, c)).reshape(2 * h, 2 * w, c)


def _convolve(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] → [H, W, O]."""
    return mx.conv2d(rows[None], weight)[0]


def _narrow(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] and weights [C, 9 O] of few outputs → [H, W, O]."""
    height, width = rows.shape[0] - 2, rows.shape[1] - 2
    taps = mx.unflatten(rows @ weight, -1, (3, 3, -1))  # [H + 2, W + 2, 3, 3, O]
    return sum(taps[i : i + height, j : j + width, i, j] for i in range(3) for j in range(3))


def _winograd_weight(weight: mx.array) -> mx.array:
    """[O, 3, 3, C] → [36, C, O]."""
    out_channels, _, _, channels = weight.shape
    taps = weight.reshape(out_channels, 9, channels).transpose(1, 2, 0)
    return (_WEIGHT @ taps.reshape(9, -1)).reshape(36, channels, out_channels)


def _winograd(rows: mx.array, weight: mx.array) -> mx.array:
    """Padded rows [H + 2, W + 2, C] and transformed weights [36, C, O] → [H, W, O]."""
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
    result = (_RESULT @ (tiles @ weight).reshape(36, -1)).reshape(4, 4, n_rows, n_columns, -1)
    result = result.transpose(2, 0, 3, 1, 4).reshape(4 * n_rows, 4 * n_columns, -1)
    return result[:height, :width]
