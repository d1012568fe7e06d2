"""Networks with random weights, made in memory: nothing is read or downloaded."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from real_sizes import MODELS
from tasks import TIMESTEP, pooled_width, random_normal, token_ids

from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config.networks import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder

BLOCK = 4_194_301  # numbers that are drawn; a prime, so that no two rows of a matrix are equal

PRECISIONS = {"float32": mx.float32, "float16": mx.float16}

# Narrow networks with the heads and the parts of the real ones, which take no time.
SMALL_SD = UNetConfig(
    block_out_channels=(80, 160),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,  # heads of 40 and 80 numbers
    cross_attention_dim=64,
    norm_num_groups=16,
)
SMALL_SDXL = UNetConfig(
    block_out_channels=(64, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    transformer_layers_per_block=2,
    attention_head_dim=(1, 2),  # heads of 64 numbers
    cross_attention_dim=64,
    norm_num_groups=16,
    addition_embed_type="text_time",
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=256,
)


class Model(Protocol):
    """The configs of the networks of a model."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text_encoders: tuple[CLIPTextConfig, ...]


class Case(NamedTuple):
    """A network with random weights in float32, and something that it computes.

    Attributes:
        run: from the network and the inputs to one array.
        inputs: arrays in float32, and token ids.
    """

    title: str
    network: nn.Module
    run: Callable[..., mx.array]
    inputs: tuple[mx.array, ...]


def find_model(name: str) -> Model:
    """Return the configs of `tiny`, which is part of the program, or of a model of real size."""
    return load_model_config("tiny") if name == "tiny" else MODELS[name]


def fill(network: nn.Module, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Give a network random weights, the same on every machine and in every type; return it.

    Layers about keep the variance of their input.
    """
    # Billions of numbers would take minutes to draw: weights share those of one block.
    numbers = np.random.default_rng(0).uniform(-1, 1, BLOCK).astype(np.float16)
    block = mx.array(numbers).astype(dtype)
    for i, (path, value) in enumerate(tree_flatten(network.parameters())):
        start = 7919 * i % BLOCK
        n_blocks = math.ceil((start + value.size) / BLOCK)
        weight = mx.concatenate([block] * n_blocks)[start : start + value.size]
        # Scaled by powers of two, which round nothing, on any device.
        if value.ndim > 1:
            weight = weight * 2.0 ** round(math.log2(3 / math.prod(value.shape[1:])) / 2)
        else:
            offset = 1.0 if path.endswith("weight") else 0.0  # of a norm, or a bias
            weight = (weight / 8 + offset).astype(mx.float16).astype(dtype)
        weight = weight.reshape(value.shape)
        mx.eval(weight)
        network.update(tree_unflatten([(path, weight)]))
    return network


def set_dtype(network: nn.Module, dtype: mx.Dtype) -> None:
    """Convert the weights of a network, one after another, so that few are in memory twice."""
    for path, value in tree_flatten(network.parameters()):
        value = value.astype(dtype)
        mx.eval(value)
        network.update(tree_unflatten([(path, value)]))


def cast(inputs: tuple[mx.array, ...], dtype: mx.Dtype) -> list[mx.array]:
    """Return inputs as `dtype`, except token ids."""
    return [x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x for x in inputs]


def text_case(title: str, config: CLIPTextConfig) -> Case:
    """Return a text encoder with the tokens of a prompt: its last states and the pooled one."""

    def run(encoder: CLIPTextModel, ids: mx.array) -> mx.array:
        output = encoder(ids)
        states = [x.reshape(-1) for x in (output.last_hidden_state, output.pooled_output)]
        return mx.concatenate(states)

    return Case(title, fill(CLIPTextModel(config)), run, (mx.array(token_ids()),))


def unet_case(title: str, config: UNetConfig, side: int, batch: int = 1) -> Case:
    """Return a UNet with latents of `side` × `side`, and text."""
    inputs = [random_normal(batch, side, side, config.in_channels)]
    inputs.append(random_normal(batch, 77, config.cross_attention_dim, seed=1))
    if config.addition_embed_type is not None:
        inputs.append(random_normal(batch, pooled_width(config), seed=2))
        inputs.append(np.full((batch, 6), 8.0 * side, np.float32))

    def run(unet: UNetModel, x: mx.array, text: mx.array, *added: mx.array) -> mx.array:
        return unet(x, mx.array(TIMESTEP), text, (added[0], added[1]) if added else None)

    return Case(title, fill(UNetModel(config)), run, tuple(map(mx.array, inputs)))


def decode_case(title: str, config: AutoencoderConfig, side: int) -> Case:
    """Return a VAE that decodes latents of `side` × `side`."""
    z = mx.array(random_normal(1, side, side, config.latent_channels))
    return Case(title, fill(Autoencoder(config)), lambda vae, z: vae.decode(z), (z,))


def encode_case(title: str, config: AutoencoderConfig, side: int) -> Case:
    """Return a VAE that encodes a picture to latents of `side` × `side`."""
    n = side * config.factor
    picture = mx.array(np.random.default_rng(0).uniform(-1, 1, (1, n, n, 3)).astype(np.float32))
    run = lambda vae, x: mx.concatenate(vae.encode(x), axis=-1)  # noqa: E731
    return Case(title, fill(Autoencoder(config)), run, (picture,))
