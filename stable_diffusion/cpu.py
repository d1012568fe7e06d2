"""Operations that MLX does slowly on a Linux CPU, made of those that it does well there.

There an exponential costs as much as 60 additions, a convolution copies its input nine times, and
everything but a matrix product runs on one core. Matrix products are fast (see `blas`), and so is
arithmetic that `mx.compile` fuses: it vectorises sums, products and quotients. Large operations go
strip by strip, so that a strip stays in the processor's cache and whole intermediate results never
exist, and the strips are shared out over the cores, a stream for each.

`layers` takes these functions for what `serves` accepts, and MLX's own for everything else. They
compute in float32, whatever type the weights are stored in.
"""

import ctypes
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial

import mlx.core as mx

STRIP = 2**20  # elements of a strip, 4 MB in float32; tests make it small

# How many rows are worth a core's reading all the weights of a product: with fewer, the cores
# share out the outputs instead. Weights that are not stored in float32 must be widened, too.
MIN_ROWS, MIN_ROWS_TO_WIDEN = 128, 1024

Function = Callable[[mx.array], mx.array]


def is_used() -> bool:
    """Whether the default device is a Linux CPU."""
    return sys.platform == "linux" and mx.default_device().type == mx.cpu


def serves(x: mx.array) -> bool:
    """Whether these functions are the ones to take for `x`."""
    return x.dtype == mx.float32 and is_used()


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """The type to compute in with weights of type `stored`.

    A Linux CPU multiplies half precision 50 times slower than single: there the weights are
    widened as they are used.
    """
    return mx.float32 if is_used() else stored


def keep_freed_memory() -> None:
    """Have glibc keep large buffers for the next operation, not return them to the system.

    Each would be faulted in again page by page, which costs as much as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


# --- sharing out ----------------------------------------------------------------------------------

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
_is_shared = False  # whether what runs now is one of several shares already


@cache
def _streams() -> list[mx.Stream]:
    return [mx.new_stream(mx.cpu) for _ in range(CORES)]


def share(tasks: Sequence[Callable[[], mx.array]]) -> list[mx.array]:
    """The results of `tasks`, each computed on one core, as many at a time as there are cores."""
    global _is_shared
    if _is_shared or len(tasks) == 1:
        return [task() for task in tasks]
    _is_shared = True
    try:
        results = []
        for i, task in enumerate(tasks):
            with mx.stream(_streams()[i % CORES]):
                results.append(task())
        return results
    finally:
        _is_shared = False


def join(parts: list[mx.array], axis: int = 0) -> mx.array:
    return mx.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]


def join_by(count: int, parts: list[mx.array], axis: int) -> list[mx.array]:
    """Every `count` parts in one."""
    return [join(parts[i : i + count], axis) for i in range(0, len(parts), count)]


def row_parts(x: mx.array, is_wide: bool = True) -> list[mx.array]:
    """x [B, L, D] as rows [B, l, D] for every core, where there are enough of them.

    `is_wide` says whether the weights that the rows will meet are stored in float32.
    """
    batch, length, _ = x.shape
    step = math.ceil(length / CORES)
    if _is_shared or batch * step < (MIN_ROWS if is_wide else MIN_ROWS_TO_WIDEN):
        return [x]
    return [x[:, i : i + step] for i in range(0, length, step)]


def by_outputs(
    function: Callable[[mx.array, slice], mx.array], x: mx.array, n_outputs: int
) -> mx.array:
    """function(rows, outputs) for x [..., D], all of its rows: a share of the outputs a core."""
    rows = x.reshape(-1, x.shape[-1])
    step = n_outputs if _is_shared else math.ceil(n_outputs / CORES)
    parts = [slice(i, i + step) for i in range(0, n_outputs, step)]
    y = join(share([partial(function, rows, part) for part in parts]), axis=1)
    return mx.unflatten(y, 0, x.shape[:-1])


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x [..., D] times the transpose of weight [O, D], plus bias [O]."""

    def product(rows: mx.array, part: slice = slice(None)) -> mx.array:
        wide = weight[part].astype(mx.float32).T
        return rows @ wide if bias is None else mx.addmm(bias[part].astype(mx.float32), rows, wide)

    parts = row_parts(x.reshape(1, -1, x.shape[-1]), weight.dtype == mx.float32)
    if len(parts) == 1:
        return by_outputs(product, x, len(weight))
    return mx.unflatten(join(share([partial(product, p[0]) for p in parts])), 0, x.shape[:-1])


def quantized_linear(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    offsets: mx.array,
    bias: mx.array | None,
    group_size: int,
    bits: int,
) -> mx.array:
    """`linear` with a weight as `mx.quantize` packs it; every core widens its part of the rows."""

    def product(rows: mx.array, part: slice) -> mx.array:
        wide = _dequantize(weight[part], scales[part], offsets[part], group_size, bits)
        return rows @ wide.T if bias is None else mx.addmm(bias[part], rows, wide.T)

    return by_outputs(product, x, len(weight))


def _dequantize(
    weight: mx.array, scales: mx.array, offsets: mx.array, group_size: int, bits: int
) -> mx.array:
    """Packed weights [O, D · bits / 32] → [O, D] in float32."""
    scales, offsets = scales.astype(mx.float32), offsets.astype(mx.float32)
    if bits != 8:
        return mx.dequantize(weight, scales, offsets, group_size, bits)
    groups = mx.unflatten(mx.view(weight, mx.uint8).astype(mx.float32), 1, (-1, group_size))
    return (groups * scales[..., None] + offsets[..., None]).flatten(1)


# --- elementwise ----------------------------------------------------------------------------------


def polynomial(coefficients: Sequence[float], x: mx.array) -> mx.array:
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
            return x * (0.5 + limited * (polynomial(above, square) / polynomial(below, square)))

        self._gated = mx.compile(gated)

    def __call__(self, x: mx.array, gain: float = 1.0) -> mx.array:
        """x G(gain · x)."""
        x = mx.contiguous(x)
        # Clipped outside of what is compiled: it would keep the loop from being vectorised.
        return self._gated(x, mx.clip(x if gain == 1 else gain * x, -self._limit, self._limit))


# x times the logistic function of x.
silu = _Gate(
    18.0,
    above=[0.249999992, 0.00859964032, 6.21234507e-5, 1.20737346e-7, 4.7401585e-11],
    below=[1.0, 0.117731873, 0.00172615517, 6.48347823e-6, 6.11891247e-9, 6.78410376e-13],
)

# x times the normal distribution function of x.
gelu = _Gate(
    5.5,
    above=[0.398941985, 0.0351424136, 4.76162252e-3, 1.82859154e-4, 6.53075743e-6, 2.22159355e-8],
    below=[1.0, 0.254752554, 0.0293987454, 1.96243991e-3, 7.86106445e-5, 1.19539943e-6],
)


def quick_gelu(x: mx.array) -> mx.array:
    """x times the logistic function of 1.702 x, as in CLIP."""
    return silu(x, gain=1.702)


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
    step = max(1, min(STRIP // channels, math.ceil(size / CORES)))

    def total(strip: mx.array) -> mx.array:
        return _sum_rows(function(strip))

    totals = share([partial(total, pixels[i : i + step]) for i in range(0, size, step)])
    return mx.stack(totals).sum(axis=0) / size


def _sum_rows(rows: mx.array, parts: int = 64) -> mx.array:
    """The sum of rows [N, C], as a sum of sums: [C]."""
    whole = len(rows) // parts * parts
    total = rows[whole:].sum(axis=0)
    if whole:
        total = total + rows[:whole].reshape(parts, -1, rows.shape[-1]).sum(axis=1).sum(axis=0)
    return total


def _group_means(channels: mx.array, groups: int) -> mx.array:
    """The mean of every channel's group: [C] → [C]."""
    means = channels.reshape(groups, -1).mean(axis=1)
    return mx.repeat(means, len(channels) // groups)
