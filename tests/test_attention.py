"""Attention is the same whether heads are padded or queries go in chunks, on every backend."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from gpu import as_on
from oracle import relative_l2

from stable_diffusion import attention
from stable_diffusion.attention import attend
from stable_diffusion.device.backend import Backend

MAX_ERROR = 1e-6
MAX_HALF_ERROR = 2e-3
WIDTH = 160  # of heads that no backend fuses


def random_inputs(
    batch: int, n_queries: int, n_keys: int, dims: int, dtype: mx.Dtype = mx.float32
) -> list[mx.array]:
    rng = np.random.default_rng(0)
    sizes = n_queries, n_keys, n_keys
    return [mx.array(rng.normal(size=(batch, n, dims)).astype(np.float32), dtype) for n in sizes]


def attend_in_float64(inputs: list[mx.array], num_heads: int, causal: bool = False) -> np.ndarray:
    """Return the attention by the formula (arXiv:1706.03762, equation 1)."""
    arrays = (np.array(x.astype(mx.float32), np.float64) for x in inputs)
    q, k, v = (np.swapaxes(x.reshape(*x.shape[:2], num_heads, -1), 1, 2) for x in arrays)
    scores = q @ np.swapaxes(k, 2, 3) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = weights / weights.sum(axis=-1, keepdims=True) @ v
    return np.swapaxes(attended, 1, 2).reshape(inputs[0].shape)


@contextmanager
def spy(score_bytes: int | None = None) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of the queries of each attention of MLX; limit the scores, if asked."""
    shapes: list[tuple[int, ...]] = []
    real = mx.fast.scaled_dot_product_attention

    def record(q: mx.array, *arrays: mx.array, **options: object) -> mx.array:
        shapes.append(q.shape)
        return real(q, *arrays, **options)

    limit = attention.choose_score_bytes if score_bytes is None else lambda: score_bytes
    with (
        mock.patch.object(mx.fast, "scaled_dot_product_attention", record),
        mock.patch.object(attention, "choose_score_bytes", limit),
    ):
        yield shapes


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "padded"), [(8, 64), (40, 64), (64, 64), (100, 128), (160, 160)])
def test_heads_are_padded_on_metal(width, padded, causal):
    inputs = random_inputs(2, 300, 300, 2 * width)
    with as_on(Backend.METAL), spy() as shapes:
        ours = attend(*inputs, 2, causal)
    assert shapes == [(2, 2, 300, padded)]
    assert relative_l2(ours, attend_in_float64(inputs, 2, causal)) <= MAX_ERROR


@pytest.mark.parametrize(
    ("kind", "n_keys", "width"),
    [(Backend.METAL, 77, 40), (Backend.METAL, 257, 64), (Backend.CUDA, 300, 40)],
)
def test_heads_are_padded_only_where_it_helps(kind, n_keys, width):
    """They are not for the few keys of a text, nor on CUDA, which fuses heads of 40 itself."""
    inputs = random_inputs(1, 9, n_keys, 80, mx.float16)
    with as_on(kind), spy() as shapes:
        ours = attend(*inputs, 2)
    assert shapes == [(1, 2, 9, width)]
    assert ours.dtype == mx.float16
    assert relative_l2(ours.astype(mx.float32), attend_in_float64(inputs, 2)) <= MAX_HALF_ERROR


@pytest.mark.parametrize("kind", [Backend.METAL, Backend.CUDA, Backend.CPU])
def test_queries_go_in_chunks(kind, monkeypatch):
    monkeypatch.setattr("stable_diffusion.device.cpu_kernels.is_used", lambda: False)
    inputs = random_inputs(2, 50, 37, 2 * WIDTH)
    row = 2 * 2 * 37 * 4  # the scores of one query, in bytes: two pictures of two heads
    with as_on(kind), spy(score_bytes=7 * row * attention.MAX_CHUNKS_ALIVE) as shapes:
        whole = attend(*inputs, 2)
    with as_on(kind), spy(score_bytes=49 * row) as chunks:
        ours = attend(*inputs, 2)
    assert shapes == [(2, 2, 50, WIDTH)]
    n_queries = 49 // attention.MAX_CHUNKS_ALIVE
    assert [shape[2] for shape in chunks] == [n_queries] * (50 // n_queries) + [50 % n_queries]
    assert relative_l2(ours, whole) <= MAX_ERROR
    assert relative_l2(ours, attend_in_float64(inputs, 2)) <= MAX_ERROR


def test_fused_and_causal_attention_is_not_in_chunks():
    for width, causal in ((64, False), (WIDTH, True)):
        inputs = random_inputs(1, 20, 20, width)
        with as_on(Backend.METAL), spy(score_bytes=1) as shapes:
            ours = attend(*inputs, 1, causal)
        assert len(shapes) == 1
        assert relative_l2(ours, attend_in_float64(inputs, 1, causal)) <= MAX_ERROR


def differentiate(function: Callable[..., mx.array], inputs: list[mx.array]) -> list[mx.array]:
    weights = mx.array(np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32))
    loss = lambda *arrays: (weights * function(*arrays)).sum()  # noqa: E731
    return mx.grad(loss, argnums=(0, 1, 2))(*inputs)


TRANSFORMATIONS: dict[str, Callable[..., list[mx.array]]] = {
    "gradient": differentiate,
    "forward derivative": lambda function, inputs: mx.jvp(function, inputs, inputs[::-1])[1],
    "map": lambda function, inputs: [mx.vmap(function)(*(x[:, None] for x in inputs))],
}


@pytest.mark.parametrize("width", [40, WIDTH])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name, width, monkeypatch):
    """Padded heads and chunks give the same as MLX's attention alone."""
    inputs = random_inputs(2, 260, 260, width)
    transform = TRANSFORMATIONS[name]
    with as_on(Backend.CUDA):  # in float32, it neither pads nor fuses
        theirs = transform(partial(attend, num_heads=1), inputs)
    with as_on(Backend.METAL), spy(score_bytes=2**17) as shapes:
        ours = transform(partial(attend, num_heads=1), inputs)
    assert (len(shapes) > 2) if width == WIDTH else (shapes[0][-1] == 64)
    for our, their in zip(ours, theirs, strict=True):
        assert relative_l2(our, their.reshape(our.shape)) <= 10 * MAX_ERROR


@pytest.mark.parametrize("compiled", [False, True])
def test_the_peak_of_stored_scores(compiled):
    """Above the limit, memory has only the result and the chunks that it is made from."""
    inputs = random_inputs(1, 2048, 2048, WIDTH)
    whole, limit = 2048 * 2048 * 4, 2**22
    function = partial(attend, num_heads=1)
    function = mx.compile(function) if compiled else function
    with as_on(Backend.METAL), spy(score_bytes=limit):
        mx.eval(inputs)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = function(*inputs)
        mx.eval(result)
    peak = mx.get_peak_memory() - before
    assert whole == 4 * limit
    assert result.nbytes < peak <= limit + 2 * result.nbytes
    assert relative_l2(result, attend_in_float64(inputs, 1)) <= MAX_ERROR
