"""A file with a UNet, alone or within a model, as the source of another UNet for a model.

A UNet alone has no config: it is made from the names and shapes of its tensors, and from the model
that it is for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.model import TIME_IDS
from ..config.networks import UNetConfig
from .detect_unet import HEAD_WIDTH, detect_added_embedding, detect_unet, find_unet_root
from .network_file import Component, NetworkFile
from .prediction_type import EPSILON, LATENT_CHANNELS, find_stated_prediction
from .single_file import open_header
from .unsupported import (
    describe_family,
    describe_unet,
    refuse_context,
    refuse_keys,
    refuse_other_family,
)

# Of SD 1: the width of its text embeddings, and its heads at each level. The others have heads of
# one width.
SD_1_CONTEXT, SD_1_HEADS = 768, 8
SD_2_CONTEXT = 1024
XL_POOLED = 1280  # numbers of pooled text that SDXL's UNet takes


def open_unet_file(name: str, file: Path, model: str, base: UNetConfig | None) -> NetworkFile:
    """Detect the UNet that a file holds, alone or within a model.

    What it predicts is known only if the metadata or a marker of the file say it.

    Args:
        name: the file's name in messages.
        model: the name of the model that it is for.
        base: the config of the UNet that it replaces, if the model has one: it says what the
            shapes do not show.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is a pickle, damaged, or holds something else; the message says what.
    """
    header = open_header(name, file)
    refuse_keys(name, header.shapes, is_for_unet=True)
    root = find_unet_root(header)
    if root is None:
        why = "it is a VAE (--vae)" if header.has("decoder.conv_in.") else "it holds no UNet"
        raise ValueError(f"{name} cannot replace a UNet: {why}")
    config, layout = detect_unet(header, root)
    channels, context = config["block_out_channels"], config["cross_attention_dim"]
    config["num_attention_heads"] = choose_heads(channels, context, base)
    is_xl = header.has(f"{layout.key('add_embedding.linear_1')}.")
    if is_xl:
        refuse_context(name, context)
    if base is not None:
        refuse_other_family(name, describe_family(is_xl, context), model, describe_unet(base))
        config["sample_size"] = base.sample_size
    if is_xl:
        config |= detect_added_embedding(header, layout, count_pooled(base))
    source = NetworkFile(header, "unet", Component(config, layout))
    source.prediction_type = find_stated_prediction(header)
    if source.prediction_type is None and context == SD_2_CONTEXT and not is_xl:
        # A model of 768 pixels, which predicts the velocity, may get a UNet for inpainting.
        is_for_text = config["in_channels"] == LATENT_CHANNELS
        source.prediction_type = None if is_for_text else EPSILON
    return source


def choose_heads(channels: Sequence[int], context: int, base: UNetConfig | None) -> Any:
    """Return the heads of each level: those of levels of the same width in the model's own UNet.

    Args:
        context: the width of the text embeddings.
    """
    if base is not None:
        if tuple(channels) == base.block_out_channels:
            return list(base.heads)
        by_width = dict(zip(base.block_out_channels, base.heads, strict=True))
        if by_width.keys() >= set(channels):
            return [by_width[width] for width in channels]
    if context == SD_1_CONTEXT:
        return SD_1_HEADS
    return [max(1, width // HEAD_WIDTH) for width in channels]


def count_pooled(base: UNetConfig | None) -> int:
    """Return how many numbers of pooled text the model gives to SDXL's UNet."""
    if base is None or base.projection_class_embeddings_input_dim is None:
        return XL_POOLED
    width = base.addition_time_embed_dim or 0
    return base.projection_class_embeddings_input_dim - TIME_IDS * width
