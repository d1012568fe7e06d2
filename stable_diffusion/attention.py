"""Attention, which the networks share: heads of queries, keys and values, and their projections."""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels, fused_attention
from .device.memory import choose_score_bytes
from .layers import Linear, Norm, apply_each, has_half_weights

KeysValues = tuple[mx.array, mx.array]  # [B, M, D] each

# MLX allocates the results of what it has scheduled, and schedules some operations ahead of the
# device: the scores of up to so many chunks of queries are in memory at once.
MAX_CHUNKS_ALIVE = 12


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    num_heads: int,
    causal: bool = False,
    half: bool = False,
) -> mx.array:
    """Return the scaled dot-product attention of [B, L, D] to [B, M, D] and [B, M, D]: [B, L, D].

    D is split evenly between the heads. If causal, position i attends to positions 0 … i. Scores
    that are stored take at most `choose_score_bytes()` bytes, unless they are causal.

    Args:
        half: whether the kernels for a Linux CPU may multiply bfloat16.
    """
    inputs = queries, keys, values
    scale = (queries.shape[-1] // num_heads) ** -0.5
    kernel = partial(cpu_kernels.attention, *inputs, num_heads, scale, causal, half)
    plain = partial(_attend_by_mlx, *inputs, num_heads, scale, causal)
    return cpu_kernels.try_kernels(queries, kernel, plain)


def _attend_by_mlx(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    num_heads: int,
    scale: float,
    causal: bool,
) -> mx.array:
    """Return the same as `attend` by MLX's own operations."""
    head_width = queries.shape[-1] // num_heads
    width = fused_attention.choose_width(head_width, keys.shape[1])
    split = partial(_split_heads, num_heads=num_heads, width=width)
    queries, keys, values = split(queries), split(keys), split(values)
    mask = "causal" if causal else None
    parts: list[mx.array] = []
    for chunk in [queries] if causal else _split_queries(queries, keys):
        if parts:
            # Otherwise MLX computes the scores of some twenty chunks before it completes the first.
            chunk = wait_for(parts[-1], chunk)
        part = mx.fast.scaled_dot_product_attention(chunk, keys, values, scale=scale, mask=mask)
        parts.append(part.swapaxes(1, 2)[..., :head_width])  # [B, L, H, head_width]
    attended = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
    return attended.flatten(2)


def _split_heads(x: mx.array, num_heads: int, width: int) -> mx.array:
    """Return the heads [B, H, L, width] of [B, L, D], padded with zeros, which change no score."""
    x = mx.unflatten(x, -1, (num_heads, -1))
    missing = width - x.shape[-1]
    if missing:
        x = mx.pad(x, [(0, 0), (0, 0), (0, 0), (0, missing)])
    return x.swapaxes(1, 2)


def _split_queries(queries: mx.array, keys: mx.array) -> Iterator[mx.array]:
    """Yield queries [B, H, L, W] in chunks, so that the scores of all of them take little memory.

    They are one chunk if the scores are not stored, or if all of them may be.
    """
    batch, num_heads, length, width = queries.shape
    row_bytes = batch * num_heads * keys.shape[2] * queries.dtype.size
    limit = choose_score_bytes()
    if fused_attention.is_fused(width, queries.dtype) or length * row_bytes <= limit:
        yield queries
        return
    n_queries = max(1, limit // (MAX_CHUNKS_ALIVE * row_bytes))
    for start in range(0, length, n_queries):
        yield queries[:, :, start : start + n_queries]


def wait_for(previous: mx.array, x: mx.array) -> mx.array:
    """Return x in a form that MLX computes only after `previous`, [B, H, W, C].

    MLX computes about twenty independent operations ahead, and so keeps all of their results.
    `mx.depends` is for this, but cannot be mapped and has no forward derivative (MLX 0.32).
    """
    return mx.where(mx.isnan(previous[:1, :1, :1, :1]), x, x)


class Attention(nn.Module):
    """Multi-head attention of `x` [B, L, D] to itself, or to a `memory` [B, M, E].

    Args:
        dims: the width D of `x` and of the output; each head has D / num_heads of it.
        memory_dims: the width E of the memory; None if it is D.
        bias: whether the projections of query, key and value have a bias; the output always has.
    """

    def __init__(
        self, dims: int, num_heads: int, memory_dims: int | None = None, bias: bool = True
    ):
        super().__init__()
        memory_dims = dims if memory_dims is None else memory_dims
        self.num_heads = num_heads
        self.query_proj = Linear(dims, dims, bias=bias)
        self.key_proj = Linear(memory_dims, dims, bias=bias)
        self.value_proj = Linear(memory_dims, dims, bias=bias)
        self.out_proj = Linear(dims, dims)

    def __call__(
        self,
        x: mx.array,
        memory: mx.array | KeysValues | None = None,
        *,
        causal: bool = False,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Return residual + the attention of norm(x) to the memory, or to itself without a memory.

        A memory that is used more than once can be given as the result of `project_memory`.
        """
        if memory is None:
            projections = [self.query_proj, self.key_proj, self.value_proj]
            queries, keys, values = apply_each(projections, x, norm)
        else:
            keys, values = memory if isinstance(memory, tuple) else self.project_memory(memory)
            queries = self.query_proj(x, norm=norm)
        half = has_half_weights(self.out_proj)
        attended = attend(queries, keys, values, self.num_heads, causal, half)
        return self.out_proj(attended, residual=residual)

    def project_memory(self, memory: mx.array) -> KeysValues:
        """Return the keys and values [B, M, D] of a memory [B, M, E]."""
        return self.key_proj(memory), self.value_proj(memory)
