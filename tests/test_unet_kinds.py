"""UNets of distilled models equal diffusers' in float64, from folders, files and files alone."""

import copy

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import channels_first, channels_last, relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal
from unet_kinds import UNETS, make_unet

from stable_diffusion.config.networks import UNetConfig
from stable_diffusion.model_io.layouts import UNET
from stable_diffusion.model_io.weights import load_weights
from stable_diffusion.time_embedding import embed_guidance
from stable_diffusion.unet import UNetModel

NETWORK_ERROR = 1e-5
GUIDANCE = 8.5


@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_diffusers(name, tmp_path):
    theirs = make_unet(name)
    theirs.save_pretrained(tmp_path)
    config = UNetConfig.from_dict(dict(theirs.config), name)
    ours = UNetModel(config)
    load_weights(ours, [tmp_path / "diffusion_pytorch_model.safetensors"], UNET, mx.float32)
    assert compute_error(ours, theirs) <= NETWORK_ERROR


@torch.no_grad()
def compute_error(ours: UNetModel, theirs: torch.nn.Module) -> float:
    """Return our relative error against diffusers in float64, for two latents at two times."""
    config = theirs.config
    x = random_normal(2, 5, 8, config.in_channels)
    text = random_normal(2, 7, config.cross_attention_dim)
    times = np.array([999, 3.5], np.float32)
    text_time, added, guidance, embedded = None, None, None, None
    if config.addition_embed_type == "text_time":
        pooled = random_normal(2, POOLED_WIDTH)
        text_time = (mx.array(pooled), mx.array(TIME_IDS))
        added = {
            "text_embeds": torch.from_numpy(pooled).double(),
            "time_ids": torch.from_numpy(TIME_IDS).double(),
        }
    if config.time_cond_proj_dim:
        guidance = embed_guidance(GUIDANCE, config.time_cond_proj_dim)
        embedded = compute_sinusoids(1000 * (GUIDANCE - 1), config.time_cond_proj_dim)
    expected = (
        copy.deepcopy(theirs)
        .double()(
            channels_first(x),
            torch.from_numpy(times),
            torch.from_numpy(text).double(),
            added_cond_kwargs=added,
            timestep_cond=embedded,
        )
        .sample
    )
    ours = ours(mx.array(x), mx.array(times), mx.array(text), text_time, guidance)
    return relative_l2(ours, channels_last(expected))


def compute_sinusoids(value: float, dims: int) -> torch.Tensor:
    """Return sines and cosines of a number, in float64: diffusers computes them in float32."""
    half = dims // 2
    phases = value * 10_000.0 ** (-np.arange(half) / (half - 1))
    return torch.from_numpy(np.concatenate([np.sin(phases), np.cos(phases)]))[None]
