"""The names of the networks' layers in LoRA files.

Names are looked up, not parsed: each layer of a network is listed under every name that files use
for it. Parsing could not distinguish kohya's names, which have underscores in the place of dots.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import mlx.nn as nn

from ..config.networks import UNetConfig
from ..model_io.layouts import TEXT_ENCODER, UNET, Layout, rename
from ..model_io.original_layout import RESNET, UNET_PARTS


class Component(NamedTuple):
    """How files name the layers of a network; diffusers and PEFT put `COMPONENT.` before."""

    layout: Layout
    kohya: tuple[str, ...]  # prefixes of kohya's names


COMPONENTS = {
    "unet": Component(UNET, ("lora_unet_",)),
    "text_encoder": Component(TEXT_ENCODER, ("lora_te_", "lora_te1_")),
    "text_encoder_2": Component(TEXT_ENCODER, ("lora_te2_",)),
}

# Other spellings of the part of a key after the layer's name → the spelling of `DOWN` and `UP`.
_SPELLINGS = {
    "lora_down": "lora.down",  # kohya
    "lora_up": "lora.up",
    "lora_A": "lora.down",  # PEFT and newer diffusers
    "lora_B": "lora.up",
    "lora_linear_layer": "lora",  # older diffusers, text encoders
    **{f"processor.to_{name}_lora": f"to_{name}.lora" for name in "qkv"},  # the oldest, attention
    "processor.to_out_lora": "to_out.0.lora",
    **{f"self_attn.to_{name}_lora": f"self_attn.{name}_proj.lora" for name in "qkv"},
    "self_attn.to_out_lora": "self_attn.out_proj.lora",
}
DOWN, UP, ALPHA = "lora.down.weight", "lora.up.weight", "alpha"
_KEY = re.compile(rf"(.+)\.({DOWN}|{UP}|{ALPHA})")

# Parts of the UNet, and layers of its residual blocks → their names in Stability AI's code.
_ORIGINAL = {ours: theirs for theirs, ours in (UNET_PARTS | RESNET).items()} | {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}


def split_key(key: str) -> tuple[str, str] | None:
    """Return the name of the layer and the tensor, `DOWN`, `UP` or `ALPHA`; None for other keys."""
    match = _KEY.fullmatch(rename(key, _SPELLINGS))
    return None if match is None else (match[1], match[2])


def list_names(component: str, network: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Return the paths of a network's layers, by every name that files use for them."""
    layout, kohya = COMPONENTS[component]
    original = _list_original_names(network.config) if component == "unet" else {}
    names = {}
    for path in paths:
        name = layout.key(path)
        for spelling in {name, layout.prefix + name, rename(name, original)}:
            names[f"{component}.{spelling}"] = path
            names |= {prefix + spelling.replace(".", "_"): path for prefix in kohya}
    return names


def _list_original_names(config: UNetConfig) -> dict[str, str]:
    """Return the names of a UNet's blocks and layers in the original code, by diffusers' names."""
    names = dict(_ORIGINAL)
    number = 1
    for level, n_layers in enumerate(config.layers):
        for i in range(n_layers):
            names[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for block, n_layers in enumerate(reversed(config.layers)):
        for i in range(n_layers + 1):
            names[f"up_blocks.{block}.resnets.{i}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        attends = config.up_block_types[block] == "CrossAttnUpBlock2D"
        last = f"output_blocks.{number - 1}.{2 if attends else 1}"
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"{last}.conv"
    return names
