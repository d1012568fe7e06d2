"""What stands in for MLX's operations on a Linux CPU: as exact as they are, at any size."""

import math
import os

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import parity
import pytest
import torch
from ours import python

from stable_diffusion import cpu, cpu_attention, cpu_conv
from stable_diffusion.layers import Conv3x3, GroupNorm, Linear, QuantizedLinear

pytestmark = [
    pytest.mark.skipif(not cpu.is_used(), reason="only a Linux CPU needs it"),
    pytest.mark.usefixtures("all_cores"),
]

NETWORK_ERROR = 1e-5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(ours: mx.array, exact: np.ndarray | torch.Tensor) -> float:
    """Relative L2 against float64."""
    exact = np.asarray(exact)
    assert ours.shape == exact.shape
    return float(np.linalg.norm(np.array(ours) - exact) / np.linalg.norm(exact))


@pytest.fixture
def small_strips(monkeypatch):
    """Many strips, rows for every core, and Winograd's method even for tiny pictures."""
    for module in (cpu, cpu_attention, cpu_conv):
        monkeypatch.setattr(module, "STRIP", 2**9)
    monkeypatch.setattr(cpu, "MIN_ROWS", 1)
    monkeypatch.setattr(cpu_conv, "MIN_TILES", 0)
    monkeypatch.setattr(cpu_conv, "MIN_CHANNELS", 8)


GATES = {
    "silu": (cpu.silu, lambda x: x / (1 + np.exp(-x))),
    "gelu": (cpu.gelu, lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2),
    "quick_gelu": (cpu.quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x))),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("deviation", [0.1, 1, 4])
def test_gates(name, deviation):
    ours, exact = GATES[name]
    x = deviation * normal(40_000)
    assert error(ours(mx.array(x)), exact(x.astype(np.float64))) < 2e-7


@pytest.mark.parametrize("name", GATES)
def test_gates_far_out(name):
    """Within float32 of x or nothing."""
    far = np.array([-1e30, -1e4, -40, 0, 40, 1e4, 1e30], np.float32)
    ours = np.array(GATES[name][0](mx.array(far)))
    assert (abs(ours - np.maximum(far, 0)) <= 1e-7 * abs(far)).all()


@pytest.mark.parametrize("scale", [0.125, 5.0])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "length", "n_keys", "width"),
    [(2, 67, 67, 16), (3, 1, 5, 8), (1, 130, 7, 40), (1, 32, 128, 8)],
)
def test_attention(small_strips, heads, length, n_keys, width, scale, causal):
    shapes = [(2, heads, n, width) for n in (length, n_keys, n_keys)]
    q, k, v = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(a, dtype=torch.float64) for a in (q, k, v)), scale=scale, is_causal=causal
    )
    ours = cpu_attention.attention(*map(mx.array, (q, k, v)), scale, causal)
    assert error(ours, exact) < (3e-6 if scale < 1 else 1e-5)  # scores reach ±150 at scale 5


def test_attention_with_scores_that_would_overflow():
    q, k, v = (mx.array(30 * normal(1, 1, 64, 64, seed=i)) for i in range(3))
    ours = cpu_attention.attention(q, k, v, 1.0)
    assert mx.isfinite(ours).all()
    best = np.array((q @ k.swapaxes(2, 3)).argmax(-1))[0, 0]
    assert np.allclose(np.array(ours)[0, 0], np.array(v)[0, 0][best], atol=1e-3)


@pytest.mark.parametrize(("height", "width", "channels"), [(512, 512, 32), (7, 13, 64), (1, 1, 32)])
def test_group_norm(height, width, channels):
    """MLX's own loses four digits at 512×512, for it sums one number after another."""
    x = 3 + 2 * normal(2, height, width, channels)
    norm = GroupNorm(8, channels, eps=1e-6)
    norm.weight, norm.bias = mx.array(normal(channels)), mx.array(normal(channels, seed=1))
    exact = torch.nn.functional.group_norm(
        torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2),
        8,
        *(torch.tensor(np.array(p), dtype=torch.float64) for p in (norm.weight, norm.bias)),
        1e-6,
    )
    assert error(norm(mx.array(x)), exact.permute(0, 2, 3, 1)) < 5e-7


CONVOLUTIONS = [(1, 1, 8, 8), (2, 3, 8, 16), (9, 31, 16, 8), (16, 16, 24, 40), (33, 20, 8, 3)]


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize(("height", "width", "channels", "outputs"), CONVOLUTIONS)
def test_convolution(request, is_small, upsample, height, width, channels, outputs):
    if is_small:
        request.getfixturevalue("small_strips")
    x, conv = mx.array(normal(2, height, width, channels)), Conv3x3(channels, outputs)
    norm = GroupNorm(4, channels, eps=1e-5)
    weight, bias = (
        torch.tensor(np.array(conv[p]), dtype=torch.float64) for p in ("weight", "bias")
    )

    def exact(x: np.ndarray) -> torch.Tensor:
        y = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
        if upsample:
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = torch.nn.functional.conv2d(y, weight.permute(0, 3, 1, 2), bias, padding=1)
        return y.permute(0, 2, 3, 1)

    if upsample:
        assert error(conv.of_upsampled(x), exact(np.array(x))) < 4e-6
    else:
        assert error(conv(x), exact(np.array(x))) < 4e-6
        prepared = exact(np.array(nn.silu(norm(x))))
        assert error(conv.of_normalised(x, norm, nn.silu), prepared) < 4e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("shape", [(3, 64), (1, 2, 17, 64), (200, 64)])
def test_linear(dtype, shape):
    """Stored in half precision, computed in single."""
    layer = Linear(64, 48)
    layer.set_dtype(dtype)
    x = mx.array(normal(*shape))
    exact = np.array(x, np.float64) @ np.array(layer.weight.astype(mx.float32), np.float64).T
    exact += np.array(layer.bias.astype(mx.float32))
    assert error(layer(x), exact) < 1e-6


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_quantized_linear(bits, bias):
    layer = Linear(64, 50, bias=bias).to_quantized(32, bits)
    assert isinstance(layer, QuantizedLinear)
    x = mx.array(normal(2, 9, 64))
    assert error(layer(x), nn.QuantizedLinear.__call__(layer, x)) < 1e-6


@pytest.mark.parametrize("kind", ["sd-1", "sdxl", "unusual"])  # all there is in them
def test_networks_in_strips(small_strips, oracle, kind):
    """All of it at once, where tiny pictures would not take these paths by themselves."""
    assert parity.unet_error(oracle(kind), parity.UNET_SIZES[0]) <= NETWORK_ERROR
    assert parity.decode_error(oracle(kind)) <= NETWORK_ERROR
    assert max(parity.encode_errors(oracle(kind))) <= NETWORK_ERROR


def test_networks_without(monkeypatch, oracle, kind):
    """MLX's own operations, as on Metal and CUDA."""
    monkeypatch.setattr(cpu, "is_used", lambda: False)
    assert parity.unet_error(oracle(kind), parity.UNET_SIZES[0]) <= NETWORK_ERROR
    assert parity.decode_error(oracle(kind)) <= NETWORK_ERROR


def test_without_a_compiler():
    """What is compiled runs unfused where there is no g++."""
    code = (
        "import stable_diffusion; import mlx.core as mx; from stable_diffusion import cpu;"
        "print(cpu.silu(mx.array([1.0, -2.0])).tolist())"
    )
    done = python("-c", code, PATH="/nowhere", TMPDIR="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[0.7310")


def test_rows_in_parts():
    """Each core gets rows where that pays; float32 weights pay sooner than those to be widened."""
    enough = cpu.CORES * cpu.MIN_ROWS
    x = mx.array(normal(2, enough // 2, 8))
    assert len(cpu.row_parts(x)) == cpu.CORES
    assert mx.array_equal(mx.concatenate(cpu.row_parts(x), axis=1), x)
    assert len(cpu.row_parts(x[:, cpu.CORES :])) == len(cpu.row_parts(x, is_wide=False)) == 1
    assert cpu.share([lambda: len(cpu.row_parts(x))] * 2) == [1, 1]  # is shared out already


def test_all_cores_work():
    """Shares run on streams of their own."""
    assert max(2, len(os.sched_getaffinity(0))) == cpu.CORES
    streams = []
    cpu.share([lambda: streams.append(mx.default_stream(mx.cpu)) or mx.zeros(1)] * cpu.CORES)
    assert len({str(stream) for stream in streams}) == cpu.CORES
