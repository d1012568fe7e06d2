"""Fit the function with which `device/kernels/vectors.h` computes GELU.

    python -m tools.fit_gelu

Prints the coefficients of P and Q in G(x) = 1/2 + x P(x²) / Q(x²), lower powers first, and the
largest error of x G(x) within the limit. The method is reweighted linear least squares, as in
Lawson's algorithm, so that the error is spread evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

ROUNDS = 400


def fit(
    gate: Callable[[np.ndarray], np.ndarray], limit: float, above: int, below: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the error, and P and Q of degrees `above` and `below` in x², for |x| up to `limit`."""
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
        weight *= (error / error.max() + 0.01) ** 0.3  # more where the error is large
        weight /= weight.max()
    error, solution = best
    unscale = limit ** (-2.0 * np.arange(max(above, below) + 1))
    p = solution[: above + 1] * unscale[: above + 1]
    q = np.concatenate([[1.0], solution[above + 1 :]]) * unscale[: below + 1]
    return float(error), p, q


def main() -> None:
    """Print the coefficients."""
    erf = np.vectorize(math.erf)
    limit = 5.5
    error, p, q = fit(lambda x: (1 + erf(x / math.sqrt(2))) / 2, limit, above=5, below=5)
    print(f"GELU, |x| ≤ {limit}, error {error:.1e}")
    for label, coefficients in (("above", p), ("below", q)):
        print(f"  {label}: {', '.join(f'{c:.9g}' for c in coefficients)}")


if __name__ == "__main__":
    main()
