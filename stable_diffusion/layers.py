"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C].

What is slow on a Linux CPU is done there by `cpu`, and by MLX everywhere else.
"""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .device import cpu_kernels

Activation = Callable[[mx.array], mx.array]
KeysValues = tuple[mx.array, mx.array]  # [B, M, D] each
Norm = nn.LayerNorm | nn.GroupNorm


def silu(x: mx.array) -> mx.array:
    """Return x times the logistic function of x."""
    return _activate(x, cpu_kernels.Activation.SILU, nn.silu)


def gelu(x: mx.array) -> mx.array:
    """Return x times the normal distribution function of x."""
    return _activate(x, cpu_kernels.Activation.GELU, nn.gelu)


def quick_gelu(x: mx.array) -> mx.array:
    """Return CLIP's approximation of `gelu`."""
    return _activate(x, cpu_kernels.Activation.QUICK_GELU, nn.gelu_fast_approx)


def _activate(x: mx.array, activation: cpu_kernels.Activation, plain: Activation) -> mx.array:
    return cpu_kernels.by_kernels(x, lambda: cpu_kernels.activate(x, activation), lambda: plain(x))


# Keyed by the names in config files; `config.ACTIVATIONS` lists the same.
ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "mish": nn.mish,
    "gelu": gelu,
    "relu": nn.relu,
    "quick_gelu": quick_gelu,
}


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, num_heads: int, causal: bool = False
) -> mx.array:
    """Return the scaled dot-product attention of [B, L, D] to [B, M, D] and [B, M, D]: [B, L, D].

    Every head has its part of D. If it is causal, position i attends to those up to i.
    """
    inputs = queries, keys, values
    scale = (queries.shape[-1] // num_heads) ** -0.5

    def plain() -> mx.array:
        heads = (mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2) for x in inputs)
        mask = "causal" if causal else None
        attended = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
        return attended.swapaxes(1, 2).flatten(2)

    kernel = partial(cpu_kernels.attention, *inputs, num_heads, scale, causal)
    return cpu_kernels.by_kernels(queries, kernel, plain)


class Linear(nn.Linear):
    """norm(x) [..., D] times the transpose of the weight [O, D], plus the bias [O]."""

    def __call__(
        self, x: mx.array, norm: Norm | None = None, added: mx.array | None = None
    ) -> mx.array:
        """`added` is added to the result."""
        return _apply(self, super().__call__, x, norm, added)

    def wide_weight(self) -> mx.array:
        """The weight as the kernels of a CPU take it."""
        return self.weight

    def to_quantized(self, *arguments, **options) -> nn.QuantizedLinear:
        """The layer with a quantized weight; arguments as of MLX's own."""
        return QuantizedLinear.from_linear(self, *arguments, **options)


class QuantizedLinear(nn.QuantizedLinear):
    """A `Linear` with a quantized weight."""

    def __call__(
        self, x: mx.array, norm: Norm | None = None, added: mx.array | None = None
    ) -> mx.array:
        """`added` is added to the result."""
        return _apply(self, super().__call__, x, norm, added)

    def wide_weight(self) -> mx.array:
        """The weight as the kernels of a CPU take it."""
        return cpu_kernels.dequantize(
            self.weight, self.scales, self.biases, self.group_size, self.bits
        )


def project(x: mx.array, weight: mx.array, added: mx.array | None = None) -> mx.array:
    """x [..., D] times the transpose of a weight [O, D], plus what may be added."""
    return cpu_kernels.by_kernels(
        x,
        lambda: cpu_kernels.linear(x, [weight], [None], added=added)[0],
        lambda: _with(lambda x: x @ weight.T, x, None, added),
    )


def apply_each(
    layers: Sequence[nn.Module], x: mx.array, norm: Norm | None = None
) -> list[mx.array]:
    """Each of some linear layers of one shape, of norm(x)."""

    def one_by_one() -> list[mx.array]:
        y = x if norm is None else norm(x)
        return [layer(y) for layer in layers]

    if not all(map(_is_plain, layers)):
        return one_by_one()
    return cpu_kernels.by_kernels(x, lambda: _by_kernels(layers, x, norm), one_by_one)


def geglu(layer: nn.Module, x: mx.array, norm: Norm) -> mx.array:
    """Of layer(norm(x)) [..., 2D] one half times the GELU of the other (Shazeer 2020,
    arXiv:2002.05202): [..., D]."""

    def plain() -> mx.array:
        hidden, gate = layer(x, norm).split(2, axis=-1)
        return hidden * gelu(gate)

    if not _is_plain(layer):
        return plain()
    return cpu_kernels.by_kernels(x, lambda: _by_kernels([layer], x, norm, gated=True)[0], plain)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is all in its weight: a LoRA has more beside it."""
    return isinstance(layer, Linear | QuantizedLinear)


def _apply(
    layer: Linear | QuantizedLinear,
    plain: Activation,
    x: mx.array,
    norm: Norm | None,
    added: mx.array | None,
) -> mx.array:
    """Return layer(norm(x)) + added; `plain` is the layer by MLX's own operations."""
    return cpu_kernels.by_kernels(
        x,
        lambda: _by_kernels([layer], x, norm, added)[0],
        lambda: _with(plain, x, norm, added),
    )


def _by_kernels(
    layers: Sequence[Linear | QuantizedLinear],
    x: mx.array,
    norm: Norm | None,
    added: mx.array | None = None,
    gated: bool = False,
) -> list[mx.array]:
    weights = [layer.wide_weight() for layer in layers]
    biases = [layer.get("bias") for layer in layers]
    statistics = None if norm is None else _statistics(norm, x)
    return cpu_kernels.linear(x, weights, biases, statistics, added, gated)


def _statistics(norm: Norm, x: mx.array) -> cpu_kernels.Norm:
    if isinstance(norm, nn.GroupNorm):
        return cpu_kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return cpu_kernels.Norm(norm.weight, norm.bias, norm.eps)


def _with(function: Activation, x: mx.array, norm: Norm | None, added: mx.array | None) -> mx.array:
    """function(norm(x)) + added."""
    y = function(x if norm is None else norm(x))
    return y if added is None else added + y


class GroupNorm(nn.GroupNorm):
    """GroupNorm as PyTorch groups the channels."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        plain = super().__call__
        kernel = lambda: cpu_kernels.normalise(x, _statistics(self, x))  # noqa: E731
        return cpu_kernels.by_kernels(x, kernel, lambda: plain(x))


class Conv3x3(nn.Conv2d):
    """3×3 convolution of [B, H, W, C], padded with zeros.

    A stride of 2 halves height and width, rounded up. `padding` is that above and to the left;
    below and to the right it is always 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=padding)

    def __call__(
        self,
        x: mx.array,
        norm: GroupNorm | None = None,
        activation: Activation | None = None,
        added: mx.array | None = None,
        bias: mx.array | None = None,
    ) -> mx.array:
        """The convolution of activation(norm(x)).

        Args:
            added: what is added to the result.
            bias: [B, O], of each picture, beside the layer's own.
        """
        convolve = super().__call__

        def plain() -> mx.array:
            y = x if activation is None else activation(norm(x))
            if not self.padding[0]:
                y = mx.pad(y, [(0, 0), (0, 1), (0, 1), (0, 0)])
            y = convolve(y)
            if bias is not None:
                y = y + bias[:, None, None, :]
            return y if added is None else added + y

        kernels = partial(self._by_kernels, x, norm, activation, added, bias)
        return cpu_kernels.by_kernels(x, kernels, plain)

    def of_upsampled(self, x: mx.array) -> mx.array:
        """The convolution of `x` with every pixel doubled along both sides: [B, 2H, 2W, O]."""
        return cpu_kernels.by_kernels(
            x,
            lambda: cpu_kernels.conv3x3(x, self.weight, self.bias, upsample=True),
            lambda: self(upsample_nearest(x)),
        )

    def _by_kernels(self, x, norm, activation, added, bias) -> mx.array:
        if activation is not None and activation is not silu:
            x, norm, activation = activation(norm(x)), None, None
        return cpu_kernels.conv3x3(
            x,
            self.weight,
            self.bias if bias is None else bias + self.bias,
            None if norm is None else _statistics(norm, x),
            cpu_kernels.Activation.NONE if activation is None else cpu_kernels.Activation.SILU,
            added,
            stride=self.stride[0],
            padding=self.padding[0],
        )


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
        self,
        x: mx.array,
        memory: mx.array | KeysValues | None = None,
        causal: bool = False,
        norm: Norm | None = None,
        added: mx.array | None = None,
    ) -> mx.array:
        """Of norm(x), which it attends to itself where there is no memory; `added` is added."""
        if memory is None:
            projected = apply_each([self.query_proj, self.key_proj, self.value_proj], x, norm)
        else:
            memory = self.project(memory) if isinstance(memory, mx.array) else memory
            projected = self.query_proj(x, norm), *memory
        return self.out_proj(attend(*projected, self.num_heads, causal), added=added)

    def project(self, memory: mx.array) -> KeysValues:
        """The keys and values of a memory [B, M, E]."""
        return self.key_proj(memory), self.value_proj(memory)


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
        """`temb` [B or 1, temb_channels] is the time embedding, already through the activation."""
        time = None if temb is None else self.time_emb_proj(temb)
        h = self.conv1(x, self.norm1, self.activation, bias=time)
        if "conv_shortcut" in self:
            x = self.conv_shortcut(x)
        return self.conv2(h, self.norm2, self.activation, added=x)


def upsample_nearest(x: mx.array) -> mx.array:
    """Every pixel of [B, H, W, C] twice along both sides: [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
