"""Weights are quantized on all cores to the same bits as MLX does on one."""

import mlx.core as mx
import numpy as np
import pytest

from stable_diffusion.device import compile_kernels, cpu_kernels, kernel_calls
from stable_diffusion.device.quantize_weights import (
    BITS,
    GROUP_SIZES,
    KINDS,
    quantize_weight,
)

pytestmark = [
    pytest.mark.skipif(not cpu_kernels.is_used(), reason="only a Linux CPU needs it"),
    pytest.mark.usefixtures("all_cores"),
]

WIDTH = 128


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Use the kernels also if the check before their use would find a mistake."""
    declared = kernel_calls.declare(compile_kernels.load())
    monkeypatch.setattr(kernel_calls, "load_kernels", lambda: declared)


def make_rows() -> np.ndarray:
    """Return rows of usual and of extreme numbers, [N, WIDTH] of float32."""
    random = np.random.default_rng(0)
    usual = random.normal(size=(40, WIDTH))
    usual[::2, ::7] = 0
    usual[1::3], usual[2::3] = abs(usual[1::3]), -abs(usual[2::3])
    parts = [usual, usual * 1e-4, usual * np.exp(8 * random.normal(size=usual.shape))]
    extremes = (0.0, -0.0, -3.7, 65504, 3e38, 1e-7, 1e-38, 1e-45, np.inf, -np.inf, np.nan)
    for value in extremes:
        parts.append(np.full((1, WIDTH), value))
        parts.append(np.where(random.random((10, WIDTH)) < 0.02, value, usual[:10]))
    bits = random.integers(0, 2**32, (50, WIDTH)).astype(np.uint32)
    with np.errstate(over="ignore"):
        return np.concatenate([*(part.astype(np.float32) for part in parts), bits.view(np.float32)])


def have_same_bits(ours: mx.array, theirs: mx.array) -> bool:
    """Return whether two arrays are equal, NaN too."""
    is_like = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return is_like and mx.array_equal(ours.view(mx.uint8), theirs.view(mx.uint8)).item()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_mlx(kind, bits, monkeypatch):
    """Also of rows with infinities and NaN, and of all numbers of float16."""
    weight = mx.array(make_rows()).astype(kind)
    if kind == mx.float16:
        halves = mx.view(mx.arange(2**16).astype(mx.uint16), kind).reshape(-1, WIDTH)
        weight = mx.concatenate([weight, halves])
    for group_size in GROUP_SIZES:
        for dtype in {kind, mx.float32}:
            theirs = mx.quantize(weight.astype(dtype), group_size, bits)
            mx.eval(theirs)
            with monkeypatch.context() as patch:
                patch.setattr(mx, "quantize", None)  # so it is the kernel's
                ours = quantize_weight(weight, group_size, bits, dtype)
            assert all(map(have_same_bits, ours, theirs)), group_size


def test_other_shapes_and_types():
    """Weights of convolutions, parts of arrays, and float32 that becomes float16."""
    weight = mx.array(make_rows()[:36]).reshape(4, 3, 3, WIDTH)
    for each in (weight, weight[::2], weight.swapaxes(0, 1), weight[..., 64:]):
        for dtype in (None, mx.float16):
            ours = quantize_weight(each, 32, 6, dtype)
            theirs = mx.quantize(each.astype(dtype or each.dtype), 32, 6)
            assert all(map(have_same_bits, ours, theirs))


def test_what_the_kernel_does_not_compute():
    """MLX does: for gradients, while it compiles, and on a GPU; and it refuses what is wrong."""
    weight = mx.array(make_rows()[:36])

    def compute_scales(weight: mx.array) -> mx.array:
        return quantize_weight(weight, 32, 8)[1]

    expected = compute_scales(weight)
    assert mx.array_equal(mx.compile(compute_scales)(weight), expected)
    assert mx.array_equal(mx.vmap(compute_scales)(weight[None])[0], expected)
    for wrong in ((48, 8), (32, 7), (64, 0), (32, 8.5)):
        with pytest.raises((ValueError, TypeError)):
            mx.eval(quantize_weight(weight[:, :96], *wrong))
    assert quantize_weight(weight[:0], 32, 8)[0].shape == (0, WIDTH // 4)
