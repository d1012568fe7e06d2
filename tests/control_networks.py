"""Tiny UNets and control networks of diffusers, with weights that reveal errors.

The layers that are zero before the training are random here, and so are biases and norms.
"""

import copy
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
POOLED_WIDTH = 24
PICTURE_WIDTHS = (4, 6, 8, 12)  # of the convolutions that embed the picture
XL = {
    "block_out_channels": [16, 16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4, 8],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + POOLED_WIDTH,
}
BASES: Mapping[str, Mapping] = MappingProxyType(
    {
        "sd-1": {"attention_head_dim": 4, "layers_per_block": 1},
        "sd-2": {
            "attention_head_dim": [2, 4, 4, 8],
            "use_linear_projection": True,
            "layers_per_block": 1,
        },
        "sdxl": {**XL, "transformer_layers_per_block": [1, 1, 2]},
    }
)
# The sizes of SDXL's ControlNets: diffusers' names, and what is not that of the base.
SMALL = {
    "down_block_types": ["DownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, 1, 1],
}
CONTROLNETS: Mapping[str, tuple[str, Mapping]] = MappingProxyType(
    {
        "sd-1": ("sd-1", {}),
        "sd-2": ("sd-2", {"controlnet_conditioning_channel_order": "bgr"}),
        "sd-1 pooled": ("sd-1", {"global_pool_conditions": True}),
        "sdxl": ("sdxl", {}),
        "sdxl mid": ("sdxl", {"transformer_layers_per_block": [0, 0, 1]}),
        "sdxl small": ("sdxl", SMALL),
    }
)
ADAPTERS: Mapping[str, tuple[str, Mapping]] = MappingProxyType(
    {
        "full": ("sd-1", {"channels": [16, 16, 32, 32], "num_res_blocks": 2}),
        "grey": ("sd-1", {"channels": [16, 16, 32, 32], "num_res_blocks": 1, "in_channels": 1}),
        "full XL": (
            "sdxl",
            {
                "channels": [16, 16, 32, 32],
                "num_res_blocks": 1,
                "downscale_factor": 16,
                "adapter_type": "full_adapter_xl",
            },
        ),
        "light": (
            "sd-1",
            {"channels": [16, 16, 32], "num_res_blocks": 2, "adapter_type": "light_adapter"},
        ),
    }
)


@cache
def make_base(name: str) -> UNet2DConditionModel:
    """Return a UNet of diffusers in float64; not to be changed."""
    torch.manual_seed(list(BASES).index(name))
    options = {
        "block_out_channels": [16, 16, 32, 32],
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "layers_per_block": 2,
        **BASES[name],
    }
    return randomize(UNet2DConditionModel(**options)).double()


@cache
def make_controlnet(name: str) -> ControlNetModel:
    """Return a ControlNet of diffusers in float64; not to be changed."""
    base, options = CONTROLNETS[name]
    torch.manual_seed(100 + list(CONTROLNETS).index(name))
    config = make_base(base).config
    shared = {key: value for key, value in config.items() if is_option(ControlNetModel, key)}
    shared |= {"conditioning_embedding_out_channels": PICTURE_WIDTHS, **options}
    return randomize(ControlNetModel(**shared)).double()


@cache
def make_union(n_types: int) -> ControlNetUnionModel:
    """Return a ControlNet for several types, for SDXL, in float64; not to be changed."""
    torch.manual_seed(200 + n_types)
    config = make_base("sdxl").config
    shared = {key: value for key, value in config.items() if is_option(ControlNetUnionModel, key)}
    width = config.block_out_channels[0]
    return randomize(
        ControlNetUnionModel(
            **shared,
            conditioning_embedding_out_channels=PICTURE_WIDTHS,
            num_control_type=n_types,
            num_trans_channel=width,
            num_proj_channel=width,
            num_trans_head=4,
            num_trans_layer=2,
        )
    ).double()


@cache
def make_adapter(name: str) -> T2IAdapter:
    """Return a T2I-Adapter of diffusers in float64; not to be changed."""
    torch.manual_seed(300 + list(ADAPTERS).index(name))
    return randomize(T2IAdapter(**ADAPTERS[name][1])).double()


def is_option(kind: type, key: str) -> bool:
    """Return whether an option of a UNet is also one of a class of diffusers."""
    return not key.startswith("_") and key in inspect.signature(kind).parameters


def randomize(network: torch.nn.Module) -> torch.nn.Module:
    """Make biases and norms random, and weights that are zero as large as others."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif not parameter.any():
            parameter.data = torch.randn_like(parameter) * parameter[0].numel() ** -0.5
    return network.eval()


def save(network: torch.nn.Module, folder: Path) -> Path:
    """Write a control network as diffusers does, in float32, and return its weight file."""
    copy.deepcopy(network).float().save_pretrained(folder)
    return folder / WEIGHTS
