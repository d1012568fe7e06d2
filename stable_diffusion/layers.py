"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C].

What is slow on a Linux CPU is done there by `cpu`, and by MLX everywhere else.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import cpu
from .cpu_attention import attention
from .cpu_conv import conv3x3

Activation = Callable[[mx.array], mx.array]
KeysValues = tuple[mx.array, mx.array]  # [B, heads, M, D / heads] each


def silu(x: mx.array) -> mx.array:
    """x times the logistic function of x."""
    return cpu.silu(x) if cpu.serves(x) else nn.silu(x)


def gelu(x: mx.array) -> mx.array:
    """x times the normal distribution function of x."""
    return cpu.gelu(x) if cpu.serves(x) else nn.gelu(x)


def quick_gelu(x: mx.array) -> mx.array:
    """CLIP's approximation of `gelu`."""
    return cpu.quick_gelu(x) if cpu.serves(x) else nn.gelu_fast_approx(x)


# Keyed by the names in config files; `config.ACTIVATIONS` lists the same.
ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "mish": nn.mish,
    "gelu": gelu,
    "relu": nn.relu,
    "quick_gelu": quick_gelu,
}


def attend(queries: mx.array, keys: mx.array, values: mx.array, causal: bool = False) -> mx.array:
    """Scaled dot-product attention: [B, heads, L, D], [B, heads, M, D] twice → as the queries.

    Where it is causal, position i attends to those up to i.
    """
    scale = queries.shape[-1] ** -0.5
    if cpu.serves(queries):
        return attention(queries, keys, values, scale, causal)
    mask = "causal" if causal else None
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def row_parts(x: mx.array, layer: nn.Module) -> list[mx.array]:
    """x [B, L, D] in the parts along L that are best worked on with weights like the layer's."""
    if not cpu.serves(x):
        return [x]
    stored = [weight.dtype for _, weight in tree_flatten(layer.parameters())]
    return cpu.row_parts(x, is_wide=all(dtype == mx.float32 for dtype in stored))


class Linear(nn.Linear):
    """x [..., D] times the transpose of the weight [O, D], plus the bias [O]."""

    def __call__(self, x: mx.array) -> mx.array:
        if cpu.serves(x):
            return cpu.linear(x, self.weight, self.get("bias"))
        return super().__call__(x)

    def to_quantized(self, *arguments, **options) -> nn.QuantizedLinear:
        """The layer with a quantized weight; arguments as of MLX's own."""
        return QuantizedLinear.from_linear(self, *arguments, **options)


class QuantizedLinear(nn.QuantizedLinear):
    """A `Linear` with a quantized weight."""

    def __call__(self, x: mx.array) -> mx.array:
        if not cpu.serves(x):
            return super().__call__(x)
        packed = self.weight, self.scales, self.biases
        return cpu.quantized_linear(x, *packed, self.get("bias"), self.group_size, self.bits)


class GroupNorm(nn.GroupNorm):
    """GroupNorm as PyTorch groups the channels."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        if not cpu.serves(x):
            return super().__call__(x)
        return mx.stack([norm(rows) for norm, rows in zip(self.of_rows(x), x, strict=True)])

    def of_rows(self, x: mx.array) -> list[Activation]:
        """For each picture of `x` what normalises rows of it."""
        return cpu.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Conv3x3(nn.Conv2d):
    """3×3 convolution of stride 1 over [B, H, W, C], padded with zeros."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return conv3x3(x, self.weight, self.bias) if cpu.serves(x) else super().__call__(x)

    def of_normalised(self, x: mx.array, norm: GroupNorm, activation: Activation) -> mx.array:
        """The convolution of activation(norm(x))."""
        if not cpu.serves(x):
            return self(activation(norm(x)))
        prepare = [
            lambda rows, norm=norm_rows: activation(norm(rows)) for norm_rows in norm.of_rows(x)
        ]
        return conv3x3(x, self.weight, self.bias, prepare)

    def of_upsampled(self, x: mx.array) -> mx.array:
        """The convolution of `x` with every pixel doubled along both sides: [B, 2H, 2W, O]."""
        if cpu.serves(x):
            return conv3x3(x, self.weight, self.bias, upsample=True)
        return self(upsample_nearest(x))


class Attention(nn.Module):
    """Multi-head attention of `x` [B, L, D] over itself, or over a `memory` [B, M, E].

    A memory that is attended to more than once may be given as its keys and values: `project`.

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
        self.query_proj = Linear(dims, dims, bias=bias)
        self.key_proj = Linear(memory_dims, dims, bias=bias)
        self.value_proj = Linear(memory_dims, dims, bias=bias)
        self.out_proj = Linear(dims, dims)

    def __call__(
        self, x: mx.array, memory: mx.array | KeysValues | None = None, causal: bool = False
    ) -> mx.array:
        memory = x if memory is None else memory
        keys_values = self.project(memory) if isinstance(memory, mx.array) else memory
        return self.output(attend(self.queries(x), *keys_values, causal))

    def queries(self, x: mx.array) -> mx.array:
        """What x [B, L, D] asks for: [B, heads, L, D / heads]."""
        return self._split_heads(self.query_proj(x))

    def project(self, memory: mx.array) -> KeysValues:
        """The keys and values of a memory [B, M, E]."""
        return self._split_heads(self.key_proj(memory)), self._split_heads(self.value_proj(memory))

    def output(self, heads: mx.array) -> mx.array:
        """What was attended to, [B, heads, L, D / heads] → [B, L, D]."""
        return self.out_proj(heads.swapaxes(1, 2).flatten(2))

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
        self.conv1 = Conv3x3(in_channels, out_channels)
        if temb_channels is not None:
            self.time_emb_proj = Linear(temb_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut = Linear(in_channels, out_channels)

    def __call__(self, x: mx.array, temb: mx.array | None = None) -> mx.array:
        """`temb` [B, temb_channels] is the time embedding, already through the activation."""
        h = self.conv1.of_normalised(x, self.norm1, self.activation)
        if temb is not None:
            h = h + self.time_emb_proj(temb)[:, None, None, :]
        h = self.conv2.of_normalised(h, self.norm2, self.activation)
        if "conv_shortcut" in self:
            x = self.conv_shortcut(x)
        return x + h


def upsample_nearest(x: mx.array) -> mx.array:
    """Every pixel of [B, H, W, C] twice along both sides: [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
