"""Files of control networks under the names of their authors, and the bases that they are for.

The inverse of what `control_single_file.py` tells, and written by itself.
"""

import json
import re
from pathlib import Path

import original_layout
from control_networks import make_base
from original_layout import Tensors

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 2,
}


def write_base(name: str, folder: Path, **options) -> Path:
    """Write the configs that opening a control model for a base reads, and no weights.

    Args:
        options: of the UNet, in place of the base's.
    """
    unet = {key: value for key, value in make_base(name).config.items() if not key.startswith("_")}
    write_config(folder / "unet", {**unet, **options})
    write_config(folder / "vae", VAE)
    return folder


def write_config(folder: Path, content: object) -> Path:
    """Write a config.json into a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def original_controlnet(tensors: Tensors) -> Tensors:
    """Return a ControlNet's tensors under their authors' names, without a prefix."""
    copied = {key: value for key, value in tensors.items() if not key.startswith("controlnet_")}
    renamed = original_layout.original_unet(copied)
    n_blocks = sum("cond_embedding.blocks." in key for key in tensors) // 2
    for key, value in tensors.items():
        if key.startswith("controlnet_"):
            key = key.replace("controlnet_mid_block", "middle_block_out.0")
            key = re.sub(r"controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0", key)
            key = key.replace("controlnet_cond_embedding", "input_hint_block")
            key = re.sub(r"blocks\.(\d+)", lambda m: str(2 * int(m[1]) + 2), key)
            key = key.replace("conv_in", "0").replace("conv_out", str(2 * n_blocks + 2))
            renamed[key] = value
    return renamed


def original_adapter(tensors: Tensors) -> Tensors:
    """Return a T2I-Adapter's tensors under their authors' names."""
    is_light = any(".out_conv." in key for key in tensors)
    n = 1 + max(int(found[1]) for key in tensors if (found := re.search(r"resnets\.(\d+)", key)))

    def number(match: re.Match) -> str:
        return f"body.{int(match[1]) * n + int(match[2])}"

    renamed = {}
    for key, value in tensors.items():
        key = key.removeprefix("adapter.")
        if is_light:
            key = key.replace("resnets", "body")
        else:
            key = re.sub(r"body\.(\d+)\.resnets\.(\d+)", number, key)
            key = re.sub(r"body\.(\d+)\.in_conv", lambda m: f"body.{int(m[1]) * n}.in_conv", key)
        renamed[key] = value
    return renamed
