"""The kernels of half precision, in portable code that rounds and sums as the processor does."""

import copy
import pickle
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from stable_diffusion import StableDiffusion, stored_weights
from stable_diffusion.adapters.lora_layers import LoRALinear
from stable_diffusion.attention import Attention
from stable_diffusion.cli import convert
from stable_diffusion.device import compile_kernels, cpu_kernels, kernel_calls
from stable_diffusion.layers import Conv3x3, Linear, has_half_weights
from stable_diffusion.model_io.weights import read_weights
from stable_diffusion.quantize import quantize_unet
from stable_diffusion.quantized_convolution import QuantizedConv3x3

pytestmark = pytest.mark.skipif(not cpu_kernels.is_used(), reason="only a Linux CPU needs it")

MULTIPLIES_HALVES = cpu_kernels.multiplies_halves  # which other tests replace

SUM_ERROR = 1e-6  # of float32 sums
ROUNDING_ERROR = 4e-3  # of bfloat16
TILES_ERROR = 1.3e-2  # of Winograd's method with bfloat16
STEP_ERROR = 2.5e-2  # of a network


@pytest.fixture(autouse=True)
def half_kernels(wide_kernels, monkeypatch):
    monkeypatch.setattr(compile_kernels, "load", lambda: wide_kernels)
    monkeypatch.setattr(cpu_kernels, "multiplies_halves", MULTIPLIES_HALVES)
    return wide_kernels


def random_normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def round_to_half(x: mx.array) -> np.ndarray:
    """Return the nearest numbers of bfloat16, in float64."""
    return np.array(x.astype(mx.bfloat16).astype(mx.float32), np.float64)


def compute_error(ours: mx.array, exact: np.ndarray) -> float:
    """Return the relative L2 distance."""
    assert ours.shape == exact.shape
    return float(np.linalg.norm(np.array(ours) - exact) / np.linalg.norm(exact))


def test_rounding():
    """Numbers are rounded to the nearest, ties to even; nothing that is not finite gets finite."""
    bits = np.arange(0x3F800000, 0x3F820000, 0x2000, dtype=np.uint32)  # ties among them
    special = np.array([0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    x = mx.array(np.concatenate([bits.view(np.float32), special, nan]))[:, None]
    row = mx.concatenate([x, mx.zeros_like(x)], axis=1)
    [ours] = cpu_kernels.linear(row, [mx.array([[1, 0]], mx.bfloat16)], [None])
    assert np.array_equal(np.array(ours), round_to_half(x), equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 2), (3, 11, 70), (700, 20), (65, 1302)])
@pytest.mark.parametrize("outputs", [1, 50])
def test_linear(shape, outputs):
    x = random_normal(*shape)
    weights = [random_normal(outputs, shape[-1], seed=i).astype(mx.bfloat16) for i in (1, 2)]
    bias, residual = random_normal(outputs), random_normal(*shape[:-1], outputs)
    ours = cpu_kernels.linear(x, weights, [bias, None], residual=residual)
    for result, weight, b in zip(ours, weights, (bias, 0), strict=True):
        exact = round_to_half(x) @ round_to_half(weight).T + np.array(b) + np.array(residual)
        assert compute_error(result, exact) < SUM_ERROR


def test_gated_linear():
    x, weight, bias = (
        random_normal(2, 37, 24),
        random_normal(2 * 53, 24, seed=1),
        random_normal(106),
    )
    [ours] = cpu_kernels.linear(x, [weight.astype(mx.bfloat16)], [bias], gated=True)
    both = torch.tensor(round_to_half(x) @ round_to_half(weight).T + np.array(bias))
    hidden, gate = both.chunk(2, dim=-1)
    assert compute_error(ours, (hidden * torch.nn.functional.gelu(gate)).numpy()) < SUM_ERROR


def test_linear_after_norms():
    x, weight = 1 + random_normal(2, 33, 48), random_normal(20, 48, seed=1)
    gain, offset = random_normal(2, 48, seed=2), random_normal(2, 48, seed=3)
    layer_norm = cpu_kernels.Norm(gain[0], offset[0], 1e-5)
    normalized = mx.fast.layer_norm(x, gain[0], offset[0], 1e-5)
    group_norm = cpu_kernels.Norm(gain, offset)
    for norm, y in (layer_norm, normalized), (group_norm, x * gain[:, None] + offset[:, None]):
        [ours] = cpu_kernels.linear(x, [weight.astype(mx.bfloat16)], [None], norm)
        exact = np.array(y, np.float64) @ np.array(weight, np.float64).T
        assert SUM_ERROR < compute_error(ours, exact) < ROUNDING_ERROR


def convolve_exactly(x: np.ndarray, weight: np.ndarray, stride: int = 1, padding: int = 1):
    y = np.pad(x, [(0, 0), (padding, 1), (padding, 1), (0, 0)])
    y, w = (torch.tensor(a).permute(0, 3, 1, 2) for a in (y, weight))
    return torch.nn.functional.conv2d(y, w, stride=stride).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("shape", "outputs", "options"),
    [
        ((2, 2, 3, 8), 5, {}),
        ((1, 7, 9, 6), 30, {"upsample": True}),
        ((2, 7, 6, 12), 3, {"stride": 2}),
        ((3, 5, 8, 4), 3, {"stride": 2, "padding": 0}),
    ],
)
def test_convolution_by_direct_sums(shape, outputs, options):
    x, weight = random_normal(*shape), random_normal(outputs, 3, 3, shape[-1], seed=1)
    pixels, how = round_to_half(x), dict(options)
    if how.pop("upsample", False):
        pixels = pixels.repeat(2, 1).repeat(2, 2)
    exact = convolve_exactly(pixels, round_to_half(weight), **how)
    bias, residual = random_normal(shape[0], outputs, seed=2), random_normal(*exact.shape, seed=3)
    for own in (bias, bias[:1]):
        arrays = x, weight.astype(mx.bfloat16), own
        ours = cpu_kernels.conv3x3(*arrays, residual=residual, **options)
        wanted = exact + np.array(own)[:, None, None] + np.array(residual)
        assert compute_error(ours, wanted) < SUM_ERROR


def test_convolution_of_a_large_picture():
    """Some rows at a time; all numbers and sums are whole, so that there is no rounding."""
    random = np.random.default_rng(0)
    x, weight = (
        random.integers(-3, 4, shape, np.int8).astype(np.float32)
        for shape in ((1, 65, 8, 16384), (2, 3, 3, 16384))
    )
    arrays = mx.array(x), mx.array(weight).astype(mx.bfloat16), mx.zeros(2)
    exact = convolve_exactly(x, weight, stride=2)
    assert np.array_equal(np.array(cpu_kernels.conv3x3(*arrays, stride=2)), exact)


@pytest.mark.parametrize("shape", [(2, 9, 31, 16), (1, 33, 40, 136)])
def test_convolution_by_winograds_method(shape):
    x, weight, bias = random_normal(*shape), random_normal(30, 3, 3, shape[-1]), random_normal(30)
    gain, offset = random_normal(shape[0], shape[-1], seed=1), random_normal(shape[0], shape[-1])
    how = {"norm": cpu_kernels.Norm(gain, offset), "activation": cpu_kernels.Activation.SILU}
    normalized = x * gain[:, None, None] + offset[:, None, None]
    prepared = np.array(normalized * mx.sigmoid(normalized), np.float64)
    exact = convolve_exactly(prepared, round_to_half(weight))
    residual = random_normal(*exact.shape)
    ours = cpu_kernels.conv3x3(x, weight.astype(mx.bfloat16), bias, residual=residual, **how)
    assert SUM_ERROR < compute_error(ours - residual - bias, exact) < TILES_ERROR


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "length", "n_keys", "dims"),
    [(2, 67, 67, 16), (3, 5, 5, 8), (1, 290, 301, 40), (2, 300, 77, 5), (1, 1, 1, 2)],
)
def test_attention(heads, length, n_keys, dims, causal):
    inputs = [
        random_normal(2, n, heads * dims, seed=i) for i, n in enumerate((length, n_keys, n_keys))
    ]
    ours = cpu_kernels.attention(*inputs, heads, dims**-0.5, causal, half=True)
    q, k, v = (
        torch.tensor(np.array(x, np.float64)).unflatten(-1, (heads, dims)).swapaxes(1, 2)
        for x in inputs
    )
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    exact = exact.swapaxes(1, 2).flatten(2).numpy()
    assert SUM_ERROR < compute_error(ours, exact) < ROUNDING_ERROR


@pytest.mark.parametrize("length", [3, 261])
def test_causal_attention_reads_no_key_after_the_last_query(length):
    """Keys are multiplied in pairs; nothing of the one beside the last one is in the result."""
    inputs = [random_normal(1, length + n, 8, seed=i) for i, n in enumerate((0, 1, 1))]
    ours = cpu_kernels.attention(*inputs, 1, 1.0, causal=True, half=True)
    inputs[1][0, length] = inputs[2][0, length] = mx.inf
    again = cpu_kernels.attention(*inputs, 1, 1.0, causal=True, half=True)
    assert np.isfinite(np.array(ours)).all() and mx.array_equal(again, ours)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", range(3))
def test_attention_does_not_hide_what_is_not_finite(which, bad):
    inputs = [np.array(random_normal(1, 300, 8, seed=i)) for i in range(3)]
    inputs[which][0, 280, 3] = bad
    ours = cpu_kernels.attention(*map(mx.array, inputs), 1, 1.0, half=True)
    assert not np.isfinite(np.array(ours)).all()


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (6, 64), (8, 32)])
def test_dequantize(bits, group):
    weight, *factors = mx.quantize(random_normal(18, 128), group, bits)
    factors = [each.astype(mx.bfloat16) for each in factors]
    ours = cpu_kernels.dequantize(weight, *factors, group, bits)
    assert ours.dtype == mx.bfloat16
    exact = mx.dequantize(weight, *(each.astype(mx.float32) for each in factors), group, bits)
    rounded = exact.astype(mx.bfloat16).astype(mx.float32)
    assert mx.abs(ours - rounded).max().item() <= 2**-8 * mx.abs(exact).max().item()
    assert mx.mean(ours == rounded).item() > 0.99


def widen(layer: nn.Module) -> dict:
    """Return the parameters of a layer in float32."""
    return nn.utils.tree_map(lambda value: value.astype(mx.float32), layer.parameters())


def test_layers_choose_by_their_weights():
    """Other types are computed with in float32, and so is an odd number of columns."""
    x = random_normal(1, 4, 4, 9)
    for dtype, channels, is_half in (
        *((mx.bfloat16, 8, True), (mx.bfloat16, 9, False)),
        *((mx.float16, 8, False), (mx.float32, 8, False)),
    ):
        for layer in (Linear(channels, 6), Conv3x3(channels, 6)):
            layer.set_dtype(dtype)
            full = type(layer)(channels, 6)
            full.update(widen(layer))
            ours, exact = layer(x[..., :channels]), np.array(full(x[..., :channels]))
            assert (compute_error(ours, exact) > SUM_ERROR) == is_half


def test_quantized_convolutions():
    """They are unpacked to bfloat16 if the weights had it, as linear layers are."""
    x = random_normal(1, 4, 4, 32)
    for dtype, is_half in ((mx.bfloat16, True), (mx.float16, False)):
        layer = Conv3x3(32, 6)
        layer.set_dtype(dtype)
        packed = QuantizedConv3x3(layer, 32, 8)
        error = compute_error(packed(x), np.array(packed.to_plain()(x)))
        assert (error > SUM_ERROR) == is_half and error < 2 * ROUNDING_ERROR


@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_and_a_changed_weight(way):
    """A copy computes the same to the bit, and what is changed counts in the next call."""
    make_copy = copy.deepcopy if way == "copied" else lambda x: pickle.loads(pickle.dumps(x))
    x, layer = random_normal(1, 4, 4, 32), Conv3x3(32, 6, bias=False)
    layer.set_dtype(mx.bfloat16)
    for each in (layer, QuantizedConv3x3(layer, 32, 8)):
        copied, before = make_copy(each), each(x)
        assert mx.array_equal(copied(x), before)
        for name in ("weight",) if each is layer else ("scales", "biases"):
            copied[name] = 2 * copied[name]
        assert mx.array_equal(copied(x), 2 * before) and mx.array_equal(each(x), before)


def test_gradients():
    """They are MLX's own, in float32."""
    layer, x = Attention(16, 2), random_normal(1, 5, 16)
    layer.set_dtype(mx.bfloat16)
    assert has_half_weights(layer.out_proj)
    full = Attention(16, 2)
    full.update(widen(layer))
    ours, exact = (
        mx.grad(lambda x, each=each: each(x).square().sum())(x) for each in (layer, full)
    )
    assert mx.abs(exact).max().item() > 0.01
    assert compute_error(ours, np.array(exact)) < 1e-5
    assert SUM_ERROR < compute_error(layer(x), np.array(full(x))) < 2 * ROUNDING_ERROR


def test_lora():
    """The product that an adapter adds is computed in float32."""
    base, x = Linear(16, 12), random_normal(3, 16)
    base.set_dtype(mx.bfloat16)
    layer = LoRALinear(base, random_normal(2, 16, seed=1), random_normal(12, 2, seed=2))
    assert has_half_weights(layer)
    assert compute_error(layer(x) - base(x), np.array(x @ layer.down.T @ layer.up.T)) < SUM_ERROR


def predict(sd: StableDiffusion) -> np.ndarray:
    """Return what the UNet predicts for a text."""
    tokens = mx.array([sd.tokenizer.tokenize("a red circle")])
    embeddings = sd.text_encoder(tokens).last_hidden_state
    return np.array(sd.unet(random_normal(1, 16, 16, 8), mx.array([481.0]), embeddings))


@pytest.fixture
def used(monkeypatch) -> set[str]:
    """Return the names of the kernels that compute, which are added when they do."""
    names: set[str] = set()
    run = cpu_kernels.run

    def note(name: str, *arguments) -> None:
        run(name, *arguments)
        names.add(name)

    monkeypatch.setattr(cpu_kernels, "run", note)
    return names


def test_a_model_in_half_precision():
    """What the layers multiply is in bfloat16; float32 can be chosen again."""
    full, half = (StableDiffusion("tiny", float16=each) for each in (False, True))
    weights = dict(nn.utils.tree_flatten(half.unet.parameters()))
    assert {value.dtype for value in weights.values() if value.ndim > 1} == {mx.bfloat16}
    assert {value.dtype for value in weights.values() if value.ndim == 1} == {mx.float32}
    assert half.text_encoder.token_embedding.weight.dtype == mx.float16
    exact = predict(full)
    assert 1e-4 < compute_error(mx.array(predict(half)), exact) < STEP_ERROR
    half.use_float32()
    assert half.unet.conv_in.weight.dtype == mx.float32


@pytest.mark.parametrize("bits", [None, 6])
def test_a_quantized_model_in_half_precision(used, bits):
    """Weights of few bits are unpacked to bfloat16, those of convolutions too."""
    full, half = (StableDiffusion("tiny", float16=each) for each in (False, True))
    for sd in (full, half):
        sd.quantize(bits)
    exact = predict(full)
    assert not used.intersection(kernel_calls.HALF_KERNELS)
    used.clear()
    assert 1e-4 < compute_error(mx.array(predict(half)), exact) < 2 * STEP_ERROR
    assert used.issuperset(kernel_calls.HALF_KERNELS)
    assert used.isdisjoint(["linear", "dequantize", "conv3x3", "attention"])


def test_quantizing_in_half_precision(monkeypatch):
    """The kernel quantizes all layers, to the same bits as MLX."""
    made, quantize = [], stored_weights.quantize_weight
    monkeypatch.setattr(
        stored_weights, "quantize_weight", lambda *a: made.append(1) or quantize(*a)
    )
    ours, plain = (StableDiffusion("tiny", float16=True).unet for _ in range(2))
    stored_weights.forget_tensors(plain)
    for unet in (ours, plain):
        quantize_unet(unet, 6)
        read_weights(unet)
    kinds = nn.QuantizedLinear | QuantizedConv3x3
    assert len(made) == sum(isinstance(layer, kinds) for layer in ours.modules()) > 50
    theirs = dict(nn.utils.tree_flatten(plain.parameters()))
    for path, value in nn.utils.tree_flatten(ours.parameters()):
        assert value.dtype == theirs[path].dtype and mx.array_equal(value, theirs[path]), path


def test_half_precision_is_asked_for(tmp_path, used):
    """A folder of `convert` has scales in float16, which alone choose no precision."""
    folder = tmp_path / "tiny"
    assert convert.main(["tiny", str(folder), "-q", "8"]) == 0
    predict(StableDiffusion(folder))
    assert used and not used.intersection(kernel_calls.HALF_KERNELS)
    used.clear()
    predict(StableDiffusion(folder, float16=True))
    assert used.issuperset(["half_conv3x3", "half_dequantize"])


def test_a_vae_in_half_precision():
    full, half = (StableDiffusion("tiny", vae_float16=each) for each in (False, True))
    z = random_normal(1, 4, 4, 8)
    assert 1e-4 < compute_error(half.decode(z), np.array(full.decode(z))) < STEP_ERROR


@pytest.mark.parametrize("name", kernel_calls.HALF_KERNELS)
def test_a_kernel_that_is_wrong_is_not_used(name, half_kernels, monkeypatch):
    """The others compute in float32 instead."""
    names = (*kernel_calls.KERNELS, *kernel_calls.HALF_KERNELS)
    library = SimpleNamespace(
        **{one: (lambda *_: True) if one == name else getattr(half_kernels, one) for one in names},
        half_products=lambda: 1,
    )
    monkeypatch.setattr(compile_kernels, "load", lambda: library)
    with pytest.warns(UserWarning, match=rf"are not used \({name}\)"):
        assert cpu_kernels.supports(mx.zeros(1))
    assert cpu_kernels.multiplies_halves() == (name != "half_linear")
    layer, x = Attention(16, 2), random_normal(1, 5, 16)
    layer.set_dtype(mx.bfloat16)
    ours = layer(x)
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    assert compute_error(ours, np.array(layer(x))) < 2 * ROUNDING_ERROR
