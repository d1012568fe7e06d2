"""Tiny UNets of the distilled and odd kinds: the configs that their publishers wrote, but small.

Widths, groups and heads are such that a single file, which has no config, is understood.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import checkpoints
import numpy as np
import original_layout
import torch
from checkpoints import PUBLISHED
from diffusers import UNet2DConditionModel

ALL_ATTEND = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [64, 64, 128],
    "layers_per_block": 1,
    "mid_block_type": None,
}
SD_2 = {"use_linear_projection": True, "attention_head_dim": [1, 1, 2]}
SSD_1B = {
    "transformer_layers_per_block": [0, [1, 2], [2, 1]],
    "reverse_transformer_layers_per_block": [[2, 1, 3], [2, 1, 1], 0],
    "mid_block_type": "UNetMidBlock2D",
}
# By model: its family, and the options of its UNet that are not the family's.
UNETS: Mapping[str, tuple[str, Mapping]] = MappingProxyType(
    {
        "bk-sdm-base": ("sd-1", {"layers_per_block": 1}),
        "bk-sdm-small": ("sd-1", {"layers_per_block": 1, "mid_block_type": None}),
        "bk-sdm-tiny": ("sd-1", ALL_ATTEND),
        "bk-sdm-v2-tiny": ("sd-2", {**ALL_ATTEND, **SD_2}),
        "sdxs-0.9": ("sd-2", {**ALL_ATTEND, **SD_2, "only_cross_attention": [True, False, False]}),
        "ssd-1b": ("sdxl", SSD_1B),
        "vega": (
            "sdxl",
            {
                "transformer_layers_per_block": [0, [1, 1], [2, 2]],
                "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0],
                "mid_block_type": "UNetMidBlock2D",
            },
        ),
        "koala-700m": (
            "sdxl",
            {
                "layers_per_block": 1,
                "transformer_layers_per_block": [1, 2, 3],
                "mid_block_type": None,
            },
        ),
        "koala-1b": ("sdxl", {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 3]}),
        "lcm": ("sd-1", {"layers_per_block": 1, "time_cond_proj_dim": 32}),
        "lcm-ssd-1b": ("sdxl", {**SSD_1B, "time_cond_proj_dim": 16}),
    }
)
FAMILIES = {
    "sd-1": {**PUBLISHED["unet"], "attention_head_dim": 8},
    "sd-2": PUBLISHED["unet"],
    "sdxl": {
        "block_out_channels": [64, 64, 128],
        "norm_num_groups": 32,
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 64 + 128,
    },
}
XL_OPTIONS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}


@cache
def make_unet(name: str) -> UNet2DConditionModel:
    """Return a UNet of diffusers in float32; not to be changed."""
    family, options = UNETS[name]
    torch.manual_seed(list(UNETS).index(name))
    xl = XL_OPTIONS if family == "sdxl" else {}
    unet = checkpoints._unet(**{**xl, **FAMILIES[family], **options})
    if unet.config.time_cond_proj_dim:
        unet.time_embedding.cond_proj.weight.data *= 4  # so that the guidance matters
    return unet


def to_numpy(name: str) -> dict[str, np.ndarray]:
    """Return the weights of a UNet by diffusers' names."""
    return {key: value.numpy() for key, value in make_unet(name).state_dict().items()}


def write_unet(name: str, file: Path) -> Path:
    """Write a UNet alone, in diffusers' names."""
    return original_layout.save(to_numpy(name), file)
