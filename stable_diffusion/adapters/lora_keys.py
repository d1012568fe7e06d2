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

# Other spellings of the part of a key after the layer's name → the one of kohya's scripts.
_SPELLINGS = {
    "lora.down": "lora_down",  # diffusers
    "lora.up": "lora_up",
    "lora_A": "lora_down",  # PEFT and newer diffusers
    "lora_B": "lora_up",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
    "lora_linear_layer.down": "lora_down",  # older diffusers, text encoders
    "lora_linear_layer.up": "lora_up",
    # The oldest, attention.
    **{
        f"{where}{old}_lora.{side}": f"{new}.lora_{side}"
        for side in ("down", "up")
        for where, names in {
            "processor.": {**{f"to_{x}": f"to_{x}" for x in "qkv"}, "to_out": "to_out.0"},
            "self_attn.": {
                **{f"to_{x}": f"self_attn.{x}_proj" for x in "qkv"},
                "to_out": "self_attn.out_proj",
            },
        }.items()
        for old, new in names.items()
    },
}
_PARTS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "scalar"),
    *("lora_down.bias", "lora_up.bias", "bias", "bias_indices", "bias_values", "bias_size"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "weight", "on_input"),
    *("diff", "diff_b", "w_norm", "b_norm"),
)
_KEY = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, _PARTS))})")

# Parts of the UNet, and layers of its residual blocks → their names in Stability AI's code.
_ORIGINAL = {ours: theirs for theirs, ours in (UNET_PARTS | RESNET).items()} | {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}


def split_key(key: str) -> tuple[str, str] | None:
    """Return the name of the layer and its part, one of `_PARTS`; None for other keys."""
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
