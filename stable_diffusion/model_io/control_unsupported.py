"""Refuse what is given as a control model and is none that can be run: it shows what it is."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NoReturn

from ..config.known_controls import KNOWN_CONTROLS
from .detect_unet import find_unet_root
from .original_layout import UNET_ROOT, VAE_ROOT
from .other_files import CONTROL_ADVICE, FAMILIES, PARTS
from .safetensors_file import Header
from .sources import CONVERT_PICKLE, PICKLES
from .tiny_vae import has_tiny_vae

CONTROL = "control model"  # in messages
SUPPORTED = (
    "only ControlNets and T2I-Adapters of Stable Diffusion 1.x, 2.x and XL are supported as control"
)
PATCHES = (".patch",)  # of Fooocus
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")

VAE_STARTS = ("decoder.conv_in.", f"{VAE_ROOT}decoder.", "vae.decoder.")

# Other things that steer a model, by a part of a key that only they have, as in `other_files`.
OTHER_CONTROLS = {
    r"^lora_controlnet$": "a control-LoRA",
    r"(^|\.)lllite_": "a ControlNet-LLLite",
    r"to_[kv]_ip\.|^ip_adapter\.|^image_proj\.": "an IP-Adapter",
    r"^style_embedding$": "a style adapter",
    r"^(control_model\.)?.*lora_layer[._]|^control_model\..*\.lora_": "a CtrLoRA",
    r"motion_modules\.": "a SparseCtrl of AnimateDiff",
    r"(base_to_ctrl|ctrl_to_base)": "a ControlNet-XS",
    r"^brushnet_|^conv_in_condition\.": "a BrushNet",
    r"^mid_convs\.|controlnext": "a ControlNeXt",
    r"\.down_opt\.op\.|\.skep\.": "a T2I-Adapter of an early kind",
}
# ControlNets of other models.
OTHER_MODELS = {
    r"^pos_embed_input\.": "Stable Diffusion 3",
    r"^control_all_x_embedder\.|^control_layers\.\d+\.adaLN_modulation\.": "Z-Image",
    r"^control_blocks\.\d+\.after_proj\.|^transformer_blocks\.\d+\.img_mlp\.": "Qwen-Image",
    r"^after_proj_list\.|^controlnet_blocks\.\d+\..*text_embedding_padding": "Hunyuan-DiT",
    r"^backbone\.\d+\.": "Stable Cascade",
    r"^controlnet_blocks\.\d+\.linear\.|^controlnet_x_embedder\.": "FLUX",
    r"^vace_blocks\.": "Wan",
    r"^encoder_hid_proj\.": "Kolors",
    r"^controlnet\.\d+\.copied_block\.": "PixArt",
    **FAMILIES,
    r"^controlnet_blocks\.\d+\.": "a transformer, such as FLUX or Stable Diffusion 3",
}

# By a part of the class in a config.json; the first match counts.
OTHER_CLASSES = {
    "FluxControlNet": "a ControlNet of FLUX",
    "Flux2ControlNet": "a ControlNet of FLUX.2",
    "SD3ControlNet": "a ControlNet of Stable Diffusion 3",
    "HunyuanDiT2DControlNet": "a ControlNet of Hunyuan-DiT",
    "QwenImageControlNet": "a ControlNet of Qwen-Image",
    "ZImageControlNet": "a ControlNet of Z-Image",
    "SanaControlNet": "a ControlNet of Sana",
    "CosmosControlNet": "a ControlNet of Cosmos",
    "CogVideoXControlNet": "a ControlNet of CogVideoX",
    "PixArtControlNet": "a ControlNet of PixArt",
    "SparseControlNet": "a SparseCtrl of AnimateDiff",
    "ControlNetXS": "a ControlNet-XS",
    "MultiControlNet": "several ControlNets: give each by itself",
    "MultiAdapter": "several T2I-Adapters: give each by itself",
    "BrushNet": "a BrushNet",
}
OTHER_NETWORKS = {
    "UNet2DCondition": "a UNet: give it with --unet",
    "AutoencoderTiny": "a VAE: give it with --vae",
    "AutoencoderKL": "a VAE: give it with --vae",
}


def refuse_control_config(where: str, content: Any) -> None:
    """Refuse a folder that holds no control model that can be run, by its config.json.

    A class that is not known at all passes: the strict configs refuse it later.

    Args:
        where: the file's name in messages.

    Raises:
        ValueError: if it is something known; the message names it.
    """
    class_name = str(content.get("_class_name")) if isinstance(content, Mapping) else ""
    for part, what in OTHER_CLASSES.items():
        if part in class_name:
            end = "" if ":" in what else f"; {SUPPORTED}"
            raise ValueError(f"{where}: this is {what}{end}")
    for part, what in OTHER_NETWORKS.items():
        if part in class_name:
            raise ValueError(f"{where}: this is {what}")
    if isinstance(content, Mapping) and "base_model_name_or_path" in content:
        raise ValueError(f"{where}: this is a LoRA: give it with --lora")


def is_control_config(content: Any) -> bool:
    """Return whether the content of a config.json says that it is one of a control network."""
    class_name = str(content.get("_class_name")) if isinstance(content, Mapping) else ""
    return "ControlNet" in class_name or "Adapter" in class_name


def refuse_control_suffix(name: str) -> None:
    """Refuse a file whose name shows that it holds no weights that are read.

    Raises:
        ValueError: if it is a pickle, a picture, or a patch of Fooocus.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in PICKLES:
        raise ValueError(
            f"{name} is a pickle, and pickles are never loaded: {_find_safe_copy(name)}if you "
            f"trust it, {CONVERT_PICKLE}"
        )
    if suffix in PICTURES:
        raise ValueError(f"{name} is a picture, not a {CONTROL}: write --control MODEL={name}")
    if suffix in PATCHES:
        raise ValueError(
            f"{name} is an inpainting patch of Fooocus; {SUPPORTED}: give an inpainting model with "
            "--model"
        )


def _find_safe_copy(name: str) -> str:
    """Return "take … or, " with the known control model that a pickle is, or "" for others."""
    stem = PurePath(name).stem
    for controls in KNOWN_CONTROLS.values():
        for short, known in controls.items():
            if known.repo is not None and stem in (known.repo.rpartition("/")[2], PurePath(known.file).stem):
                return f"take {known.location} (its short name is {short}) or, "
    return ""


def refuse_control_keys(header: Header) -> None:
    """Refuse a file that steers a model in a way that is not supported, by its keys.

    Raises:
        ValueError: if it does; the message says what it is.
    """
    lines = "\n".join(header.shapes)
    for pattern, what in OTHER_CONTROLS.items():
        if _has(pattern, lines):
            raise ValueError(f"{header.name}: this is {what}; {SUPPORTED}")


def refuse_no_control(header: Header) -> NoReturn:
    """Refuse a file without a control network, by its keys.

    Raises:
        ValueError: always; the message says what the file is, if its keys show it.
    """
    lines = "\n".join(header.shapes)
    name = header.name
    if header.has(f"{UNET_ROOT}input_blocks."):
        raise ValueError(f"{name}: this is a whole model: give it with --model")
    if any(map(header.has, VAE_STARTS)) or has_tiny_vae(header):
        raise ValueError(f"{name}: this is a VAE: give it with --vae")
    for pattern, what in OTHER_MODELS.items():
        if _has(pattern, lines):
            raise ValueError(f"{name}: this is of {what}; {SUPPORTED}")
    if find_unet_root(header) is not None:
        raise ValueError(f"{name}: this is a UNet: give it with --unet")
    for pattern, (what, advice) in PARTS.items():
        if advice != CONTROL_ADVICE and _has(pattern, lines):
            raise ValueError(f"{name}: this is {what}: {advice}")
    raise ValueError(f"{name} holds no {CONTROL}: no key of a ControlNet or T2I-Adapter is in it")


def _has(pattern: str, lines: str) -> bool:
    return re.search(pattern, lines, re.MULTILINE) is not None
