"""Count the arithmetic of matrix products and convolutions, from MLX's graphs."""

from collections.abc import Callable
from math import prod

import mlx.core as mx

from .devices import on_cpu


def count_products(function: Callable[..., mx.array], *inputs: mx.array) -> int:
    """Return the additions and multiplications of a function's products; nothing is computed.

    It is counted as for a CPU, where attention is written out and heads are not padded.
    """
    total = 0

    def visit(entry: dict) -> None:
        nonlocal total
        if entry["type"] == "primitive" and entry["name"] in ("AddMM", "Convolution", "Matmul"):
            (_, first, _), (_, second, _) = entry["inputs"][:2]
            n_terms = prod(second[1:]) if entry["name"] == "Convolution" else first[-1]
            total += 2 * n_terms * sum(prod(shape) for _, shape, _ in entry["outputs"])

    with on_cpu():
        mx.export_function(visit, function, *inputs)
    return total
