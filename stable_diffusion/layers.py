"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C]."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

# Keyed by the names in config files; `config.ACTIVATIONS` lists the same.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": nn.mish,
    "gelu": nn.gelu,
    "relu": nn.relu,
    "quick_gelu": nn.gelu_fast_approx,
}

# GroupNorm as PyTorch groups the channels.
GroupNorm = partial(nn.GroupNorm, pytorch_compatible=True)


class Attention(nn.Module):
    """Multi-head attention of `x` [B, L, D] over itself, or over a `memory` [B, M, E].

    Args:
        dims: the width D of `x` and of the output.
        num_heads: heads, each of width D / num_heads.
        memory_dims: the width E of the memory; D where `x` attends to itself.
        bias: whether query, key and value have one; the output always does.
    """

    def __init__(
        self, dims: int, num_heads: int, memory_dims: int | None = None, bias: bool = True
    ):
        super().__init__()
        memory_dims = dims if memory_dims is None else memory_dims
        self.num_heads = num_heads
        self.query_proj = nn.Linear(dims, dims, bias=bias)
        self.key_proj = nn.Linear(memory_dims, dims, bias=bias)
        self.value_proj = nn.Linear(memory_dims, dims, bias=bias)
        self.out_proj = nn.Linear(dims, dims)

    def __call__(
        self, x: mx.array, memory: mx.array | None = None, mask: str | None = None
    ) -> mx.array:
        memory = x if memory is None else memory
        queries = self._split_heads(self.query_proj(x))
        keys = self._split_heads(self.key_proj(memory))
        values = self._split_heads(self.value_proj(memory))
        scale = queries.shape[-1] ** -0.5
        x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
        return self.out_proj(x.swapaxes(1, 2).flatten(2))  # [B, L, D]

    def _split_heads(self, x: mx.array) -> mx.array:
        x = mx.unflatten(x, -1, (self.num_heads, -1))
        return x.swapaxes(1, 2)  # [B, heads, L, D / heads]


class ResnetBlock2D(nn.Module):
    """Two normalised 3×3 convolutions beside a skip connection, told the time in between.

    `temb_channels` is the width of the time embedding; None where there is none, as in the VAE.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        activation: str,
        temb_channels: int | None = None,
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        if temb_channels is not None:
            self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Linear(in_channels, out_channels)

    def __call__(self, x: mx.array, temb: mx.array | None = None) -> mx.array:
        """`temb` [B, temb_channels] is the time embedding, already through the activation."""
        h = self.conv1(self.activation(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(temb)[:, None, None, :]
        h = self.conv2(self.activation(self.norm2(h)))
        if "conv_shortcut" in self:
            x = self.conv_shortcut(x)
        return x + h


def upsample_nearest(x: mx.array) -> mx.array:
    """Every pixel of [B, H, W, C] twice along both sides: [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
