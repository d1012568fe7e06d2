"""Detect the UNet in a file of the original layout: its config and the names of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from ..config.model import TIME_IDS
from .layouts import UNET, Layout
from .original_layout import RESNET, UNET_PARTS, UNET_ROOT, Family
from .safetensors_file import Header

HEAD_WIDTH = 64  # of attention in the UNets of SD 2.x and XL


@dataclass
class Level:
    """A level of the UNet on the way down: the blocks of one resolution."""

    channels: int = 0
    n_layers: int = 0  # residual blocks
    depth: int = 0  # transformer blocks after each residual block; 0 without attention


def detect_unet(
    header: Header, family: Family, text_configs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], Layout]:
    """Return the config of the UNet, and how the file names its tensors.

    Args:
        text_configs: the configs of the text encoders, by component.

    Raises:
        ValueError: as `detect_text_encoder` does, and if the sizes of SDXL's added embedding do
            not fit the text encoders.
    """
    renames = {**UNET.renames, **UNET_PARTS}
    for i, place in enumerate(("middle_block.0", "middle_block.2")):
        renames |= _rename_resnet(place, f"mid_block.resnets.{i}")
    levels, down_renames = _detect_down_blocks(header)
    renames |= down_renames | _rename_up_blocks(levels)

    attends = [level.depth > 0 for level in levels]
    depths = [level.depth for level in levels]
    if not attends[-1]:  # the middle block, which diffusers gives the last depth, still attends
        depths[-1] = _count_transformers(header, "middle_block.1")
    to_k = f"{UNET_ROOT}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    context_width = header.size(to_k, axis=1)
    channels = [level.channels for level in levels]
    config = {
        "in_channels": header.size(f"{UNET_ROOT}input_blocks.0.0.weight", 1),
        "out_channels": header.size(f"{UNET_ROOT}out.2.weight", 0),
        "sample_size": family.sample_size,
        "block_out_channels": channels,
        "layers_per_block": [level.n_layers for level in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "transformer_layers_per_block": depths,
        "num_attention_heads": family.heads or [width // HEAD_WIDTH for width in channels],
        "cross_attention_dim": context_width,
    }
    if "text_encoder_2" in text_configs:
        config |= _detect_added_embedding(header, text_configs["text_encoder_2"]["projection_dim"])
    return config, Layout(renames, root=UNET_ROOT)


def _detect_down_blocks(header: Header) -> tuple[list[Level], dict[str, str]]:
    """Return the levels of the UNet on the way down, and the renames of their blocks.

    The file numbers the blocks through all levels: a residual block each, with attention if the
    level has any, or a convolution that halves the size and ends the level.
    """
    levels, renames = [Level()], {}
    for n in count(1):
        place = f"input_blocks.{n}"
        if not header.has(f"{UNET_ROOT}{place}."):
            break
        level, ours = levels[-1], f"down_blocks.{len(levels) - 1}"
        if header.has(f"{UNET_ROOT}{place}.0.op."):
            renames[f"{place}.0.op"] = f"{ours}.downsample.conv"
            levels.append(Level())
        else:
            renames |= _rename_resnet(f"{place}.0", f"{ours}.resnets.{level.n_layers}")
            renames[f"{place}.1"] = f"{ours}.attentions.{level.n_layers}"
            level.channels = header.size(f"{UNET_ROOT}{place}.0.out_layers.3.weight", 0)
            level.depth = _count_transformers(header, f"{place}.1")
            level.n_layers += 1
    return levels, renames


def _rename_up_blocks(levels: Sequence[Level]) -> dict[str, str]:
    """Return the renames of the blocks on the way up, where each level has one layer more.

    The last block of a level also has a convolution after doubling the size, behind the attention.
    """
    renames: dict[str, str] = {}
    n = 0
    for i, level in enumerate(reversed(levels)):
        ours = f"up_blocks.{i}"
        for layer in range(level.n_layers + 1):
            place = f"output_blocks.{n}"
            renames |= _rename_resnet(f"{place}.0", f"{ours}.resnets.{layer}")
            renames[f"{place}.1"] = f"{ours}.attentions.{layer}"
            n += 1
        if i < len(levels) - 1:
            renames[f"{place}.{2 if level.depth else 1}.conv"] = f"{ours}.upsample.conv"
    return renames


def _detect_added_embedding(header: Header, n_text: int) -> dict[str, Any]:
    """Return the options of SDXL's embedding of the pooled text, of `n_text` numbers, and sizes.

    Raises:
        ValueError: if the layer takes a number of inputs that is not possible.
    """
    n_inputs = header.size(f"{UNET_ROOT}label_emb.0.0.weight", 1)
    if (n_inputs - n_text) % TIME_IDS:
        raise ValueError(
            f"{header.name}: label_emb takes {n_inputs} numbers, which are not the {n_text} of "
            f"the text and those of {TIME_IDS} sizes"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (n_inputs - n_text) // TIME_IDS,
        "projection_class_embeddings_input_dim": n_inputs,
    }


def _count_transformers(header: Header, place: str) -> int:
    """Return the number of transformer blocks at a place of the UNet."""
    return header.count(f"{UNET_ROOT}{place}.transformer_blocks.{{}}.norm1.weight")


def _rename_resnet(place: str, ours: str) -> dict[str, str]:
    """Return the renames of a residual block."""
    return {f"{place}.{part}": f"{ours}.{name}" for part, name in RESNET.items()}
