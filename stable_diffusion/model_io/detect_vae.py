"""Detect the VAE in a file: its config, and the names of its tensors."""

from dataclasses import replace
from typing import Any

from .layouts import AUTOENCODER, Layout
from .original_layout import LEFTOVERS, VAE_OLD_PARTS, VAE_PARTS
from .safetensors_file import Header
from .tiny_vae import detect_tiny_vae, has_tiny_vae


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
        layout = replace(AUTOENCODER, root=root, leftovers=LEFTOVERS)
    else:
        n_levels = header.count(f"{root}decoder.up.{{}}.block.0.norm1.weight")
        ups = {f"up.{i}": f"up_blocks.{n_levels - 1 - i}" for i in range(n_levels)}
        layout = Layout({**VAE_PARTS, **ups}, VAE_OLD_PARTS, root=root, leftovers=LEFTOVERS)

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
        "mid_block_add_attention": any(
            header.has(f"{root}encoder.{attention}.")
            for attention in ("mid.attn_1", "mid_block.attentions.0")
        ),
    }
    return config, layout
