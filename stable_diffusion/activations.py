"""The activations of the networks, by the names that config files give them."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .device import backend, cpu_kernels

Activation = Callable[[mx.array], mx.array]


def silu(x: mx.array) -> mx.array:
    """Return x times the logistic function of x."""
    return _activate(x, cpu_kernels.Activation.SILU, nn.silu, lambda x: x * mx.sigmoid(x))


def gelu(x: mx.array) -> mx.array:
    """Return x times the normal distribution function of x."""
    kind = cpu_kernels.Activation.GELU
    return _activate(x, kind, nn.gelu, lambda x: x * (1 + mx.erf(x / math.sqrt(2))) / 2)


def quick_gelu(x: mx.array) -> mx.array:
    """Return CLIP's approximation of `gelu`."""
    kind = cpu_kernels.Activation.QUICK_GELU
    return _activate(x, kind, nn.gelu_fast_approx, lambda x: x * mx.sigmoid(1.702 * x))


def mish(x: mx.array) -> mx.array:
    """Return x times the hyperbolic tangent of log(1 + exp(x)) (Misra 2019, arXiv:1908.08681)."""
    return x * mx.tanh(mx.logaddexp(x, 0))


def relu(x: mx.array) -> mx.array:
    """Return the larger one of x and 0."""
    return mx.maximum(x, 0)


def _activate(
    x: mx.array, kind: cpu_kernels.Activation, compiled: Activation, plain: Activation
) -> mx.array:
    """Return the activation of x.

    Args:
        kind: what the kernels for a Linux CPU call it.
        compiled: computes it by `mx.compile`, which needs a C++ compiler on a CPU.
        plain: computes it without `mx.compile`.
    """
    by_mlx = compiled if backend.is_gpu() else plain
    return cpu_kernels.try_kernels(x, lambda: cpu_kernels.activate(x, kind), lambda: by_mlx(x))


# `config.networks.ACTIVATIONS` lists the same names.
ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "mish": mish,
    "gelu": gelu,
    "relu": relu,
    "quick_gelu": quick_gelu,
}
