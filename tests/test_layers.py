"""Layers keep their contract: layer(x, norm=n, residual=r) = r + layer(n(x))."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from oracle import relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal

from stable_diffusion.adapters.lora_layers import LoRAConv3x3, LoRALinear
from stable_diffusion.attention import Attention
from stable_diffusion.device import cpu_kernels
from stable_diffusion.layers import Conv3x3, GroupNorm, Linear, silu, upsample_nearest
from stable_diffusion.model_io.loaders import load_autoencoder, load_unet

WIDTH = 64
MAX_ERROR = 1e-6


def random_array(*shape: int) -> mx.array:
    return mx.array(random_normal(*shape))


def make_lora_linear(base: nn.Module) -> LoRALinear:
    return LoRALinear(base, random_array(3, WIDTH), random_array(WIDTH, 3))


def make_lora_conv() -> LoRAConv3x3:
    return LoRAConv3x3(
        Conv3x3(WIDTH, WIDTH), random_array(3, 3, 3, WIDTH) / 24, random_array(WIDTH, 3)
    )


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
def test_upsampled_convolutions(name):
    conv, x = CONVOLUTIONS[name](), random_array(2, 5, 6, WIDTH)
    assert relative_l2(conv.convolve_upsampled(x), conv(upsample_nearest(x))) <= MAX_ERROR


def test_lora_changes_a_convolution():
    """By the product of its matrices; the base stays as it is."""
    layer = make_lora_conv()
    before = mx.array(layer.base.weight)
    changed = Conv3x3(WIDTH, WIDTH)
    product = (layer.up @ layer.down.flatten(1)).reshape(before.shape)
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
