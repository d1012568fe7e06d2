"""The kernels for a Linux CPU are as exact as MLX's operations, at any size."""

import math
import subprocess
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import parity
import pytest
import torch
from ours import python

from stable_diffusion.activations import gelu, quick_gelu, silu
from stable_diffusion.attention import attend
from stable_diffusion.device import (
    check_kernels,
    compile_kernels,
    cpu_kernels,
    kernel_calls,
)
from stable_diffusion.layers import (
    Conv3x3,
    GroupNorm,
    Linear,
    QuantizedLinear,
    geglu,
)
from stable_diffusion.model_io import loaders

pytestmark = [
    pytest.mark.skipif(not cpu_kernels.is_used(), reason="only a Linux CPU needs it"),
    pytest.mark.usefixtures("all_cores"),
]

NETWORK_ERROR = 1e-5


def random_normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compute_error(ours: mx.array, exact: np.ndarray | torch.Tensor) -> float:
    """Return the relative L2 distance to a result in float64."""
    exact = np.asarray(exact)
    assert ours.shape == exact.shape
    return float(np.linalg.norm(np.array(ours) - exact) / np.linalg.norm(exact))


@pytest.fixture(params=["narrow", "wide"])
def width(request, monkeypatch):
    """Use the kernels as they are for this processor, and as they are for a wider one."""
    if request.param == "wide":
        kernels = request.getfixturevalue("wide_kernels")
        monkeypatch.setattr(compile_kernels, "load", lambda: kernels)


GATES = {
    "silu": (silu, lambda x: x / (1 + np.exp(-x))),
    "gelu": (gelu, lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2),
    "quick_gelu": (quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x))),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("deviation", [0.1, 1, 4])
def test_gates(name, deviation):
    ours, exact = GATES[name]
    x = deviation * random_normal(40_000)
    assert compute_error(ours(mx.array(x)), exact(x.astype(np.float64))) < 2e-7


@pytest.mark.parametrize("name", GATES)
def test_gates_far_out(name):
    """The results are x or zero, within the precision of float32."""
    far = np.array([-1e30, -1e4, -40, 0, 40, 1e4, 1e30], np.float32)
    ours = np.array(GATES[name][0](mx.array(far)))
    assert (abs(ours - np.maximum(far, 0)) <= 1e-7 * abs(far)).all()


@pytest.mark.parametrize("scale", [0.125, 5.0])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "length", "n_keys", "dims"),
    [
        *[(2, 67, 67, 16), (3, 1, 5, 8), (1, 130, 300, 40), (1, 600, 600, 3), (2, 300, 77, 5)],
        (1, 20, 150, 160),  # a wide head, whose keys are copied in smaller blocks
    ],
)
def test_attention(width, heads, length, n_keys, dims, scale, causal):
    shapes = [(2, heads, n, dims) for n in (length, n_keys, n_keys)]
    q, k, v = (random_normal(*shape, seed=i) for i, shape in enumerate(shapes))
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(a, dtype=torch.float64) for a in (q, k, v)), scale=scale, is_causal=causal
    )
    rows = (mx.array(x).swapaxes(1, 2).flatten(2) for x in (q, k, v))
    ours = cpu_kernels.attention(*rows, heads, scale, causal)
    # Scores reach ±150 at scale 5.
    assert compute_error(ours, exact.swapaxes(1, 2).flatten(2)) < (3e-6 if scale < 1 else 1e-5)


def test_attention_with_more_heads_than_are_packed_at_a_time():
    heads, n_keys, dims = 17, 4096, 64
    rows = [mx.array(random_normal(1, n, heads * dims, seed=n)) for n in (2, n_keys)]
    ours = cpu_kernels.attention(*rows, rows[1], heads, 0.125)
    for head in (0, heads - 1):
        q, k = (x[..., head * dims : (head + 1) * dims] for x in rows)
        alone = cpu_kernels.attention(q, k, k, 1, 0.125)
        assert mx.array_equal(ours[..., head * dims : (head + 1) * dims], alone)


def test_attention_with_scores_that_would_overflow():
    q, k, v = (mx.array(30 * random_normal(1, 64, 64, seed=i)) for i in range(3))
    ours = cpu_kernels.attention(q, k, v, 1, 1.0)
    assert mx.isfinite(ours).all()
    best = np.array((q @ k.swapaxes(1, 2)).argmax(-1))[0]
    assert np.allclose(np.array(ours)[0], np.array(v)[0][best], atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", range(3))
def test_attention_does_not_hide_what_is_not_finite(which, bad):
    """An overflow has to be noticed, and is recognized by numbers that are not finite."""
    inputs = [random_normal(1, 300, 8, seed=i) for i in range(3)]
    inputs[which][0, 280, 3] = bad
    assert not np.isfinite(np.array(cpu_kernels.attention(*map(mx.array, inputs), 1, 1.0))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gates_do_not_hide_what_is_not_finite(bad):
    for gate in (silu, gelu, quick_gelu):
        y = float(gate(mx.array([bad]))[0])
        assert not np.isfinite(y) or y == max(bad, 0)  # the limit at -inf is 0


@pytest.mark.parametrize(("height", "width", "channels"), [(512, 512, 32), (7, 13, 64), (1, 1, 32)])
def test_group_norm(height, width, channels):
    """MLX's own loses four digits at 512×512, because it adds the numbers one by one."""
    x = 3 + 2 * random_normal(2, height, width, channels)
    norm = GroupNorm(8, channels, eps=1e-6)
    norm.weight = mx.array(random_normal(channels))
    norm.bias = mx.array(random_normal(channels, seed=1))
    exact = torch.nn.functional.group_norm(
        torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2),
        8,
        *(torch.tensor(np.array(p), dtype=torch.float64) for p in (norm.weight, norm.bias)),
        1e-6,
    )
    assert compute_error(norm(mx.array(x)), exact.permute(0, 2, 3, 1)) < 5e-7


# The second line is for Winograd's method; the last one has blocks of tiles for each core.
CONVOLUTIONS = [
    *[(2, 2, 8, 8), (2, 3, 8, 16), (9, 31, 16, 8), (16, 16, 24, 40), (33, 20, 7, 3)],
    *[(16, 16, 32, 40), (23, 31, 40, 33), (5, 64, 72, 64), (100, 131, 32, 32)],
]


@pytest.mark.parametrize("how", ["plain", "prepared", "upsampled", "halved", "halved below"])
@pytest.mark.parametrize(("height", "columns", "channels", "outputs"), CONVOLUTIONS)
def test_convolution(width, how, height, columns, channels, outputs):
    stride, padding = (2 if "halved" in how else 1), (0 if "below" in how else 1)
    conv = Conv3x3(channels, outputs, stride=stride, padding=padding)
    x = mx.array(random_normal(2, height, columns, channels))
    norm = GroupNorm(1, channels, eps=1e-5)
    weight, bias = (
        torch.tensor(np.array(conv[name]), dtype=torch.float64) for name in ("weight", "bias")
    )

    def exact(x: np.ndarray) -> torch.Tensor:
        y = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
        if how == "upsampled":
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = torch.nn.functional.pad(y, (padding, 1, padding, 1))
        y = torch.nn.functional.conv2d(y, weight.permute(0, 3, 1, 2), bias, stride=stride)
        return y.permute(0, 2, 3, 1)

    if how == "upsampled":
        assert compute_error(conv.convolve_upsampled(x), exact(np.array(x))) < 4e-6
    elif how == "prepared":
        theirs = exact(np.array(nn.silu(norm(x)))).numpy()
        residual, own = random_normal(*theirs.shape), random_normal(2, outputs, seed=1)
        ours = conv(x, norm=norm, activation=silu, bias=mx.array(own), residual=mx.array(residual))
        assert compute_error(ours, theirs + residual + own[:, None, None]) < 4e-6
        theirs = exact(np.array(nn.mish(norm(x)))).numpy()  # not among the kernels'
        ours = conv(x, norm=norm, activation=nn.mish, bias=mx.array(own[:1]))
        assert compute_error(ours, theirs + own[0]) < 4e-6
    else:
        assert compute_error(conv(x), exact(np.array(x))) < 4e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("shape", [(3, 67), (1, 2, 17, 67), (1300, 67)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_linear(width, dtype, shape, has_norm):
    """Weights that are stored in half precision are computed with in single precision.

    Those in bfloat16 also are, as 67 is odd: no kernel of half precision takes them.
    """
    layer, norm = Linear(67, 50), nn.LayerNorm(67)
    norm.weight, norm.bias = mx.array(random_normal(67)), mx.array(random_normal(67, seed=1))
    layer.set_dtype(dtype)
    x = 1 + random_normal(*shape)
    rows = np.array(x, np.float64)
    if has_norm:
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
        rows = rows * np.array(norm.weight) + np.array(norm.bias)
    exact = rows @ np.array(layer.weight.astype(mx.float32), np.float64).T
    exact += np.array(layer.bias.astype(mx.float32))
    residual = random_normal(*exact.shape)
    ours = layer(mx.array(x), norm=norm if has_norm else None, residual=mx.array(residual))
    assert compute_error(ours, exact + residual) < 1e-6


@pytest.mark.parametrize("n", [1, 70, 1300])
def test_geglu(width, n):
    layer, norm = Linear(24, 2 * 53), nn.LayerNorm(24)
    x = random_normal(2, n, 24)
    both = torch.nn.functional.layer_norm(torch.tensor(x, dtype=torch.float64), (24,))
    both = both @ torch.tensor(np.array(layer.weight).T, dtype=torch.float64)
    hidden, gate = (both + torch.tensor(np.array(layer.bias))).chunk(2, dim=-1)
    exact = hidden * torch.nn.functional.gelu(gate)
    assert compute_error(geglu(layer, mx.array(x), norm), exact) < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        lambda x: Linear(7, 4)(x),
        lambda x: Linear(8, 4)(x, residual=x),
        lambda x: Linear(8, 4)(x, norm=nn.LayerNorm(7)),
        lambda x: Conv3x3(7, 4)(x[None]),
        lambda x: Conv3x3(8, 4)(x[None], residual=x[None]),
        lambda x: Conv3x3(8, 4)(x[None], bias=mx.zeros((2, 4))),
        lambda x: cpu_kernels.attention(x, x[..., :4], x[..., :4], 1, 1.0),
        lambda x: cpu_kernels.attention(x, x, x[:, :1], 1, 1.0),
        lambda x: GroupNorm(4, 4, 1e-5)(x),
    ],
)
def test_arrays_that_do_not_fit(call):
    """They are refused, not read beyond their ends."""
    with pytest.raises(ValueError, match="expected an array of shape"):
        call(mx.zeros((2, 3, 8)))


def test_integers_are_numbers():
    """An integer for a float, as in some configs, does not change other arguments."""
    x, weight = mx.array(random_normal(2, 5, 16)), mx.array(random_normal(8, 16))
    gain, offset = mx.array(random_normal(16)), mx.array(random_normal(16, seed=1))
    one, other = (
        cpu_kernels.linear(x, [weight], [None], cpu_kernels.Norm(gain, offset, eps))
        for eps in (1, 1.0)
    )
    assert mx.array_equal(one[0], other[0])
    pixels = x[:, None]
    one, other = (cpu_kernels.group_norm(pixels, 4, gain, offset, eps) for eps in (1, 1.0))
    assert mx.array_equal(one.gain, other.gain) and mx.array_equal(one.offset, other.offset)


@pytest.mark.parametrize("eps", [0, 0.0, 1e-50, 1e-320])
def test_a_layer_norm_is_one_whatever_its_epsilon(eps):
    """Its gain [D] is not read like that of a GroupNorm, which has one for each picture."""
    layer, norm, x = Linear(16, 8), nn.LayerNorm(16), mx.array(random_normal(4, 5, 16))
    norm.eps = eps
    norm.weight, norm.bias = mx.array(random_normal(16)), mx.array(random_normal(16, seed=1))
    rows = np.array(x, np.float64)
    rows = (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)
    rows = rows * np.array(norm.weight) + np.array(norm.bias)
    exact = rows @ np.array(layer.weight, np.float64).T + np.array(layer.bias)
    assert compute_error(layer(x, norm=norm), exact) < 2e-6


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: cpu_kernels.linear(x, [w], [None], cpu_kernels.Norm(x[:, 0, 0], x[:, 0, 0])),
        lambda x, w: cpu_kernels.linear(
            x, [w], [None], cpu_kernels.Norm(x[:, 0, 0], x[:, 0, 0], 1e-5)
        ),
        lambda x, w: cpu_kernels.linear(x, [w[:3]], [None], gated=True),
        lambda x, w: cpu_kernels.linear(x, [w[:, 0]], [None]),
        lambda x, w: cpu_kernels.normalize(x, cpu_kernels.Norm(w[0], w[0])),
        lambda x, w: cpu_kernels.normalize(x, cpu_kernels.Norm(w[:2], w[:2], 1e-5)),
        lambda x, w: cpu_kernels.group_norm(x, 0, w[0], w[0], 1e-5),
        lambda x, w: cpu_kernels.group_norm(x, 3, w[0], w[0], 1e-5),
        lambda x, w: cpu_kernels.group_norm(x, 2, w[0], w[0, :4], 1e-5),
        lambda x, w: cpu_kernels.attention(x, x, x, 3, 1.0),
        lambda x, w: cpu_kernels.attention(x, x, x, 0, 1.0),
        lambda x, w: cpu_kernels.attention(x[0], x[0], x[0], 1, 1.0),
        lambda x, w: cpu_kernels.conv3x3(x, w, w[:, 0]),
        lambda x, w: cpu_kernels.conv3x3(x[:, None], mx.zeros((4, 3, 3, 8)), w[:, 0], stride=3),
        lambda x, w: cpu_kernels.conv3x3(x[:, None], mx.zeros((4, 3, 3, 8)), w[:4, 0], padding=2),
        lambda x, w: cpu_kernels.dequantize(x, x, x, 32, 8),
        lambda x, w: cpu_kernels.dequantize(
            mx.zeros((2, 8), mx.uint32), w[:2, :1], w[:2, :1], 0, 8
        ),
        lambda x, w: cpu_kernels.dequantize(
            mx.zeros((2, 8), mx.uint32), w[:2, :2], w[:2, :1], 32, 8
        ),
        lambda x, w: cpu_kernels.dequantize(
            mx.zeros((2, 8), mx.uint32), w[:2, :1], w[:2, :1], 5, 8
        ),
    ],
)
def test_shapes_that_kernels_rely_on(call):
    with pytest.raises(ValueError, match="expected an array of shape|cannot be computed"):
        call(mx.zeros((2, 3, 8)), mx.zeros((8, 8)))


def test_sizes_of_zero():
    """MLX's own operations compute them."""
    for shape in ((0, 3, 8), (2, 0, 8)):
        x = mx.zeros(shape)
        assert Linear(8, 4)(x, norm=nn.LayerNorm(8)).shape == (*shape[:2], 4)
        assert silu(x).shape == shape
        assert attend(x, x, x, 2).shape == shape
    assert Conv3x3(8, 4)(mx.zeros((0, 4, 4, 8))).shape == (0, 4, 4, 4)


def break_kernel(name: str):
    """Return the kernels, one of which does nothing and reports success."""
    return SimpleNamespace(
        **{
            one: (lambda *_: True) if one == name else getattr(compile_kernels.load(), one)
            for one in kernel_calls.KERNELS
        },
        half_products=lambda: 0,
    )


@pytest.mark.parametrize("name", kernel_calls.KERNELS)
def test_a_kernel_that_is_wrong_is_not_used(name, monkeypatch, checkpoint):
    library = break_kernel(name)
    monkeypatch.setattr(compile_kernels, "load", lambda: library)
    with pytest.warns(UserWarning, match=rf"are not used \(.*{name}"):
        cpu_kernels.supports(mx.zeros(1))
    unet = loaders.load_unet(checkpoint("sd-1"), float16=True)
    x = mx.array(random_normal(1, 4, 4, 4)), mx.array([9.0]), mx.array(random_normal(1, 7, 32))
    x = *x[:2], x[2][..., : unet.config.cross_attention_dim]
    ours = unet(*x)
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    plain = unet(*x)
    assert mx.abs(ours - plain).max().item() < 1e-4 * mx.abs(plain).max().item()


def test_an_mlx_whose_tracing_is_not_noticed(monkeypatch):
    """If tracing cannot be noticed, kernels are not used: gradients would silently be zero."""
    library = SimpleNamespace(
        **{name: getattr(compile_kernels.load(), name) for name in kernel_calls.KERNELS},
        half_products=lambda: 0,
    )
    monkeypatch.setattr(compile_kernels, "load", lambda: library)
    monkeypatch.setattr(mx, "async_eval", lambda *_: None)
    with pytest.warns(UserWarning, match="are not used"):
        assert not cpu_kernels.supports(mx.zeros(1))


def test_kernels_are_used_if_compiling_is_disabled():
    """Then `mx.compile` traces nothing, which is not a fault."""
    mx.disable_compile()
    try:
        assert check_kernels.sees_tracing()
    finally:
        mx.enable_compile()
    assert check_kernels.sees_tracing()


POOL = """
#include <cstdio>
#include <thread>
#include "parallel.h"

// Tasks for which there is too little memory on every thread except the first one.
int main() {
  const auto first = std::this_thread::get_id();
  std::atomic<bool> others{false};
  try {
    parallel(4, 1000, [&](int) {
      if (std::this_thread::get_id() != first) { others = true; throw std::bad_alloc(); }
      while (!others) std::this_thread::yield();
    });
  } catch (const std::bad_alloc &) {
    std::puts("said");
  }
  std::atomic<long> sum{0};
  for (int round = 0; round < 1000; round++) parallel(64, 10, [&](int i) { sum += i; });
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; i++)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; round++) parallel(3, 10, [&](int i) { sum += i; });
    });
  for (auto &caller : callers) caller.join();
  std::printf("%ld\\n", sum.load());
}
"""


def test_a_thread_without_memory_is_not_overlooked(tmp_path):
    """Otherwise a part of the picture would be random numbers. Every task is run once."""
    source, program = tmp_path / "pool.cpp", tmp_path / "pool"
    source.write_text(POOL.replace("#include <thread>", "#include <thread>\n#include <vector>"))
    folder = compile_kernels.SOURCES
    command = ["g++", "-std=c++17", "-O1", "-pthread", f"-I{folder}", source]
    subprocess.run([*command, folder / "parallel.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"said\n{45 * (1000 + 8 * 200)}\n"


def test_too_little_memory():
    """Without memory for threads fewer of them work; without memory for the work it is an error."""
    code = (
        "import resource, stable_diffusion, mlx.core as mx;"
        "from stable_diffusion.device import cpu_kernels as cpu, kernel_calls;"
        "kernel_calls.CORES = 4;"
        "x = mx.zeros((1, 64, 64, 32));"
        "conv = lambda n: mx.eval(cpu.conv3x3(x[..., :8], mx.zeros((n, 3, 3, 8)), mx.zeros(n)));"
        "wide = mx.zeros((1, 64, 64, 2048)); many = mx.zeros((8, 3, 3, 2048)); mx.eval(wide, many);"
        "conv(8); size = int(open('/proc/self/statm').read().split()[0]) * 4096;"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, -1)); conv(8); print('fits');"
        "cpu.conv3x3(wide, many, mx.zeros(8))"
    )
    done = python("-c", code)
    assert done.stdout == "fits\n", done.stderr
    assert done.stderr.endswith("MemoryError: the memory is too small\n")


def test_halves_of_all_kinds():
    """The kernels convert every number of float16 and of bfloat16 correctly."""
    for dtype in (mx.float16, mx.bfloat16):
        halves = mx.view(mx.arange(2**16).astype(mx.uint16), dtype)
        ours, theirs = np.array(kernel_calls.widen(halves)), np.array(halves.astype(mx.float32))
        assert np.array_equal(ours, theirs, equal_nan=True)
        assert np.array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_quantized_linear(bits, bias):
    layer = Linear(64, 50, bias=bias).to_quantized(32, bits)
    assert isinstance(layer, QuantizedLinear)
    x = mx.array(random_normal(2, 9, 64))
    assert compute_error(layer(x), nn.QuantizedLinear.__call__(layer, x)) < 1e-6


@pytest.mark.parametrize("kind", ["sd-1", "sdxl", "unusual"])
def test_networks_without(monkeypatch, oracle, kind):
    """Without kernels, MLX's own operations are used, as on Metal and CUDA."""
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    assert parity.unet_error(oracle(kind), parity.UNET_SIZES[0]) <= NETWORK_ERROR
    assert parity.decode_error(oracle(kind)) <= NETWORK_ERROR
