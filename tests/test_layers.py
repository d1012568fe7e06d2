"""Layers keep their contract: layer(x, norm=n, residual=r) = r + layer(n(x))."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gpu import as_on
from oracle import relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal

from stable_diffusion.activations import ACTIVATIONS, silu
from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.lora_layers import AdaptedConv3x3, LoRALinear
from stable_diffusion.attention import Attention
from stable_diffusion.device import cpu_kernels
from stable_diffusion.device.backend import Backend
from stable_diffusion.layers import Conv3x3, GroupNorm, Linear, upsample_nearest
from stable_diffusion.model_io.loaders import load_autoencoder, load_unet
from stable_diffusion.resnet_block import ResnetBlock2D

WIDTH = 64
MAX_ERROR = 1e-6


def random_array(*shape: int) -> mx.array:
    return mx.array(random_normal(*shape))


def make_lora_linear(base: nn.Module) -> LoRALinear:
    return LoRALinear(base, random_array(3, WIDTH), random_array(WIDTH, 3))


def make_lora_conv() -> AdaptedConv3x3:
    change = LowRank(random_array(3, 3, 3, WIDTH) / 24, random_array(WIDTH, 3))
    return AdaptedConv3x3(Conv3x3(WIDTH, WIDTH), [change])


ON_ROWS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Linear(WIDTH, WIDTH),
    "without a bias": lambda: Linear(WIDTH, WIDTH, bias=False),
    "quantized": lambda: Linear(WIDTH, WIDTH).to_quantized(32, 8),
    "lora": lambda: make_lora_linear(Linear(WIDTH, WIDTH)),
    "lora, quantized": lambda: make_lora_linear(Linear(WIDTH, WIDTH).to_quantized(32, 8)),
    "attention": lambda: Attention(WIDTH, 4),
}
CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: Conv3x3(WIDTH, WIDTH),
    "lora": make_lora_conv,
}


@pytest.fixture(params=["kernels", "MLX"], autouse=True)
def device(request, monkeypatch) -> None:
    """Compute by the kernels, if they are for this machine, and by MLX's operations."""
    if request.param == "MLX":
        monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)


def shift_norm(norm: nn.Module) -> nn.Module:
    """Give a norm weights that are not 1, and biases that are not 0."""
    norm.weight, norm.bias = 1 + random_array(WIDTH) / 4, random_array(WIDTH)
    return norm


@pytest.mark.parametrize("name", ON_ROWS)
def test_layers_of_rows(name):
    layer, norm = ON_ROWS[name](), shift_norm(nn.LayerNorm(WIDTH))
    x, residual = random_array(2, 9, WIDTH), random_array(2, 9, WIDTH) + 1
    assert relative_l2(layer(x, norm=norm), layer(norm(x))) <= MAX_ERROR
    assert relative_l2(layer(x, residual=residual), residual + layer(x)) <= MAX_ERROR
    both = layer(x, norm=norm, residual=residual)
    assert relative_l2(both, residual + layer(norm(x))) <= MAX_ERROR


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", [None, silu, nn.mish])
def test_convolutions(name, activation):
    """An activation comes after the norm, and a bias of each picture after the convolution."""
    conv, norm = CONVOLUTIONS[name](), shift_norm(GroupNorm(4, WIDTH, eps=1e-5))
    x, residual = random_array(2, 6, 7, WIDTH), random_array(2, 6, 7, WIDTH) + 1
    bias = random_array(2, WIDTH)

    def activate(x: mx.array) -> mx.array:
        return x if activation is None else activation(x)

    alone = conv(x, activation=activation)
    assert relative_l2(alone, conv(activate(x))) <= MAX_ERROR
    ours = conv(x, norm=norm, activation=activation, bias=bias, residual=residual)
    plain = residual + conv(activate(norm(x))) + bias[:, None, None]
    assert relative_l2(ours, plain) <= MAX_ERROR


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ["silu", "mish"])
@pytest.mark.parametrize("has_time", [True, False])
def test_residual_blocks(name, activation, has_time):
    """As they are written in papers: a GPU adds bias and time in the second norm."""
    temb = random_array(2, 5) if has_time else None
    block = ResnetBlock2D(
        WIDTH,
        WIDTH,
        groups=4,
        eps=1e-5,
        activation=activation,
        temb_channels=5 if has_time else None,
    )
    block.conv1, block.conv2 = CONVOLUTIONS[name](), CONVOLUTIONS[name]()
    for conv in (block.conv1, block.conv2):
        getattr(conv, "base", conv).bias = random_array(WIDTH)
    shift_norm(block.norm1), shift_norm(block.norm2)
    x, activate = random_array(2, 6, 7, WIDTH), ACTIVATIONS[activation]
    h = block.conv1(activate(block.norm1(x)))
    h = h if temb is None else h + block.time_emb_proj(temb)[:, None, None]
    plain = x + block.conv2(activate(block.norm2(h)))
    assert relative_l2(block(x, temb), plain) <= MAX_ERROR


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [None, (10, 12), (9, 11)])
def test_upsampled_convolutions(name, size):
    conv, x = CONVOLUTIONS[name](), random_array(2, 5, 6, WIDTH)
    height, width = size or (10, 12)
    plain = conv(upsample_nearest(x)[:, :height, :width])
    assert relative_l2(conv.convolve_upsampled(x, size), plain) <= MAX_ERROR


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
@pytest.mark.parametrize("kind", [Backend.METAL, Backend.CUDA])
def test_metal_convolves_small_numbers_after_upsampling(kind, dtype, monkeypatch):
    """Numbers in float16 are divided by a power of two, which leaves the result the same."""
    largest: list[float] = []
    convolve = mx.conv2d

    def record(x: mx.array, *arguments: object) -> mx.array:
        largest.append(mx.abs(x).max().item())
        return convolve(x, *arguments)

    conv, x = Conv3x3(WIDTH, WIDTH), 1000 * random_array(1, 3, 4, WIDTH).astype(dtype)
    conv.bias = 1000 * random_array(WIDTH)
    conv.set_dtype(dtype)
    monkeypatch.setattr(mx, "conv2d", record)
    with as_on(kind):
        ours, plain = conv.convolve_upsampled(x), conv(upsample_nearest(x))
    scale = 16 if (kind, dtype) == (Backend.METAL, mx.float16) else 1
    assert largest[1] == scale * largest[0] > 1300
    assert mx.array_equal(ours, plain)


GROUP_NORMS = {  # the shape, and the number of groups
    "a picture": ((2, 3, 5, 24), 4),
    "rows": ((2, 15, 24), 4),
    "odd groups": ((1, 4, 4, 21), 7),
    "one channel a group": ((2, 4, 4, 8), 8),
    "one pixel": ((2, 1, 1, 24), 4),
}


@pytest.mark.parametrize("activation", [None, silu])
@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norm(name, activation):
    """Compare with the formula, and the gradient with that of MLX's layer."""
    shape, groups = GROUP_NORMS[name]
    norm = GroupNorm(groups, shape[-1], eps=1e-5)
    norm.weight, norm.bias = 1 + random_array(shape[-1]) / 4, random_array(shape[-1])
    x, shift = random_array(*shape) + 1, random_array(shape[0], shape[-1])
    shifted = np.array(x) + np.array(shift).reshape(shape[0], *[1] * (len(shape) - 2), -1)
    grouped = shifted.astype(np.float64).reshape(shape[0], -1, groups, shape[-1] // groups)
    deviations = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variances = np.square(deviations).mean(axis=(1, 3), keepdims=True)
    theirs = (deviations / np.sqrt(variances + 1e-5)).reshape(shape) * norm.weight + norm.bias
    theirs = theirs if activation is None else theirs / (1 + np.exp(-theirs))
    assert relative_l2(norm(x, activation, [shift]), theirs) <= MAX_ERROR

    def differentiate(normalize: Callable[[mx.array], mx.array]) -> mx.array:
        return mx.grad(lambda x: normalize(x).square().sum())(mx.array(shifted))

    base = super(GroupNorm, norm).__call__
    expected = differentiate(lambda x: base(x) if activation is None else activation(base(x)))
    assert relative_l2(differentiate(lambda x: norm(x, activation)), expected) <= 10 * MAX_ERROR


def test_statistics_of_half_precision():
    """Sums of a million numbers, whose squares exceed float16, are computed in float32."""
    x = (300 + 30 * random_array(1, 64, 64, WIDTH)).astype(mx.float16)
    norm = GroupNorm(1, WIDTH, eps=1e-5)
    norm.set_dtype(mx.float16)
    with as_on(Backend.METAL):
        ours = norm(x)
    exact = np.array(x.astype(mx.float32), np.float64)
    assert ours.dtype == mx.float16
    assert relative_l2(ours.astype(mx.float32), (exact - exact.mean()) / exact.std()) <= 1e-3


def test_lora_changes_a_convolution():
    """By the product of its matrices; the base stays as it is."""
    layer = make_lora_conv()
    before = mx.array(layer.base.weight)
    changed = Conv3x3(WIDTH, WIDTH)
    (change,) = layer.changes
    product = (change.up @ change.down.flatten(1)).reshape(before.shape)
    changed.weight, changed.bias = before + product, layer.base.bias
    x = random_array(1, 5, 6, WIDTH)
    assert relative_l2(layer(x), changed(x)) <= MAX_ERROR
    assert relative_l2(layer(x), layer.base(x)) > 0.1
    assert mx.array_equal(layer.base.weight, before)


def test_latent_channels(checkpoint):
    """It is a property of the network, as in the original example."""
    assert load_autoencoder("tiny").latent_channels == 8
    assert load_autoencoder(checkpoint("unusual")).latent_channels == 6


def test_text_and_time_are_for_sdxl(checkpoint):
    unet = load_unet(checkpoint("sd-1"))
    x, text = random_array(1, 8, 8, 4), random_array(1, 77, unet.config.cross_attention_dim)
    with pytest.raises(ValueError, match="text_time is for the UNet of SDXL"):
        unet(x, mx.array([1.0]), text, (random_array(1, POOLED_WIDTH), mx.array(TIME_IDS[:1])))
