"""Detect the UNet in a file: its config and the names of its tensors.

Their names are the original ones or those of diffusers. The config is made from names and shapes.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from ..config.model import TIME_IDS
from .layouts import UNET, Layout
from .original_layout import LEFTOVERS, RESNET, UNET_PARTS, UNET_ROOT
from .safetensors_file import Header

HEAD_WIDTH = 64  # of attention in the UNets of SD 2.x and XL
# Starts of the UNet's keys: in whole models; in files of ComfyUI and of trainers; alone.
ROOTS = (UNET_ROOT, "diffusion_model.", "unet.", "model.model.", "model.", "net.", "")
# The first layer, whose input channels tell much: its original name, and diffusers'.
FIRST_LAYERS = ("input_blocks.0.0.weight", "conv_in.weight")
_PLACE = re.compile(r"(input|output)_blocks\.(\d{1,4})\.")
MID_RESNET, MID_ATTENTION = "mid_block.resnets.0.conv1", "mid_block.attentions.0"


def find_unet_root(header: Header) -> str | None:
    """Return the start of the keys of the UNet in a file, or None if it has no UNet."""
    return next((root for root in ROOTS if _has_unet(header, root)), None)


def _has_unet(header: Header, root: str) -> bool:
    """Return whether a UNet's keys begin so; VAEs and ControlNets have the first layer, too."""
    has_output = header.has(f"{root}out.2.") or header.has(f"{root}conv_norm_out.")
    return has_output and any(root + layer in header.shapes for layer in FIRST_LAYERS)


def detect_unet(header: Header, root: str) -> tuple[dict[str, Any], Layout]:
    """Return the config of the UNet, and how the file names its tensors.

    The shapes do not show the heads: here each has `HEAD_WIDTH` channels. What
    `detect_added_embedding` returns is not in it.

    Args:
        root: the start of its keys.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    layout = find_layout(header, root)
    tensors = Tensors(header, layout)
    config = detect_encoder(tensors)
    channels = config["block_out_channels"]
    up = [tensors.list_depths(f"up_blocks.{level}") for level in range(len(channels))]
    config |= {
        "out_channels": tensors.size("conv_out.weight", 0),
        "up_block_types": ["CrossAttnUpBlock2D" if depths else "UpBlock2D" for depths in up],
    }
    config |= detect_attention(tensors, channels)
    if tensors.has("time_embedding.cond_proj"):
        config["time_cond_proj_dim"] = tensors.size("time_embedding.cond_proj.weight", 1)
    return config, layout


def detect_encoder(tensors: "Tensors") -> dict[str, Any]:
    """Return the options of the ways down and up, and of the middle, except the kinds on the way up.

    A ControlNet has no way up.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    channels = _measure_levels(tensors)
    levels = range(len(channels))
    down = [tensors.list_depths(f"down_blocks.{level}") for level in levels]
    up = [tensors.list_depths(f"up_blocks.{level}") for level in levels]
    config = {
        "in_channels": tensors.size("conv_in.weight", 1),
        "block_out_channels": channels,
        "layers_per_block": [tensors.count_resnets(f"down_blocks.{level}") for level in levels],
        "down_block_types": [
            "CrossAttnDownBlock2D" if depths else "DownBlock2D" for depths in down
        ],
        "num_attention_heads": [max(1, width // HEAD_WIDTH) for width in channels],
    }
    return config | _detect_mid_block(tensors) | _describe_depths(tensors, down, up)


def detect_added_embedding(header: Header, layout: Layout, n_pooled: int) -> dict[str, Any]:
    """Return the options of SDXL's embedding of the pooled text, of `n_pooled` numbers, and sizes.

    Raises:
        ValueError: if the layer is missing, or takes a number of inputs that is not possible.
    """
    layer = layout.key("add_embedding.linear_1")
    n_inputs = header.size(f"{layer}.weight", 1)
    if (n_inputs - n_pooled) % TIME_IDS:
        raise ValueError(
            f"{header.name}: {layer} takes {n_inputs} numbers, which are not the {n_pooled} of the "
            f"text and those of {TIME_IDS} sizes"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (n_inputs - n_pooled) // TIME_IDS,
        "projection_class_embeddings_input_dim": n_inputs,
    }


class Tensors:
    """The tensors of a UNet, or of a ControlNet, in a file, by this package's names."""

    def __init__(self, header: Header, layout: Layout):
        self.header = header
        self.layout = layout

    def has(self, path: str) -> bool:
        """Return whether a layer, or any layer of a block, is in the file."""
        return self.header.has(f"{self.layout.key(path)}.")

    def size(self, parameter: str, axis: int) -> int:
        """Return the length of a parameter along an axis of PyTorch's layout.

        Raises:
            ValueError: if it is missing, or has no such axis.
        """
        return self.header.size(self.layout.key(parameter), axis)

    def count_resnets(self, block: str) -> int:
        """Return the number of residual blocks in a block."""
        return next(i for i in count() if not self.has(f"{block}.resnets.{i}.conv1"))

    def list_depths(self, block: str) -> list[int]:
        """Return the number of transformer blocks after each residual block; none of them: []."""
        return [
            self.count_transformers(f"{block}.attentions.{i}")
            for i in range(self.count_resnets(block))
            if self.has(f"{block}.attentions.{i}.norm")
        ]

    def count_transformers(self, attention: str) -> int:
        """Return the number of transformer blocks at a place of the UNet."""
        return self.header.count(
            f"{self.layout.key(attention)}.transformer_blocks.{{}}.norm1.weight"
        )


def _measure_levels(tensors: Tensors) -> list[int]:
    """Return the channels of each level of the UNet.

    Raises:
        ValueError: if the first level is missing.
    """
    n_levels = next(i for i in count() if not tensors.has(f"down_blocks.{i}.resnets.0.conv1"))
    levels = range(max(1, n_levels))
    return [tensors.size(f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in levels]


def _detect_mid_block(tensors: Tensors) -> dict[str, Any]:
    """Return the option about the block between down and up, unless it is the usual one."""
    if tensors.has(MID_ATTENTION):
        return {}
    return {"mid_block_type": "UNetMidBlock2D" if tensors.has(MID_RESNET) else None}


def _describe_depths(
    tensors: Tensors, down: Sequence[list[int]], up: Sequence[list[int]]
) -> dict[str, Any]:
    """Return the options about how many transformer blocks follow each residual block.

    They are short if all layers of a level have the same number.
    """
    short = [_shorten(depths) for depths in down]
    if not down[-1]:  # the middle block, which has the last number, still attends
        short[-1:] = [tensors.count_transformers(MID_ATTENTION)]
    options: dict[str, Any] = {"transformer_layers_per_block": short}
    up_short = [_shorten(depths) for depths in up]
    pairs = zip(reversed(short), up_short, up, strict=True)
    if any(depths and (not isinstance(d, int) or d != u) for d, u, depths in pairs):
        options["reverse_transformer_layers_per_block"] = up_short
    return options


def _shorten(depths: list[int]) -> int | list[int]:
    """Return one number in place of equal ones."""
    if len(set(depths)) > 1:
        return depths
    return depths[0] if depths else 0


def detect_attention(tensors: Tensors, channels: Sequence[int]) -> dict[str, Any]:
    """Return the options about what the pixels attend to.

    Raises:
        ValueError: if there are no transformers.
    """
    places = {
        level: _first_attention(tensors, level, len(channels)) for level in range(len(channels))
    }
    found = [
        place
        for place in (*places.values(), MID_ATTENTION)
        if tensors.has(f"{place}.transformer_blocks.0")
    ]
    first = found[0] if found else MID_ATTENTION
    context = tensors.size(f"{first}.transformer_blocks.0.attn2.key_proj.weight", 1)
    options: dict[str, Any] = {"cross_attention_dim": context}
    only_text = [
        place in found
        and tensors.size(f"{place}.transformer_blocks.0.attn1.key_proj.weight", 1) != width
        for place, width in zip(places.values(), channels, strict=True)
    ]
    return options | ({"only_cross_attention": only_text} if any(only_text) else {})


def _first_attention(tensors: Tensors, level: int, n_levels: int) -> str:
    """Return the first attention of a level with a transformer block, down or up."""
    down = f"down_blocks.{level}.attentions.0"
    return down if tensors.has(down) else f"up_blocks.{n_levels - 1 - level}.attentions.0"


def find_layout(header: Header, root: str) -> Layout:
    """Return how a file names the tensors of its UNet: originally, or as diffusers does."""
    if root + FIRST_LAYERS[0] not in header.shapes:
        return Layout(UNET.renames, root=root, leftovers=LEFTOVERS)
    renames = {**UNET.renames, **UNET_PARTS}
    for i, place in enumerate(("middle_block.0", "middle_block.2")):
        renames |= _rename_resnet(place, f"mid_block.resnets.{i}")
    if header.has(f"{root}time_embed.cond_proj."):
        renames["time_embed.cond_proj"] = "time_embedding.cond_proj"
    renames |= _rename_down_blocks(header, root, _list_places(header, root, "input"))
    renames |= _rename_up_blocks(header, root, _list_places(header, root, "output"))
    return Layout(renames, root=root, leftovers=LEFTOVERS)


def _list_places(header: Header, root: str, way: str) -> list[str]:
    """Return the numbered blocks of the way down or up, in order.

    Some numbers are missing if diffusers' script for such files has converted a UNet that has fewer
    layers than Stable Diffusion's: it numbers as if all were there.
    """
    matches = (_PLACE.match(key.removeprefix(root)) for key in header.shapes)
    numbers = {int(match[2]) for match in matches if match is not None and match[1] == way}
    return [f"{way}_blocks.{number}" for number in sorted(numbers)]


def _rename_down_blocks(header: Header, root: str, places: Iterable[str]) -> dict[str, str]:
    """Return the renames of the blocks on the way down.

    The file numbers the blocks through all levels: a residual block each, with attention if the
    level has any, or a convolution that halves the size and ends the level.
    """
    renames: dict[str, str] = {}
    level = layer = 0
    for place in places:
        ours = f"down_blocks.{level}"
        if header.has(f"{root}{place}.0.op."):
            renames[f"{place}.0.op"] = f"{ours}.downsample.conv"
            level, layer = level + 1, 0
        elif header.has(f"{root}{place}.0.in_layers."):  # not so for the first layer
            renames |= _rename_layer(header, root, place, ours, layer)
            layer += 1
    return renames


def _rename_up_blocks(header: Header, root: str, places: Iterable[str]) -> dict[str, str]:
    """Return the renames of the blocks on the way up.

    The last block of a level also has a convolution after doubling the size, behind the attention
    if it has one; that may also be a block of its own.
    """
    renames: dict[str, str] = {}
    level = layer = 0
    for place in places:
        ours = f"up_blocks.{level}"
        if header.has(f"{root}{place}.0.in_layers."):
            renames |= _rename_layer(header, root, place, ours, layer)
            layer += 1
        for i in (1, 2):
            if header.has(f"{root}{place}.{i}.conv."):
                renames[f"{place}.{i}.conv"] = f"{ours}.upsample.conv"
                level, layer = level + 1, 0
    return renames


def _rename_layer(header: Header, root: str, place: str, ours: str, layer: int) -> dict[str, str]:
    """Return the renames of a residual block and its attention.

    The attention may have diffusers' name instead, in the first level of the way up: diffusers'
    script expects none there and leaves it alone.
    """
    renames = _rename_resnet(f"{place}.0", f"{ours}.resnets.{layer}")
    if header.has(f"{root}{place}.1.norm."):
        renames[f"{place}.1"] = f"{ours}.attentions.{layer}"
    return renames


def _rename_resnet(place: str, ours: str) -> dict[str, str]:
    """Return the renames of a residual block."""
    return {f"{place}.{part}": f"{ours}.{name}" for part, name in RESNET.items()}
