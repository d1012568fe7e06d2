"""How long the device takes, and how much it could do."""

import time
from collections.abc import Callable
from statistics import median

import mlx.core as mx

from stable_diffusion.layers import multiply

MAX_REPEATS = 7
MAX_SECONDS = 8.0  # for the repeats of one measurement


def measure_once(run: Callable[[], mx.array]) -> float:
    """Return the time of `run`, evaluated once."""
    start = time.perf_counter()
    mx.eval(run())
    return time.perf_counter() - start


def measure_seconds(
    run: Callable[[], mx.array], max_seconds: float = MAX_SECONDS, together: int = 1
) -> float:
    """Return the median time of `run`, evaluated, after a warm-up; at least one repeat.

    Args:
        max_seconds: no repeat begins later.
        together: how many are evaluated at once, so that waiting for the GPU counts less.
    """
    mx.eval(run())
    times: list[float] = []
    while len(times) < MAX_REPEATS and sum(times) < max_seconds:
        start = time.perf_counter()
        mx.eval([run() for _ in range(together)])
        times.append(time.perf_counter() - start)
    return median(times) / together


def measure_queued_seconds(step: Callable[[mx.array], mx.array], x: mx.array, n: int) -> float:
    """Return the time of a step of n, each of which is under way before the last one is awaited."""
    x = step(x)
    mx.eval(x)
    start = time.perf_counter()
    for _ in range(n):
        following = step(x)
        mx.async_eval(following)
        mx.eval(x)
        x = following
    mx.eval(x)
    return (time.perf_counter() - start) / n


def measure_product_rate(side: int, dtype: mx.Dtype) -> float:
    """Return the rate of products of matrices of `side` × `side`, in operations a second."""
    x = mx.random.normal((side, side)).astype(dtype)
    mx.eval(x)
    return 2 * side**3 / measure_seconds(lambda: multiply(x, x), 2.0)


def measure_copy_rate(n_bytes: int) -> float:
    """Return how many bytes a second are read and written by adding 1 to many numbers."""
    x = mx.zeros(n_bytes // 4)
    mx.eval(x)
    return 2 * n_bytes / measure_seconds(lambda: x + 1, 2.0)
