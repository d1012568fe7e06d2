"""UNets of distilled models equal diffusers' in float64, from folders, files and files alone."""

import copy
from pathlib import Path

import mlx.core as mx
import numpy as np
import original_layout
import pytest
import torch
from oracle import channels_first, channels_last, relative_l2
from original_layout import original_unet
from parity import POOLED_WIDTH, TIME_IDS, random_normal
from unet_kinds import make_unet, to_numpy, write_unet

from stable_diffusion.config.networks import UNetConfig
from stable_diffusion.model_io.layouts import UNET, Layout
from stable_diffusion.model_io.unet_file import open_unet_file
from stable_diffusion.model_io.weights import flatten_parameters, load_weights
from stable_diffusion.time_embedding import embed_guidance
from stable_diffusion.unet import UNetModel

NETWORK_ERROR = 1e-5
GUIDANCE = 8.5


# Each of the others has nothing that none of these has.
@pytest.mark.parametrize("name", ["bk-sdm-tiny", "sdxs-0.9", "ssd-1b", "koala-700m", "lcm"])
def test_unet_equals_diffusers(name, tmp_path):
    theirs = make_unet(name)
    ours = UNetModel(UNetConfig.from_dict(dict(theirs.config), name))
    load_weights(ours, [write_unet(name, tmp_path / "unet.safetensors")], UNET, mx.float32)
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


@pytest.mark.parametrize("name", ["bk-sdm-tiny", "koala-700m", "lcm"])
def test_unet_is_detected_by_names_and_shapes(name, tmp_path):
    """A file without a config gives the same network, under each way to name its tensors."""
    tensors = to_numpy(name)
    wanted = UNetConfig.from_dict(dict(make_unet(name).config), name)
    expected = make_network(wanted, tensors, UNET, tmp_path)
    ways = {
        "input": ({f"diffusion_model.{k}": v for k, v in original_unet(tensors).items()}),
        "diffusers": tensors,
    }
    if not name.startswith(("ssd", "vega", "koala", "lcm-ssd")):  # the script is for SD 1 and 2
        ways["script"] = original_unet(tensors, has_gaps=True)
    for way in ways.values():
        file = original_layout.save(way, tmp_path / "x.safetensors")
        unet = open_unet_file("x.safetensors", file, "model", wanted)
        found = UNetConfig.from_dict(*unet.config("unet/config.json"))
        assert found.heads == wanted.heads
        ours = UNetModel(found)
        load_weights(ours, [file], unet.layout("unet"), mx.float32)
        ours = flatten_parameters(ours)
        assert ours.keys() == expected.keys()
        assert all(mx.array_equal(ours[key], expected[key]) for key in expected)


def make_network(config: UNetConfig, tensors: dict, layout: Layout, folder: Path) -> dict:
    """Return the parameters of a network with these tensors."""
    file = original_layout.save(tensors, folder / "expected.safetensors")
    network = UNetModel(config)
    load_weights(network, [file], layout, mx.float32)
    return flatten_parameters(network)
