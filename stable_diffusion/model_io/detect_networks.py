"""Detect the networks in a file of the original layout: their configs and the names of tensors.

Such a file has weights only. The configs that a folder would have are made from the names and
shapes of the tensors; what these do not show is the same for all models of a family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ..config.model import TIME_IDS
from .layouts import AUTOENCODER, TEXT_ENCODER, UNET, Layout
from .original_layout import OPEN_CLIP, RESNET, UNET_PARTS, UNET_ROOT, VAE_PARTS, Family, TextTower
from .safetensors_file import Header
from .tiny_vae import detect_tiny_vae, has_tiny_vae

HEAD_WIDTH = 64  # of attention in the text encoders, and in the UNets of SD 2.x and XL
# The layers of SD 2's text encoder that are used. The published files have one more; those that
# were made from a folder of diffusers do not.
SD_2_LAYERS = 23


@dataclass
class Level:
    """A level of the UNet on the way down: the blocks of one resolution."""

    channels: int = 0
    n_layers: int = 0  # residual blocks
    depth: int = 0  # transformer blocks after each residual block; 0 without attention


def detect_text_encoder(header: Header, tower: TextTower) -> tuple[dict[str, Any], Layout]:
    """Return the config of a text encoder, and how the file names its tensors.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    layout = _detect_text_layout(header, tower)
    n_layers = header.count(layout.key("layers.{}.layer_norm1.weight"))
    if tower.skips_last_layer:
        n_layers = n_layers if n_layers == SD_2_LAYERS else n_layers - 1
        unused = (*layout.unused, f"transformer.resblocks.{n_layers}.", "text_projection")
        layout = replace(layout, unused=unused)

    def size(parameter: str, axis: int) -> int:
        return header.size(layout.key(parameter), axis)

    vocab_size = size("token_embedding.weight", 0)
    width = size("token_embedding.weight", 1)
    config = {
        "hidden_act": tower.hidden_act,
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": size("position_embedding.weight", 0),
        "intermediate_size": size("layers.0.linear1.weight", 0),
        "num_hidden_layers": n_layers,
    }
    if tower.is_open_clip and not tower.skips_last_layer:
        config["architectures"] = ["CLIPTextModelWithProjection"]
        config["projection_dim"] = size("text_projection.weight", 1 if layout.transposed else 0)
    return config, layout


def _detect_text_layout(header: Header, tower: TextTower) -> Layout:
    """Return how the file names the tensors of a text encoder."""
    if not tower.is_open_clip:  # very old files lack the inner part of the name
        inner = "text_model." if header.has(f"{tower.root}text_model.") else ""
        return replace(TEXT_ENCODER, root=tower.root + inner, prefix="")
    layout = replace(OPEN_CLIP, root=tower.root)
    if header.has(f"{tower.root}text_projection.weight"):  # as the weight of a linear layer
        renames = {k: v for k, v in layout.renames.items() if k != "text_projection"}
        layout = replace(layout, renames=renames, transposed=frozenset())
    return layout


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


def detect_vae(header: Header, root: str) -> tuple[dict[str, Any], Layout]:
    """Return the config of a VAE, which may be a tiny one, and how the file names its tensors.

    Args:
        root: the start of its keys. What follows may also be the names of diffusers.

    Raises:
        ValueError: as `detect_text_encoder` does.
    """
    if has_tiny_vae(header, root):
        return detect_tiny_vae(header, root)
    if header.has(f"{root}encoder.down_blocks."):
        layout = replace(AUTOENCODER, root=root)
    else:
        n_levels = header.count(f"{root}decoder.up.{{}}.block.0.norm1.weight")
        ups = {f"up.{i}": f"up_blocks.{n_levels - 1 - i}" for i in range(n_levels)}
        layout = Layout({**VAE_PARTS, **ups}, root=root, unused=("loss.", "model_ema."))

    def count_keys(parameter: str) -> int:
        return header.count(layout.key(parameter))

    def size(parameter: str, axis: int) -> int:
        return header.size(layout.key(parameter), axis)

    n_levels = count_keys("encoder.down_blocks.{}.resnets.0.norm1.weight")
    config = {
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "latent_channels": size("decoder.conv_in.weight", 1),
        "block_out_channels": [
            size(f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0)
            for level in range(n_levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * n_levels,
        "up_block_types": ["UpDecoderBlock2D"] * n_levels,
        "layers_per_block": count_keys("encoder.down_blocks.0.resnets.{}.norm1.weight"),
        "use_quant_conv": header.has(f"{root}quant_conv."),
        "use_post_quant_conv": header.has(f"{root}post_quant_conv."),
        "mid_block_add_attention": header.has(
            layout.key("encoder.mid_block.attentions.0.group_norm.weight")
        ),
    }
    return config, layout


def _count_transformers(header: Header, place: str) -> int:
    """Return the number of transformer blocks at a place of the UNet."""
    return header.count(f"{UNET_ROOT}{place}.transformer_blocks.{{}}.norm1.weight")


def _rename_resnet(place: str, ours: str) -> dict[str, str]:
    """Return the renames of a residual block."""
    return {f"{place}.{part}": f"{ours}.{name}" for part, name in RESNET.items()}
