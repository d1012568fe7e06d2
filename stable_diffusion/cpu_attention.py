"""Attention for MLX on a Linux CPU: block by block, shared out over the cores."""

from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx

from .cpu import STRIP, join, polynomial, share

ExpBelow = Callable[[mx.array, mx.array], mx.array]

# exp(-16 t) = 1 / P(t)^16 for a polynomial P, by `tools/fit_gates.py`, near exp(t) in [0, 1], that
# only grows beyond: what is far below the maximum comes out as nothing. Lower powers first.
_EXP = [1.0, 0.999998175, 0.500038466, 0.166403272, 0.0424773525, 0.00710554145, 0.00225895019]


@cache
def _exp_below(scale: float) -> ExpBelow:
    """exp(scale · (x - maximum)), for what is no larger than the maximum."""
    coefficients = [c * (-scale / 16) ** n for n, c in enumerate(_EXP)]

    def exp_below(x: mx.array, maximum: mx.array) -> mx.array:
        power = polynomial(coefficients, x - maximum)
        for _ in range(4):
            power = power * power
        return 1 / power

    return mx.compile(exp_below)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, causal: bool = False
) -> mx.array:
    """Softmax attention over blocks of queries: [B, H, L, D], [B, H, M, D] twice → [B, H, L, D].

    No block of scores is larger than a strip (arXiv:2112.05682 does the same). Where it is
    causal, position i attends to those up to i.
    """
    *batch, length, width = queries.shape
    n_keys = keys.shape[-2]
    queries = queries.reshape(-1, length, width)
    # Contiguous once, or every block copies its own. [BH, D, M]
    keys = mx.contiguous(keys.reshape(-1, n_keys, width)).swapaxes(1, 2)
    values = values.reshape(-1, n_keys, width)
    # A column of ones beside the values: the product then also sums the rows.
    values = mx.concatenate([values, mx.ones((*values.shape[:2], 1))], axis=-1)

    # Added to scores. What is so far below the maximum weighs nothing beside it.
    mask = mx.triu(mx.full((length, n_keys), -1e9), k=1) if causal else None

    n_heads = max(1, STRIP // (length * n_keys))
    n_queries = max(1, STRIP // n_keys) if n_heads == 1 else length
    exp_below = _exp_below(scale)

    def block(h: slice, q: slice) -> mx.array:
        return _attend(
            queries[h, q], keys[h], values[h], exp_below, mask if mask is None else mask[q]
        )

    places = [
        (slice(i, i + n_heads), slice(j, j + n_queries))
        for i in range(0, len(queries), n_heads)
        for j in range(0, length, n_queries)
    ]
    # With one head a block, blocks follow one another as rows do.
    blocks = share([partial(block, *place) for place in places])
    return join(blocks, axis=1 if n_heads == 1 else 0).reshape(*batch, length, width)


def _attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    exp_below: ExpBelow,
    mask: mx.array | None,
) -> mx.array:
    """One block: queries [h, n, D], keys [h, D, M], values with ones [h, M, D + 1]."""
    scores = queries @ keys
    if mask is not None:
        scores = scores + mask
    weighted = exp_below(scores, _row_maxima(scores)) @ values
    return weighted[..., :-1] / weighted[..., -1:]


def _row_maxima(x: mx.array, parts: int = 64) -> mx.array:
    """The largest of each row: [..., N] → [..., 1]. Between rows it is found faster than along."""
    if x.shape[-1] % parts == 0:
        x = mx.unflatten(x, -1, (-1, parts)).max(axis=-2)
    return x.max(axis=-1, keepdims=True)
