"""`merged_layers.py`: convolutions with a LoRA are merged once for the steps of a batch."""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest
from gpu import as_on, without_fusing

from stable_diffusion import StableDiffusion, compiled
from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.lora_layers import AdaptedConv3x3
from stable_diffusion.denoising import Denoising
from stable_diffusion.device import backend
from stable_diffusion.device.backend import Backend
from stable_diffusion.layers import Conv3x3
from stable_diffusion.merged_layers import MergedLayers
from stable_diffusion.overflow import evaluate_steps

RANK, WIDTH = 2, 4


@pytest.fixture(params=[Backend.CPU, Backend.METAL])
def device(request) -> Iterator[None]:
    with as_on(request.param), without_fusing():
        yield


@pytest.fixture
def merges(monkeypatch) -> list[AdaptedConv3x3]:
    """Record the layers that are merged."""
    recorded: list[AdaptedConv3x3] = []
    merge = AdaptedConv3x3.merge

    def record(layer: AdaptedConv3x3) -> Conv3x3:
        recorded.append(layer)
        return merge(layer)

    monkeypatch.setattr(AdaptedConv3x3, "merge", record)
    return recorded


def add_lora(base: Conv3x3) -> AdaptedConv3x3:
    """Return a convolution with a random low-rank change."""
    n_outputs, *shape = base.weight.shape
    down, up = mx.random.normal((RANK, *shape)), mx.random.normal((n_outputs, RANK))
    return AdaptedConv3x3(base, [LowRank(down * 0.1, up)])


def make_network() -> nn.Module:
    """Return a network with a plain convolution, and one with a LoRA in a list."""
    network = nn.Module()
    network.first = Conv3x3(WIDTH, WIDTH)
    network.blocks = [add_lora(Conv3x3(WIDTH, WIDTH)), {"last": Conv3x3(WIDTH, WIDTH)}]
    return network


def change_pipeline(sd: StableDiffusion) -> list[AdaptedConv3x3]:
    """Put LoRAs beside two convolutions of the UNet, and return them."""
    unet = sd.unet
    unet.conv_in = add_lora(unet.conv_in)
    resnet = unet.mid_block.resnets[0]
    resnet.conv1 = add_lora(resnet.conv1)
    return [unet.conv_in, resnet.conv1]


def begin(sd: StableDiffusion, n_steps: int = 3) -> Denoising:
    """Begin a small picture."""
    options = {"cfg_weight": 1.0, "latent_size": (4, 4), "seed": 1}
    return sd.generate_latents("a red ring", num_steps=n_steps, **options)


def denoise(sd: StableDiffusion, n_steps: int = 3) -> mx.array:
    return evaluate_steps(begin(sd, n_steps))


@pytest.mark.usefixtures("device")
def test_a_layer_is_merged_once_for_a_batch(merges):
    """The latents equal those of layers that are merged at each call, and of merged weights."""
    sd = StableDiffusion("tiny")
    before, layers = denoise(sd), change_pipeline(sd)
    ours = denoise(sd)
    assert merges == layers
    latents = begin(sd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MergedLayers, "put_into", lambda _, network: network)
        each_call = evaluate_steps(latents)
    assert len(merges) > len(layers)
    error = mx.abs(ours - each_call).max().item()
    assert error == 0 if backend.find_backend() is Backend.CPU else error < 1e-4
    sd.unet.conv_in, sd.unet.mid_block.resnets[0].conv1 = (layer.merge() for layer in layers)
    assert mx.allclose(ours, denoise(sd), atol=1e-4).item()
    sd.unet.conv_in, sd.unet.mid_block.resnets[0].conv1 = (layer.base for layer in layers)
    assert mx.array_equal(denoise(sd), before).item() and not mx.allclose(ours, before).item()


@pytest.mark.usefixtures("device")
def test_changes_between_steps_are_seen(merges):
    """A LoRA may be changed or removed after some steps of a batch."""
    sd = StableDiffusion("tiny")
    plain = denoise(sd)
    first, second = change_pipeline(sd)
    with_both = denoise(sd)
    merges.clear()
    latents = begin(sd)
    mx.eval(next(latents))
    (change,) = first.changes
    change.up = change.up * 2
    mx.eval(next(latents))
    assert merges == [first, second, first]
    sd.unet.conv_in, sd.unet.mid_block.resnets[0].conv1 = first.base, second.base
    last = next(latents)
    assert merges == [first, second, first]
    assert not any(mx.allclose(last, other).item() for other in (plain, with_both))


@pytest.mark.usefixtures("device")
def test_changes_in_place_between_batches_are_seen():
    sd = StableDiffusion("tiny")
    first, _ = change_pipeline(sd)
    (change,) = first.changes
    before = denoise(sd, 1)
    change.up *= 2
    after = denoise(sd, 1)
    change.up = change.up / 2
    assert mx.allclose(denoise(sd, 1), before, atol=1e-5).item()
    assert not mx.allclose(after, before, atol=1e-2).item()


def test_steps_with_merged_layers_are_traced_once():
    with as_on(Backend.METAL), without_fusing():
        sd = StableDiffusion("tiny")
        change_pipeline(sd)
        first, second = (denoise(sd, n_steps) for n_steps in (1, 2))
        (step,) = compiled._compiled[id(sd.unet)].values()
    assert len(step.traced) == 1
    assert not mx.allclose(first, second).item()


def test_only_merged_layers_are_replaced():
    network = make_network()
    layer, other = network.blocks[0], network.blocks[1]
    merged = MergedLayers().put_into(network)
    assert network.blocks[0] is layer and merged.first is network.first
    assert type(merged.blocks[0]) is Conv3x3 and merged.blocks[1] is other
    network.blocks[0] = layer.base
    assert MergedLayers().put_into(network) is network


@pytest.mark.parametrize("name", ["down", "up", "base.weight", "base.bias", "base.stride"])
def test_a_part_that_is_replaced_is_seen(name, merges):
    network, kept = make_network(), MergedLayers()
    layer = network.blocks[0]
    first = kept.put_into(network).blocks[0]
    assert kept.put_into(network).blocks[0] is first and merges == [layer]
    owner = layer.base if "." in name else layer.changes[0]
    key = name.rpartition(".")[2]
    owner[key] = (2, 2) if key == "stride" else owner[key] + 1
    second = kept.put_into(network).blocks[0]
    x = mx.random.normal((1, 4, 4, WIDTH))
    assert mx.array_equal(second(x), layer(x)).item()
    assert not mx.array_equal(second(x), first(x)).item()


def test_layers_that_are_gone_are_not_kept():
    network, kept = make_network(), MergedLayers()
    kept.put_into(network)
    assert len(kept._kept) == 1
    network.blocks[0] = network.blocks[0].base
    kept.put_into(network)
    assert not kept._kept


def test_gradients_reach_the_lora():
    """A layer that was merged while MLX traced is not kept: later results are right, too."""
    network, kept = make_network(), MergedLayers()
    layer, x = network.blocks[0], mx.random.normal((1, 4, 4, WIDTH))
    kept.put_into(network)

    def loss() -> mx.array:
        return kept.put_into(network).blocks[0](x).square().sum()

    _, ours = nn.value_and_grad(network, loss)()
    assert not kept._kept
    _, theirs = nn.value_and_grad(network, lambda: layer(x).square().sum())()
    for part in ("down", "up"):
        gradient = ours["blocks"][0]["changes"][0][part]
        assert mx.allclose(gradient, theirs["blocks"][0]["changes"][0][part], rtol=1e-4).item()
        assert gradient.any().item()
    assert mx.array_equal(kept.put_into(network).blocks[0](x), layer(x)).item()
