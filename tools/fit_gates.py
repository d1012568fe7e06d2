"""Fits the functions by which a Linux CPU computes SiLU, GELU (`cpu`) and exp (`cpu_attention`).

    python -m tools.fit_gates

Prints, for each gate G, the coefficients of P and Q in G(x) = 1/2 + x P(x²) / Q(x²), lower powers
first, and the largest error of x G(x) within the limit; then those of a polynomial near exp(x) for
x from 0 to 1, and its relative error. Reweighted linear least squares: the error spreads evenly, as
in Lawson's algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

ROUNDS = 400


def fit(
    gate: Callable[[np.ndarray], np.ndarray], limit: float, above: int, below: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Error, P and Q, of degrees `above` and `below` in x², for |x| up to `limit`."""
    x = limit / 2 * (1 - np.cos(np.linspace(0, np.pi, 4001)))[1:]  # dense at both ends
    target = (gate(x) - 0.5) / x
    powers = np.vander((x / limit) ** 2, max(above, below) + 1, increasing=True)
    columns = np.hstack([powers[:, : above + 1], -target[:, None] * powers[:, 1 : below + 1]])
    matters = np.maximum(x**2, 0.05)  # an error of P / Q is one of x² times it in x G(x)
    weight, denominator, best = np.ones_like(x), np.ones_like(x), (np.inf, columns[0])
    for _ in range(ROUNDS):
        scale = weight * matters / denominator
        solution = np.linalg.lstsq(columns * scale[:, None], target * scale, rcond=None)[0]
        denominator = 1 + powers[:, 1 : below + 1] @ solution[above + 1 :]
        error = matters * abs(powers[:, : above + 1] @ solution[: above + 1] / denominator - target)
        best = min(best, (error.max(), solution), key=lambda found: found[0])
        weight = reweighted(weight, error)
    error, solution = best
    unscale = limit ** (-2.0 * np.arange(max(above, below) + 1))
    p = solution[: above + 1] * unscale[: above + 1]
    q = np.concatenate([[1.0], solution[above + 1 :]]) * unscale[: below + 1]
    return float(error), p, q


def reweighted(weight: np.ndarray, error: np.ndarray) -> np.ndarray:
    """More weight where the error is large."""
    weight = weight * (error / error.max() + 0.01) ** 0.3
    return weight / weight.max()


def fit_exponential(degree: int) -> tuple[float, np.ndarray]:
    """Relative error and coefficients of a polynomial that is 1 at 0, for x from 0 to 1."""
    x = (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2
    columns = np.vander(x, degree + 1, increasing=True)[:, 1:] / np.exp(x)[:, None]
    target = 1 - np.exp(-x)
    weight, best = np.ones_like(x), (np.inf, columns[0])
    for _ in range(ROUNDS):
        solution = np.linalg.lstsq(columns * weight[:, None], target * weight, rcond=None)[0]
        error = abs(columns @ solution - target)
        best = min(best, (error.max(), solution), key=lambda found: found[0])
        weight = reweighted(weight, error)
    return float(best[0]), np.concatenate([[1.0], best[1]])


def main() -> None:
    """Print all coefficients."""
    erf = np.vectorize(math.erf)
    gates = {
        "SiLU": (lambda x: 1 / (1 + np.exp(-x)), 18.0, 4, 5),
        "GELU": (lambda x: (1 + erf(x / math.sqrt(2))) / 2, 5.5, 5, 5),
    }
    for name, (gate, limit, above, below) in gates.items():
        error, p, q = fit(gate, limit, above, below)
        print(f"{name}, |x| ≤ {limit}, error {error:.1e}")
        for label, coefficients in (("above", p), ("below", q)):
            print(f"  {label}: {listed(coefficients)}")
    error, coefficients = fit_exponential(6)
    print(f"exponential, relative error {error:.1e}\n  {listed(coefficients)}")


def listed(coefficients: np.ndarray) -> str:
    """Comma-separated, to the digits of float32."""
    return ", ".join(f"{c:.9g}" for c in coefficients)


if __name__ == "__main__":
    main()
