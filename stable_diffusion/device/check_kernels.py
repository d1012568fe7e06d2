"""Compares the kernels of `cpu` with MLX's own operations, before they are first used."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import cpu_kernels, kernel_calls

TOLERANCE = 1e-4  # of the largest number: far above rounding, far below any fault

Results = list[mx.array]
Check = tuple[str, Callable[[], Results], Callable[[], Results]]  # name, kernel, MLX's operations


def find_wrong_kernels() -> list[str]:
    """Return the names of kernels that compute something else, or nothing, for some input."""
    return sorted({name for name, kernel, plain in _checks() if not _agree(kernel, plain)})


def sees_tracing() -> bool:
    """Return whether `cpu_calls.is_traced` notices when MLX differentiates, compiles or maps."""
    x = mx.ones((2,))
    seen = []

    def look(x: mx.array) -> mx.array:
        seen.append(kernel_calls.is_traced(x))
        return x.sum()

    for transformation in (mx.grad, mx.vmap, mx.compile):
        mx.eval(transformation(look)(x))
    return all(seen) and len(seen) == 3 and not kernel_calls.is_traced(x)


def _agree(kernel: Callable[[], Results], plain: Callable[[], Results]) -> bool:
    try:
        ours = kernel()
    except kernel_calls.Unserved:  # it builds on a kernel that is wrong
        return False
    return all(_is_close(*pair) for pair in zip(ours, plain(), strict=True))


def _is_close(ours: mx.array, plain: mx.array) -> bool:
    error = mx.abs(ours - plain).max() / mx.abs(plain).max()
    return ours.shape == plain.shape and bool((error < TOLERANCE).item())  # false for NaN


def _numbers(*shape: int) -> mx.array:
    """Return numbers from -2 to 2 without a pattern, the same each time."""
    count = mx.arange(1, 1 + mx.zeros(shape).size)
    return (2 * mx.sin(count * count % 1009 * 1.7)).reshape(shape)


def _checks() -> Iterator[Check]:
    x = _numbers(3, 5, 16)
    activations = {
        cpu_kernels.Activation.SILU: _silu,
        cpu_kernels.Activation.GELU: _gelu,
        cpu_kernels.Activation.QUICK_GELU: lambda x: x * mx.sigmoid(1.702 * x),
    }
    for activation, function in activations.items():
        yield (
            "activate",
            partial(_list, cpu_kernels.activate, x, activation),
            partial(_list, function, x),
        )

    pixels, gain, offset = _numbers(2, 9, 10, 24), _numbers(24), _numbers(24) + 1
    groups = nn.GroupNorm(4, 24, eps=1e-3, pytorch_compatible=True)
    groups.weight, groups.bias = gain, offset
    norm = cpu_kernels.group_norm(pixels, 4, gain, offset, 1e-3)
    normalised = groups(pixels)
    yield (
        "group_norm",
        lambda: [norm.gain * pixels[:, 0, 0] + norm.offset],
        lambda: [normalised[:, 0, 0]],
    )
    yield (
        "normalise",
        lambda: [cpu_kernels.normalise(pixels, norm)],
        lambda: [pixels * norm.gain[:, None, None] + norm.offset[:, None, None]],
    )

    yield from _checks_of_linear()
    yield from _checks_of_convolutions(pixels, norm)

    q, k, v = _numbers(2, 35, 24), _numbers(2, 40, 24) + 0.5, _numbers(2, 40, 24) - 0.5
    for causal in (False, True):
        keys, values = (k[:, :35], v[:, :35]) if causal else (k, v)
        arguments = q, keys, values, 3, 0.35, causal
        yield (
            "attention",
            partial(_list, cpu_kernels.attention, *arguments),
            partial(_list, _attention, *arguments),
        )

    for dtype in (mx.float16, mx.bfloat16):
        halves = (_numbers(70) * 1000).astype(dtype)
        yield (
            "widen",
            partial(_list, kernel_calls.widen, halves),
            partial(_list, halves.astype, mx.float32),
        )
    for bits in (4, 8):
        packed = mx.quantize(_numbers(18, 64), 32, bits)
        yield (
            "dequantize",
            partial(_list, cpu_kernels.dequantize, *packed, 32, bits),
            partial(_list, mx.dequantize, *packed, 32, bits),
        )


def _checks_of_linear() -> Iterator[Check]:
    rows, gain, offset = _numbers(2, 37, 20), _numbers(20), _numbers(20) + 1
    weights, biases = [_numbers(26, 20), _numbers(26, 20) + 0.1], [_numbers(26), None]
    added = _numbers(2, 37, 26)

    def plain(x: mx.array) -> Results:
        return [
            x @ weight.T + added + (0 if bias is None else bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]

    call = partial(cpu_kernels.linear, rows, weights, biases, added=added)
    yield "linear", call, lambda: plain(rows)
    layer_norm = cpu_kernels.Norm(gain, offset, 1e-3)
    normalised = mx.fast.layer_norm(rows, gain, offset, 1e-3)
    yield "linear", partial(call, layer_norm), lambda: plain(normalised)
    gains, offsets = _numbers(2, 20), _numbers(2, 20) + 1
    group_norm = cpu_kernels.Norm(gains, offsets)
    yield (
        "linear",
        partial(call, group_norm),
        lambda: plain(rows * gains[:, None] + offsets[:, None]),
    )

    def gated() -> Results:
        hidden, gate = (rows @ weights[0].T + biases[0]).split(2, axis=-1)
        return [hidden * _gelu(gate)]

    yield "linear", lambda: cpu_kernels.linear(rows, weights[:1], biases[:1], gated=True), gated


def _checks_of_convolutions(x: mx.array, norm: cpu_kernels.Norm) -> Iterator[Check]:
    weight, bias = _numbers(10, 3, 3, 24), _numbers(2, 10)
    prepared = _silu(x * norm.gain[:, None, None] + norm.offset[:, None, None])
    bigger = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    small = x[:, :2, :2, :21]  # by the plain sum, not by Winograd's method
    cases = [
        ("conv3x3", {"norm": norm, "activation": cpu_kernels.Activation.SILU}, x, prepared),
        ("conv3x3", {"upsample": True}, x, bigger),
        ("conv3x3", {"stride": 2}, x, x),
        ("conv3x3", {"stride": 2, "padding": 0}, x, x),
        ("conv3x3", {}, small, small),
    ]
    for name, options, from_, plain_from in cases:
        own = weight[..., : from_.shape[-1]]
        padding = options.get("padding", 1)
        padded = mx.pad(plain_from, [(0, 0), (padding, 1), (padding, 1), (0, 0)])
        result = mx.conv2d(padded, own, stride=options.get("stride", 1)) + bias[:, None, None]
        yield (
            name,
            partial(_list, cpu_kernels.conv3x3, from_, own, bias, **options),
            partial(list, [result]),
        )
        added = _numbers(*result.shape)
        call = partial(_list, cpu_kernels.conv3x3, from_, own, bias[:1], added=added, **options)
        yield name, call, partial(list, [result - bias[:, None, None] + bias[0] + added])


def _attention(q, k, v, num_heads: int, scale: float, causal: bool) -> mx.array:
    q, k, v = (mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2) for x in (q, k, v))
    scores = scale * q @ k.swapaxes(2, 3)
    if causal:
        scores = mx.where(mx.tril(mx.ones(scores.shape[2:])) > 0, scores, -1e30)
    return (mx.softmax(scores, axis=-1) @ v).swapaxes(1, 2).flatten(2)


# MLX's own are compiled by g++ when they are first used, which takes seconds.
def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _list(function: Callable[..., mx.array], *arguments, **options) -> Results:
    return [function(*arguments, **options)]
