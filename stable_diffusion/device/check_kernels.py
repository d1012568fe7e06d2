"""Compare the kernels with MLX's own operations, before they are first used."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import cpu_kernels, kernel_calls
from .quantize_weights import quantize_weight

# Relative to the largest number: far above rounding, far below any mistake.
MAX_ERROR = 1e-4
MAX_HALF_ERROR = 5e-2  # of kernels that round to bfloat16, whose numbers have an error of 4e-3

Results = list[mx.array]


class Check(NamedTuple):
    """Two ways to compute the same result."""

    kernel: str  # the kernel's name
    compute: Callable[[], Results]  # by the kernel
    plain: Callable[[], Results]  # by MLX's operations

    @property
    def max_error(self) -> float:
        """Return the largest error that rounding may cause."""
        return MAX_HALF_ERROR if self.kernel in kernel_calls.HALF_KERNELS else MAX_ERROR


def find_wrong_kernels() -> list[str]:
    """Return the names of the kernels that do not agree with MLX for some input."""
    return sorted({check.kernel for check in _make_checks() if not _agrees(check)})


def sees_tracing() -> bool:
    """Return whether `kernel_calls.is_traced` is right inside and outside of transformations."""
    x = mx.ones((2,))
    seen = []

    def look(x: mx.array) -> mx.array:
        seen.append(kernel_calls.is_traced(x))
        return x.sum()

    for transformation in (mx.grad, mx.vmap):
        mx.eval(transformation(look)(x))
    compiled = mx.compile(look)
    mx.eval(compiled(x), compiled(x))
    # The second call does not trace again. If compiling is disabled, no call traces.
    is_right = seen in ([True, True, True], [True, True, False, False])
    return is_right and not kernel_calls.is_traced(x)


def _agrees(check: Check) -> bool:
    try:
        ours = check.compute()
    except kernel_calls.Unsupported:  # it needs another kernel, which does not agree
        return False
    pairs = zip(ours, check.plain(), strict=True)
    return all(_is_close(*pair, check.max_error) for pair in pairs)


def _is_close(ours: mx.array, plain: mx.array, max_error: float) -> bool:
    error = mx.abs(ours - plain).max() / mx.abs(plain).max()
    return ours.shape == plain.shape and bool((error < max_error).item())  # false for NaN


def _make_checks() -> Iterator[Check]:
    yield from _check_activations()
    yield from _check_norms()
    yield from _check_weights()
    for half in (False, True) if cpu_kernels.multiplies_halves() else (False,):
        yield from _check_linear(half)
        yield from _check_convolutions(half)
        yield from _check_attention(half)


def _numbers(*shape: int) -> mx.array:
    """Return numbers from -2 to 2 without a pattern, the same each time."""
    count = mx.arange(1, 1 + mx.zeros(shape).size)
    return (2 * mx.sin(count * count % 1009 * 1.7)).reshape(shape)


def _call(function: Callable[..., mx.array], *arguments: Any) -> Callable[[], Results]:
    """Return a function without arguments, for a `Check`."""
    return lambda: [function(*arguments)]


def _check_activations() -> Iterator[Check]:
    x = _numbers(3, 5, 16)
    activations = {
        cpu_kernels.Activation.SILU: _silu,
        cpu_kernels.Activation.GELU: _gelu,
        cpu_kernels.Activation.QUICK_GELU: lambda x: x * mx.sigmoid(1.702 * x),
    }
    for activation, plain in activations.items():
        yield Check("activate", _call(cpu_kernels.activate, x, activation), _call(plain, x))


def _check_norms() -> Iterator[Check]:
    pixels, gain, offset = _numbers(2, 9, 10, 24), _numbers(24), _numbers(24) + 1
    groups = nn.GroupNorm(4, 24, eps=1e-3, pytorch_compatible=True)
    groups.weight, groups.bias = gain, offset
    norm = cpu_kernels.group_norm(pixels, 4, gain, offset, 1e-3)
    yield Check(
        "group_norm",
        lambda: [norm.gain * pixels[:, 0, 0] + norm.offset],
        lambda: [groups(pixels)[:, 0, 0]],
    )
    yield Check(
        "normalize",
        lambda: [cpu_kernels.normalize(pixels, norm)],
        lambda: [pixels * norm.gain[:, None, None] + norm.offset[:, None, None]],
    )


def _choose(half: bool, kernel: str) -> tuple[str, mx.Dtype]:
    """Return the name of a kernel, and the type of weights with which it is used."""
    return (f"half_{kernel}", mx.bfloat16) if half else (kernel, mx.float32)


def _check_linear(half: bool) -> Iterator[Check]:
    name, dtype = _choose(half, "linear")
    # More than a tile of AMX, which has 16 rows of 32 numbers, and not a multiple.
    rows, gain, offset = _numbers(2, 37, 76), _numbers(76), _numbers(76) + 1
    weights = [(_numbers(58, 76) + shift).astype(dtype) for shift in (0, 0.1)]
    bias = _numbers(58)
    residual = _numbers(2, 37, 58)

    def compute(norm: cpu_kernels.Norm | None) -> Results:
        return cpu_kernels.linear(rows, weights, [bias, None], norm, residual)

    def plain(x: mx.array) -> Results:
        return [x @ weights[0].T + residual + bias, x @ weights[1].T + residual]

    yield Check(name, lambda: compute(None), lambda: plain(rows))
    yield Check(
        name,
        lambda: compute(cpu_kernels.Norm(gain, offset, 1e-3)),
        lambda: plain(mx.fast.layer_norm(rows, gain, offset, 1e-3)),
    )
    gains, offsets = _numbers(2, 76), _numbers(2, 76) + 1
    yield Check(
        name,
        lambda: compute(cpu_kernels.Norm(gains, offsets)),
        lambda: plain(rows * gains[:, None] + offsets[:, None]),
    )

    def gate() -> Results:
        hidden, gates = (rows @ weights[0].T + bias).split(2, axis=-1)
        return [hidden * _gelu(gates)]

    yield Check(name, lambda: cpu_kernels.linear(rows, weights[:1], [bias], gated=True), gate)


def _check_convolutions(half: bool) -> Iterator[Check]:
    check = partial(_check_conv3x3, *_choose(half, "conv3x3"))
    x, norm = _numbers(2, 9, 10, 24), cpu_kernels.Norm(_numbers(2, 24), _numbers(2, 24) + 1)
    prepared = _silu(x * norm.gain[:, None, None] + norm.offset[:, None, None])
    upsampled = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    yield from check(x, prepared, norm=norm, activation=cpu_kernels.Activation.SILU)
    yield from check(x, upsampled, upsample=True)
    yield from check(x, x, stride=2)
    yield from check(x, x, stride=2, padding=0)
    n_channels = 20 if half else 21  # the kernels of half precision take pairs
    small = x[:, :2, :2, :n_channels]  # for the direct sum instead of Winograd's method
    yield from check(small, small)


def _check_conv3x3(
    name: str,
    dtype: mx.Dtype,
    x: mx.array,
    prepared: mx.array,
    *,
    stride: int = 1,
    padding: int = 1,
    **options: Any,
) -> Iterator[Check]:
    """Yield checks with a bias for each picture, and with one bias and a residual.

    `prepared` is x after everything that the kernel does before the convolution.
    """
    weight, bias = _numbers(10, 3, 3, 24)[..., : x.shape[-1]].astype(dtype), _numbers(2, 10)
    padded = mx.pad(prepared, [(0, 0), (padding, 1), (padding, 1), (0, 0)])
    result = mx.conv2d(padded, weight, stride=stride)
    residual = _numbers(*result.shape)
    options |= {"stride": stride, "padding": padding}
    yield Check(
        name,
        lambda: [cpu_kernels.conv3x3(x, weight, bias, **options)],
        lambda: [result + bias[:, None, None]],
    )
    yield Check(
        name,
        lambda: [cpu_kernels.conv3x3(x, weight, bias[:1], residual=residual, **options)],
        lambda: [result + bias[0] + residual],
    )


def _check_attention(half: bool) -> Iterator[Check]:
    name, _ = _choose(half, "attention")
    q, k, v = _numbers(2, 35, 24), _numbers(2, 40, 24) + 0.5, _numbers(2, 40, 24) - 0.5
    for causal in (False, True):
        keys, values = (k[:, :35], v[:, :35]) if causal else (k, v)
        inputs = (q, keys, values, 3, 0.35, causal)
        ours = _call(cpu_kernels.attention, *inputs, half)
        yield Check(name, ours, _call(_attention, *inputs))


def _check_weights() -> Iterator[Check]:
    for dtype in (mx.float16, mx.bfloat16):
        halves = (_numbers(70) * 1000).astype(dtype)
        yield Check("widen", _call(kernel_calls.widen, halves), _call(halves.astype, mx.float32))
    for bits in (4, 6, 8):
        packed, *ranges = mx.quantize(_numbers(18, 64), 32, bits)
        plain = _call(mx.dequantize, packed, *ranges, 32, bits)
        yield Check("dequantize", _call(cpu_kernels.dequantize, packed, *ranges, 32, bits), plain)
        if cpu_kernels.multiplies_halves():
            rounded = [each.astype(mx.bfloat16) for each in ranges]
            ours = _call(cpu_kernels.dequantize, packed, *rounded, 32, bits)
            yield Check("half_dequantize", ours, plain)
    weights = _numbers(9, 64).astype(mx.float16)
    for bits in (3, 4, 8):
        yield Check(
            "quantize", partial(_quantize, weights, bits), partial(_quantize_by_mlx, weights, bits)
        )


def _quantize(halves: mx.array, bits: int) -> Results:
    return _unpack(quantize_weight(halves, 32, bits, mx.float32))


def _quantize_by_mlx(halves: mx.array, bits: int) -> Results:
    return _unpack(mx.quantize(halves.astype(mx.float32), 32, bits))


def _unpack(quantized: Sequence[mx.array]) -> Results:
    """Return quantized weights, scales and offsets as numbers that can be compared."""
    packed, scales, offsets = quantized
    return [packed.view(mx.uint8).astype(mx.float32), scales, offsets]


def _attention(
    q: mx.array, k: mx.array, v: mx.array, num_heads: int, scale: float, causal: bool
) -> mx.array:
    q, k, v = (mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2) for x in (q, k, v))
    scores = scale * q @ k.swapaxes(2, 3)
    if causal:
        scores = mx.where(mx.tril(mx.ones(scores.shape[2:])) > 0, scores, -1e30)
    return (mx.softmax(scores, axis=-1) @ v).swapaxes(1, 2).flatten(2)


# MLX's own are compiled by g++ at their first use, which takes seconds.
def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2
