"""ControlNets give diffusers' residuals, and with them a UNet gives diffusers' prediction."""

from pathlib import Path

import control_networks
import mlx.core as mx
import numpy as np
import pytest
import torch
from control_networks import POOLED_WIDTH, make_base, make_controlnet, make_union
from oracle import channels_first, channels_last, relative_l2
from parity import TIME_IDS, random_normal

from stable_diffusion.config.controlnet import read_control_config
from stable_diffusion.config.networks import UNetConfig
from stable_diffusion.controlnet import ControlNet, ControlNetUnion
from stable_diffusion.device import cpu_kernels
from stable_diffusion.model_io.control_layouts import CONTROLNET, CONTROLNET_UNION
from stable_diffusion.model_io.layouts import UNET
from stable_diffusion.model_io.weights import load_weights
from stable_diffusion.quantize import quantize_unet
from stable_diffusion.unet import Residuals, UNetModel

ERROR = 6e-6
LATENTS = (5, 7)  # not even, so that halving rounds
TIMES = np.array([999, 3.5], np.float32)


def load(theirs: torch.nn.Module, folder: Path, dtype: mx.Dtype = mx.float32) -> ControlNet:
    """Return our network with diffusers' weights, by way of its files."""
    config = read_control_config(dict(theirs.config), "config.json")
    is_union = hasattr(theirs, "task_embedding")
    network = (ControlNetUnion if is_union else ControlNet)(config)
    layout = CONTROLNET_UNION if is_union else CONTROLNET
    load_weights(network, [control_networks.save(theirs, folder)], layout, dtype)
    return network


def load_base(name: str, folder: Path) -> UNetModel:
    unet = UNetModel(UNetConfig.from_dict(dict(make_base(name).config), name))
    load_weights(unet, [control_networks.save(make_base(name), folder)], UNET, mx.float32)
    return unet


class Inputs:
    """The same inputs for both programs: latents at two times, text, and pictures.

    Args:
        theirs: the control network of diffusers.
        n_pictures: how many, all different for each row of the batch.
    """

    def __init__(self, theirs: torch.nn.Module, n_pictures: int = 1, rows: int = 2):
        self.theirs = theirs
        self.x = random_normal(rows, *LATENTS, theirs.config.in_channels)
        self.text = random_normal(rows, 7, theirs.config.cross_attention_dim)
        self.times = TIMES[:rows]
        size = (8 * LATENTS[0], 8 * LATENTS[1], 3)
        rng = np.random.default_rng(2)
        self.pictures = [
            rng.random((rows, *size), np.float32) * (0.3 + 0.7 * i) for i in range(n_pictures)
        ]
        self.text_time, self.added = None, None
        if theirs.config.addition_embed_type == "text_time":
            pooled, time_ids = random_normal(rows, POOLED_WIDTH), TIME_IDS[:rows]
            self.text_time = (mx.array(pooled), mx.array(time_ids))
            self.added = {
                "text_embeds": torch.from_numpy(pooled).double(),
                "time_ids": torch.from_numpy(time_ids).double(),
            }

    @torch.no_grad()
    def ask_theirs(self, scale: float | list[float], *types: int) -> list[torch.Tensor]:
        """Return diffusers' residuals, the one of the middle last."""
        pictures = [channels_first(picture) for picture in self.pictures]
        arguments = channels_first(self.x), torch.from_numpy(self.times), self.double_text
        options = {"added_cond_kwargs": self.added, "return_dict": False}
        if types:
            present = torch.zeros(len(self.x), self.theirs.config.num_control_type)
            present[:, list(types)] = 1
            down, middle = self.theirs(*arguments, pictures, present, list(types), scale, **options)
        else:
            down, middle = self.theirs(*arguments, pictures[0], scale, **options)
        return [*down, middle]

    @property
    def double_text(self) -> torch.Tensor:
        return torch.from_numpy(self.text).double()

    def ask_ours(self, ours: ControlNet, *scales: float, types=(), dtype=mx.float32) -> Residuals:
        pictures = [mx.array(picture).astype(dtype) for picture in self.pictures]
        x, text = (mx.array(each).astype(dtype) for each in (self.x, self.text))
        text_time = self.text_time
        if text_time is not None:
            text_time = text_time[0].astype(dtype), text_time[1]
        arguments = x, mx.array(self.times), ours.project_text(text), text_time
        return ours(*arguments, ours.prepare(pictures, types), scales)


def find_errors(ours: Residuals, theirs: list[torch.Tensor]) -> list[float]:
    assert ours.inner == []
    ours = [*ours.down, ours.mid]
    assert len(ours) == len(theirs)
    return [
        relative_l2(np.array(our.astype(mx.float32)), channels_last(their))
        for our, their in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize("name", control_networks.CONTROLNETS)
def test_residuals_equal_diffusers(name, tmp_path):
    theirs = make_controlnet(name)
    ours, inputs = load(theirs, tmp_path), Inputs(theirs)
    assert max(find_errors(inputs.ask_ours(ours, 0.7), inputs.ask_theirs(0.7))) <= ERROR
    assert ours.is_conditional_only == (name == "sd-1 pooled")


@pytest.mark.parametrize("n_types", [6, 8])
def test_residuals_of_a_union_equal_diffusers(n_types, tmp_path):
    """One type, whose scale acts on the results, and three, whose scales act inside.

    Each row of the batch has other pictures; diffusers mixes them.
    """
    theirs = make_union(n_types)
    ours = load(theirs, tmp_path)
    for types, scales in (((3,), [0.7]), ((1, n_types - 1, 0), [0.5, 1.5, 0.8])):
        inputs = Inputs(theirs, len(types))
        wanted = inputs.ask_theirs(scales, *types)
        assert max(find_errors(inputs.ask_ours(ours, *scales, types=types), wanted)) <= ERROR


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd-1", "sd-1 pooled", "sdxl"])
def test_a_unet_with_residuals_equals_diffusers(name, tmp_path):
    theirs, base = make_controlnet(name), control_networks.CONTROLNETS[name][0]
    ours, inputs, unet = load(theirs, tmp_path), Inputs(theirs), load_base(base, tmp_path / "unet")
    *down, middle = inputs.ask_theirs(0.7)
    wanted = make_base(base)(
        channels_first(inputs.x),
        torch.from_numpy(inputs.times),
        inputs.double_text,
        added_cond_kwargs=inputs.added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    arguments = mx.array(inputs.x), mx.array(inputs.times), mx.array(inputs.text), inputs.text_time
    found = unet(*arguments, residuals=inputs.ask_ours(ours, 0.7))
    assert relative_l2(found, channels_last(wanted)) <= ERROR
    assert relative_l2(unet(*arguments), channels_last(wanted)) > 0.1
