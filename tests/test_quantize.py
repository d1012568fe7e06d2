"""Networks in few bits: convolutions, mixed bits, and what a config says of them."""

from dataclasses import asdict, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from stable_diffusion import StableDiffusion
from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.lora_layers import AdaptedConv3x3, get_weight_shape
from stable_diffusion.config.networks import Quantization
from stable_diffusion.device import cpu_kernels
from stable_diffusion.layers import Conv3x3
from stable_diffusion.model_io.weights import flatten_parameters
from stable_diffusion.quantize import (
    find_quantization,
    quantize_as,
    quantize_unet,
    store_in_float16,
)
from stable_diffusion.quantized_convolution import QuantizedConv3x3
from stable_diffusion.unet import UNetModel

GROUP_SIZE = 32


@pytest.fixture
def unet(checkpoint) -> UNetModel:
    return StableDiffusion(checkpoint("sd-1")).unet


def random_array(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x: layer(x),
        lambda layer, x: layer(x, bias=random_array(1, 32)),
        lambda layer, x: layer.convolve_upsampled(x),
    ],
)
def test_convolution(monkeypatch, has_kernels, bits, call):
    """It is the convolution with the weight that MLX quantizes and unpacks, [O, 9 C]."""
    plain = Conv3x3(64, 32)
    packed = QuantizedConv3x3(plain, GROUP_SIZE, bits)
    words, scales, offsets = mx.quantize(plain.weight.reshape(32, -1), GROUP_SIZE, bits)
    rounded = (each.astype(mx.float16).astype(mx.float32) for each in (scales, offsets))
    plain.weight = mx.dequantize(words, *rounded, GROUP_SIZE, bits).reshape(plain.weight.shape)
    if not has_kernels:
        monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    x = random_array(2, 6, 5, 64)
    theirs = call(plain, x)
    tolerance = 1e-5 if has_kernels else 1e-3  # MLX unpacks to the type of the scales, float16
    assert mx.abs(call(packed, x) - theirs).max() < tolerance * mx.abs(theirs).max()
    assert packed.weight.size == plain.weight.size * bits // 32


@pytest.mark.parametrize(("stride", "padding", "bias"), [(1, 1, True), (2, 1, False), (2, 0, True)])
def test_convolution_is_unpacked_with_its_options(stride, padding, bias):
    packed = QuantizedConv3x3(Conv3x3(32, 8, stride, padding, bias), GROUP_SIZE, 8)
    x = random_array(1, 7, 6, 32)
    theirs = packed.to_plain()(x)
    assert mx.abs(packed(x) - theirs).max() < 1e-3 * mx.abs(theirs).max()


def test_lora_of_a_quantized_convolution():
    """Its changes are added to the weight that is unpacked."""
    packed = QuantizedConv3x3(Conv3x3(32, 8), GROUP_SIZE, 8)
    change = LowRank(random_array(2, 9 * 32), random_array(8, 2))
    adapted, usual = (AdaptedConv3x3(base, [change]) for base in (packed, packed.to_plain()))
    x = random_array(1, 4, 4, 32)
    assert mx.array_equal(adapted(x), usual(x))
    assert get_weight_shape(adapted) == (8, 3, 3, 32)
    assert mx.abs(adapted(x) - packed(x)).max() > 1


def test_weights_beside_quantized_convolutions_learn():
    """Packed weights have no gradient, and are left out."""
    network = nn.Sequential(QuantizedConv3x3(Conv3x3(32, 8), GROUP_SIZE, 4), nn.Linear(8, 1))
    _, gradients = nn.value_and_grad(network, lambda x: network(x).sum())(random_array(1, 4, 4, 32))
    assert gradients["layers"][1]["weight"].size == 8
    assert "weight" not in gradients["layers"][0]


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_unet(unet, bits):
    """With less than 8 bits some layers have 8; the result says how to do the same again."""
    other = UNetModel(unet.config)
    other.update(unet.parameters())
    quantization = quantize_unet(unet, bits, GROUP_SIZE)
    layers = dict(unet.named_modules())
    assert layers["mid_block.resnets.0.conv1"].bits == bits
    assert layers["mid_block.attentions.0.proj_in"].bits == bits
    assert layers["time_embedding.linear_1"].bits == 8
    assert layers["conv_out"].bits == 8
    assert layers["down_blocks.0.resnets.0.conv1"].bits == 8
    assert layers["up_blocks.0.resnets.0.conv_shortcut"].bits == 8
    assert layers[f"up_blocks.{len(unet.up_blocks) - 1}.resnets.0.conv2"].bits == 8
    assert layers["conv_in"].weight.dtype == mx.float16  # 4 channels are no group
    assert find_quantization(unet) == quantization
    quantize_as(other, Quantization.from_dict(asdict(quantization), "it"))
    theirs = flatten_parameters(other)
    for path, value in flatten_parameters(unet).items():
        assert mx.array_equal(value, theirs[path].astype(value.dtype)), path


def quantize_by_mlx(network: nn.Module, group_size: int, bits: int) -> None:
    """Quantize the linear layers whose inputs are whole groups."""

    def is_chosen(path: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and layer.weight.shape[-1] % group_size == 0

    nn.quantize(network, group_size, bits, class_predicate=is_chosen)


def test_without_a_number_of_bits(checkpoint):
    """As `-q` always did, which recipes name: linear layers have 8 bits, convolutions float16."""
    sd, plain = (StableDiffusion(checkpoint("sd-1")) for _ in range(2))
    sd.quantize()
    quantize_by_mlx(plain.text_encoder, 64, 4)
    quantize_by_mlx(plain.unet, 32, 8)
    store_in_float16(plain.unet)
    convolutions = [each for each in sd.unet.modules() if isinstance(each, Conv3x3)]
    assert {(type(each), each.weight.dtype) for each in convolutions} == {(Conv3x3, mx.float16)}
    for ours, theirs in ((sd.unet, plain.unet), (sd.text_encoder, plain.text_encoder)):
        expected = flatten_parameters(theirs)
        found = flatten_parameters(ours)
        assert found.keys() == expected.keys()
        for path, value in found.items():
            assert value.dtype == expected[path].dtype and mx.array_equal(value, expected[path])


def test_config_of_older_folders(unet):
    """It does not mention convolutions, which stay as they are."""
    quantization = quantize_unet(UNetModel(unet.config))
    older = replace(quantization, convolution_group_size=None, unquantized=(), in_8_bits=())
    quantize_as(unet, older)
    assert unet.mid_block.attentions[0].proj_in.bits == 8
    assert type(unet.mid_block.resnets[0].conv1) is Conv3x3


@pytest.mark.parametrize("name", ["in_8_bits", "unquantized"])
def test_configs_that_name_other_layers(unet, name):
    quantization = replace(quantize_unet(UNetModel(unet.config), 4), **{name: ("conv_in", "x.y")})
    with pytest.raises(ValueError, match=rf"^{name} names .*x\.y: there are no such layers$"):
        quantize_as(unet, quantization)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unet_bits": 5}, ValueError, "unet_bits must be one of 4, 6, 8, got 5"),
        ({"text_encoder_bits": "4"}, TypeError, "text_encoder_bits must be an integer, got '4'"),
        ({"unet_bits": True}, TypeError, "unet_bits must be an integer, got True"),
    ],
)
def test_wrong_bits(checkpoint, options, error, message):
    sd = StableDiffusion(checkpoint("sd-1"))
    with pytest.raises(error, match=message):
        sd.quantize(**options)
    assert find_quantization(sd.unet) is None  # nothing is changed


def test_bits_of_a_pipeline(checkpoint):
    """They stay if a network is loaded again, to compute in float32."""
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    sd.quantize(unet_bits=6, text_encoder_bits=8)
    kept = [find_quantization(sd.unet), find_quantization(sd.text_encoder)]
    assert [each.bits for each in kept] == [6, 8]
    sd.use_float32()
    assert [find_quantization(sd.unet), find_quantization(sd.text_encoder)] == kept
