"""Layers that the networks share. Pictures and latents are channels-last: [B, H, W, C].

What is slow on a Linux CPU is done there by `cpu`, and by MLX everywhere else.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from . import cpu

Activation = Callable[[mx.array], mx.array]
KeysValues = tuple[mx.array, mx.array]  # [B, M, D] each
Norm = nn.LayerNorm | nn.GroupNorm


def silu(x: mx.array) -> mx.array:
    """x times the logistic function of x."""
    return cpu.activate(x, cpu.Activation.SILU) if cpu.serves(x) else nn.silu(x)


def gelu(x: mx.array) -> mx.array:
    """x times the normal distribution function of x."""
    return cpu.activate(x, cpu.Activation.GELU) if cpu.serves(x) else nn.gelu(x)


def quick_gelu(x: mx.array) -> mx.array:
    """CLIP's approximation of `gelu`."""
    is_served = cpu.serves(x)
    return cpu.activate(x, cpu.Activation.QUICK_GELU) if is_served else nn.gelu_fast_approx(x)


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
    """Scaled dot-product attention: [B, L, D], [B, M, D] twice → [B, L, D].

    Every head has its part of D. Where it is causal, position i attends to those up to i.
    """
    scale = (queries.shape[-1] // num_heads) ** -0.5
    if cpu.serves(queries):
        return cpu.attention(queries, keys, values, num_heads, scale, causal)
    heads = (mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2) for x in (queries, keys, values))
    mask = "causal" if causal else None
    attended = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
    return attended.swapaxes(1, 2).flatten(2)


class Linear(nn.Linear):
    """norm(x) [..., D] times the transpose of the weight [O, D], plus the bias [O]."""

    def __call__(
        self, x: mx.array, norm: Norm | None = None, added: mx.array | None = None
    ) -> mx.array:
        """`added` is added to the result."""
        if cpu.serves(x):
            return _by_kernels([self], x, norm, added)[0]
        return _with(super().__call__, x, norm, added)

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
        if cpu.serves(x):
            return _by_kernels([self], x, norm, added)[0]
        return _with(super().__call__, x, norm, added)

    def wide_weight(self) -> mx.array:
        """The weight as the kernels of a CPU take it."""
        return cpu.dequantize(self.weight, self.scales, self.biases, self.group_size, self.bits)


def project(x: mx.array, weight: mx.array, added: mx.array | None = None) -> mx.array:
    """x [..., D] times the transpose of a weight [O, D], plus what may be added."""
    if cpu.serves(x):
        return cpu.linear(x, [weight], [None], added=added)[0]
    return _with(lambda x: x @ weight.T, x, None, added)


def apply_each(
    layers: Sequence[nn.Module], x: mx.array, norm: Norm | None = None
) -> list[mx.array]:
    """Each of some linear layers of one shape, of norm(x)."""
    if cpu.serves(x) and all(map(_is_plain, layers)):
        return _by_kernels(layers, x, norm)
    x = x if norm is None else norm(x)
    return [layer(x) for layer in layers]


def geglu(layer: nn.Module, x: mx.array, norm: Norm) -> mx.array:
    """Of layer(norm(x)) [..., 2D] one half times the GELU of the other (Shazeer 2020,
    arXiv:2002.05202): [..., D]."""
    if cpu.serves(x) and _is_plain(layer):
        return _by_kernels([layer], x, norm, gated=True)[0]
    hidden, gate = layer(x, norm).split(2, axis=-1)
    return hidden * gelu(gate)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is all in its weight: a LoRA has more beside it."""
    return isinstance(layer, Linear | QuantizedLinear)


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
    return cpu.linear(x, weights, biases, statistics, added, gated)


def _statistics(norm: Norm, x: mx.array) -> cpu.Norm:
    if isinstance(norm, nn.GroupNorm):
        return cpu.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return cpu.Norm(norm.weight, norm.bias, norm.eps)


def _with(function: Activation, x: mx.array, norm: Norm | None, added: mx.array | None) -> mx.array:
    """function(norm(x)) + added."""
    y = function(x if norm is None else norm(x))
    return y if added is None else added + y


class GroupNorm(nn.GroupNorm):
    """GroupNorm as PyTorch groups the channels."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        return cpu.normalise(x, _statistics(self, x)) if cpu.serves(x) else super().__call__(x)


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
        if cpu.serves(x):
            return self._by_kernels(x, norm, activation, added, bias)
        if activation is not None:
            x = activation(norm(x))
        if not self.padding[0]:
            x = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        y = super().__call__(x)
        if bias is not None:
            y = y + bias[:, None, None, :]
        return y if added is None else added + y

    def of_upsampled(self, x: mx.array) -> mx.array:
        """The convolution of `x` with every pixel doubled along both sides: [B, 2H, 2W, O]."""
        if cpu.serves(x):
            return cpu.conv3x3(x, self.weight, self.bias, upsample=True)
        return self(upsample_nearest(x))

    def _by_kernels(self, x, norm, activation, added, bias) -> mx.array:
        if activation is not None and activation is not silu:
            x, norm, activation = activation(norm(x)), None, None
        return cpu.conv3x3(
            x,
            self.weight,
            self.bias if bias is None else bias + self.bias,
            None if norm is None else _statistics(norm, x),
            cpu.Activation.NONE if activation is None else cpu.Activation.SILU,
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
