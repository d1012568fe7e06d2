"""Weights of multistep methods: those that are exact for polynomials."""

import math
from collections.abc import Sequence

import numpy as np


def find_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return a weight for each node, so that Σ weight · nodeᵏ is the k-th moment."""
    powers = np.vander(np.array(nodes, np.float64), increasing=True)  # [node, k]
    return np.linalg.solve(powers.T, np.array(moments, np.float64)).tolist()


def integrate_polynomial(nodes: Sequence[float], end: float) -> tuple[float, ...]:
    """Return the weight of the value at each node in the integral from the first node to `end`.

    It is the integral of the polynomial through these values.
    """
    length = end - nodes[0]  # as the unit, it keeps the equations well conditioned
    moments = [1 / (k + 1) for k in range(len(nodes))]
    weights = find_weights([(node - nodes[0]) / length for node in nodes], moments)
    return tuple(length * weight for weight in weights)


def integrate_in_log(nodes: Sequence[float], end: float) -> tuple[float, ...]:
    """Return the weights of `integrate_polynomial` for a polynomial in the logarithm of the nodes.

    There may be up to three nodes, all above 0.
    """
    last = math.log(end / nodes[0])  # logarithms are counted from the first node's
    moment_0 = end - nodes[0]
    moment_1 = end * last - moment_0
    moment_2 = end * last**2 - 2 * moment_1
    logs = [math.log(node / nodes[0]) for node in nodes]
    return tuple(find_weights(logs, [moment_0, moment_1, moment_2][: len(nodes)]))
