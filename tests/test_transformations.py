"""Networks within MLX's transformations: `mx.grad`, `mx.compile`, `mx.vmap`, on every device."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from parity import POOLED_WIDTH, TIME_IDS, random_normal

from stable_diffusion import StableDiffusion, layers
from stable_diffusion.adapters.lora_layers import LoRALinear
from stable_diffusion.model_io import loaders

STEP = 0.02  # of differences; those of smaller steps are lost in float32's rounding
Function = Callable[[mx.array], mx.array]


def encode_text(tokens: mx.array, encoder: nn.Module) -> mx.array:
    """Return the last hidden state of token ids [B, N]."""
    return encoder(tokens).last_hidden_state


def load_network(name: str, folder) -> tuple[nn.Module, Function, mx.array]:
    """Load a network; return it, the function to differentiate, and an input."""
    if name == "unet":
        unet = loaders.load_unet(folder)
        embeddings = mx.array(random_normal(2, 77, unet.config.cross_attention_dim))
        is_xl = unet.config.addition_embed_type is not None
        added = (mx.array(random_normal(2, POOLED_WIDTH)), mx.array(TIME_IDS)) if is_xl else None
        # Two pixels in the middle block: attention to a single one is constant.
        side = 2 ** len(unet.config.block_out_channels)
        x = mx.array(random_normal(2, side, side, unet.config.in_channels))
        return unet, lambda x: unet(x, mx.array([999.0, 3.5]), embeddings, added), x
    if name == "text encoder":
        encoder = loaders.load_text_encoder(folder)
        rows = mx.array(random_normal(2, 12, encoder.position_embedding.weight.shape[1]))

        def encode(x: mx.array) -> mx.array:  # of embeddings; `encoder` takes ids
            for layer in encoder.layers:
                x = layer(x)
            return encoder.final_layer_norm(x)

        return encoder, encode, rows
    autoencoder = loaders.load_autoencoder(folder)
    if name == "decode":
        channels = autoencoder.config.latent_channels
        return autoencoder, autoencoder.decode, mx.array(random_normal(1, 4, 6, channels))
    encode = lambda x: mx.concatenate(autoencoder.encode(x), axis=-1)  # noqa: E731
    return autoencoder, encode, mx.array(random_normal(1, 32, 48, 3).clip(-1, 1))


@pytest.fixture(params=["sd-2", "sdxl"])
def folder(request, checkpoint):
    return checkpoint(request.param)


# Only the UNet differs between the kinds.
NETWORKS = [
    *(("sd-2", name) for name in ("unet", "text encoder", "decode", "encode")),
    ("sdxl", "unet"),
]


@pytest.mark.parametrize(("kind", "name"), NETWORKS)
def test_gradient_against_differences(checkpoint, kind, name):
    """The gradient of a sum over the output equals differences along a direction of the input."""
    _, function, x = load_network(name, checkpoint(kind))
    shape = function(x).shape
    weights, direction = mx.array(random_normal(*shape)), mx.array(random_normal(*x.shape)) * STEP

    def loss(x: mx.array) -> mx.array:
        return (function(x) * weights).sum()

    slope = (mx.grad(loss)(x) * direction).sum().item()
    # The fourth-order difference, summed in float64.
    values = {
        i: np.sum(np.array(function(x + i * direction), np.float64) * np.array(weights))
        for i in (-2, -1, 1, 2)
    }
    difference = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / 12
    assert slope == pytest.approx(difference, rel=5e-3)


@pytest.mark.parametrize(("kind", "name"), NETWORKS)
def test_mapped_and_compiled(checkpoint, kind, name):
    """`mx.vmap` gives the same numbers, `mx.compile` the same shape.

    g++ needs a minute to evaluate what is compiled: the next test does so for single blocks.
    """
    _, function, x = load_network(name, checkpoint(kind))
    plain = np.array(function(x))
    scale = abs(plain).max()
    assert mx.compile(function)(x).shape == plain.shape
    if name == "unet":  # its batch is that of the text
        many = mx.stack([x, -x])
        mapped, each = mx.vmap(function)(many), [function(one) for one in many]
    else:
        many = mx.concatenate([x, 0.5 * x])
        mapped = mx.vmap(lambda one: function(one[None])[0])(many)
        each = list(function(many))
    assert abs(np.array(mapped) - np.stack(list(map(np.array, each)))).max() < 1e-5 * scale


def test_compiled_blocks_equal_plain_ones(checkpoint):
    unet, _, _ = load_network("unet", checkpoint("sd-2"))
    block = unet.down_blocks[0]
    temb = mx.array(random_normal(2, 4 * unet.config.block_out_channels[0]))
    x = mx.array(random_normal(2, 8, 8, unet.config.block_out_channels[0]))
    memory = mx.array(random_normal(2, 77, unet.config.cross_attention_dim))
    transformer = block.attentions[0]
    texts = [transformer.transformer_blocks[0].attn2.project_memory(memory)]
    for function in (
        lambda x: block.resnets[0](x, temb),
        lambda x: transformer(x, iter(texts)),
    ):
        plain = function(x)
        error = mx.abs(mx.compile(function)(x) - plain).max() / mx.abs(plain).max()
        assert error.item() < 1e-5


def find_parameters_without_gradient(
    network: nn.Module, loss: Callable[[nn.Module], mx.array]
) -> set[str]:
    """Return the names of parameters whose gradient is zero or not finite."""
    _, gradients = nn.value_and_grad(network, loss)(network)
    mx.eval(gradients)
    return {
        key
        for key, gradient in tree_flatten(gradients)
        if not mx.isfinite(gradient).all().item() or not mx.abs(gradient).max().item() > 0
    }


def test_every_parameter_of_the_unet_learns(folder):
    unet, function, x = load_network("unet", folder)
    assert find_parameters_without_gradient(unet, lambda _: function(x).square().sum()) == set()


def test_every_parameter_of_the_text_encoder_learns(checkpoint):
    """The embeddings of other words than the text's have no gradient, in rows of one parameter."""
    encoder = loaders.load_text_encoder(checkpoint("sd-2"))
    tokens = mx.array([[49406, 320, 49407]])
    unlearned = find_parameters_without_gradient(
        encoder, lambda _: encode_text(tokens, encoder).square().sum()
    )
    assert unlearned == set()


def test_every_parameter_of_the_autoencoder_learns(checkpoint):
    autoencoder, _, x = load_network("encode", checkpoint("sd-2"))

    def loss(_: nn.Module) -> mx.array:
        mean, logvar = autoencoder.encode(x)
        return autoencoder.decode(mean).square().sum() + logvar.square().sum()

    # A bias of the keys adds the same to all scores of a query: softmax does not change.
    assert all(
        key.endswith("key_proj.bias") for key in find_parameters_without_gradient(autoencoder, loss)
    )


def test_only_one_layer_learns(checkpoint):
    """A layer learns if its weight is a variable, and its input is not."""
    unet, function, x = load_network("unet", checkpoint("sd-2"))
    unet.freeze()
    unet.mid_block.resnets[0].conv1.unfreeze(keys="weight")
    _, gradients = nn.value_and_grad(unet, lambda _: function(x).square().sum())(unet)
    ((key, gradient),) = tree_flatten(gradients)
    assert key.endswith("conv1.weight") and mx.abs(gradient).max().item() > 0


@pytest.mark.parametrize("bits", [None, 8])
def test_a_lora_learns(checkpoint, bits, tmp_path):
    """A LoRA beside frozen weights learns, also if they are quantized."""
    unet, function, x = load_network("unet", checkpoint("sd-2"))
    if bits is not None:
        nn.quantize(unet, 32, bits, class_predicate=lambda _, layer: _fits(layer))
    unet.freeze()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    base = layer.query_proj
    dims = unet.config.block_out_channels[-1]
    down, up = (mx.array(random_normal(*shape)) for shape in ((4, dims), (dims, 4)))
    layer.query_proj = LoRALinear(base, down, up)
    base.freeze()
    unlearned = find_parameters_without_gradient(unet, lambda _: function(x).square().sum())
    assert unlearned == set()


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, layers.Linear) and layer.weight.shape[-1] % 32 == 0


def test_steps_of_training_lower_the_loss(checkpoint):
    unet, function, x = load_network("unet", checkpoint("sd-2"))
    step = nn.value_and_grad(unet, lambda _: (function(x) - x).square().mean())
    losses = []
    for _ in range(3):
        loss, gradients = step(unet)
        losses.append(loss.item())
        if len(losses) == 3:
            break
        new = tree_map(lambda p, g: p - 1e-3 * g, unet.trainable_parameters(), gradients)
        unet.update(new)
        mx.eval(unet.parameters())
    assert losses[0] > losses[1] > losses[2]


def test_decoded_pictures_are_differentiable():
    """So are those that are otherwise decoded in strips."""
    sd = StableDiffusion("tiny")
    z = mx.array(random_normal(1, 2, 2, sd.config.autoencoder.latent_channels))
    for tiled in (None, True):
        gradient = mx.grad(lambda z, tiled=tiled: sd.decode(z, tiled).sum())(z)
        assert mx.abs(gradient).max().item() > 0
        assert mx.compile(partial(sd.decode, tiled=tiled))(z).shape == (1, 16, 16, 3)


def test_second_derivatives():
    x = mx.array([0.5, -1.0])
    slope = mx.grad(lambda x: mx.grad(lambda x: layers.silu(x).sum())(x).sum())
    sigmoid = mx.sigmoid(x)
    exact = sigmoid * (1 - sigmoid) * (2 + x * (1 - 2 * sigmoid))
    assert mx.allclose(slope(x), exact, atol=1e-5).item()
    _, (along,) = mx.jvp(layers.silu, [x], [mx.ones(2)])
    assert mx.allclose(along, sigmoid * (1 + x * (1 - sigmoid)), atol=1e-5).item()
