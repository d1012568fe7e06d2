"""Detect the text encoders and the VAE in a file: their configs and the names of tensors.

Such a file has weights only. The configs that a folder would have are made from the names and
shapes of the tensors; what these do not show is the same for all models of a family.
"""

from dataclasses import replace
from typing import Any

from .layouts import AUTOENCODER, TEXT_ENCODER, Layout
from .original_layout import OPEN_CLIP, VAE_PARTS, TextTower
from .safetensors_file import Header

HEAD_WIDTH = 64  # of attention
# The layers of SD 2's text encoder that are used. The published files have one more; those that
# were made from a folder of diffusers do not.
SD_2_LAYERS = 23


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


def detect_vae(header: Header, root: str) -> tuple[dict[str, Any], Layout]:
    """Return the config of a VAE, and how the file names its tensors.

    Args:
        root: the start of its keys. What follows may also be the names of diffusers.

    Raises:
        ValueError: as `detect_text_encoder` does.
    """
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
