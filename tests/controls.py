"""Tiny control networks of diffusers for the tiny checkpoints, and their pictures."""

from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from control_networks import is_option, randomize
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter
from oracle import Oracle, _generators
from PIL import Image

EFFECT = 0.5  # how large the layers that are zero before the training are made
EMBEDDING = (4, 6, 8, 12)  # widths of the convolutions that embed the picture


def make_controlnet(oracle: Oracle, seed: int = 0, **options) -> ControlNetModel:
    """Return a ControlNet of diffusers for the UNet of a checkpoint, in float32."""
    torch.manual_seed(50 + seed)
    config = oracle.single.unet.config
    shared = {key: value for key, value in config.items() if is_option(ControlNetModel, key)}
    shared |= {"conditioning_embedding_out_channels": EMBEDDING, **options}
    return _strengthen(randomize(ControlNetModel(**shared)))


def make_union(oracle: Oracle, n_types: int = 8) -> ControlNetUnionModel:
    """Return a ControlNet for several types for the UNet of a checkpoint, in float32."""
    torch.manual_seed(60)
    config = oracle.single.unet.config
    shared = {key: value for key, value in config.items() if is_option(ControlNetUnionModel, key)}
    width = config.block_out_channels[0]
    shared |= {"conditioning_embedding_out_channels": EMBEDDING, "num_control_type": n_types}
    union = ControlNetUnionModel(**shared, num_trans_channel=width, num_proj_channel=width)
    return _strengthen(randomize(union))


def make_adapter(oracle: Oracle, **options) -> T2IAdapter:
    """Return a T2I-Adapter of diffusers for the UNet of a checkpoint, in float32."""
    torch.manual_seed(70)
    channels = list(oracle.single.unet.config.block_out_channels)
    return randomize(T2IAdapter(channels=channels, num_res_blocks=1, **options))


def _strengthen(network: torch.nn.Module) -> torch.nn.Module:
    """Make what the network adds to the UNet visible, and not everything."""
    for name, parameter in network.named_parameters():
        if "controlnet_down_blocks" in name or "controlnet_mid_block" in name:
            parameter.data *= EFFECT
        if "controlnet_cond_embedding" in name and parameter.ndim > 1:
            parameter.data *= 2  # so that the picture matters
    return network


def save(network: torch.nn.Module, folder: Path) -> Path:
    """Write a control network as diffusers does, and return the folder."""
    network.save_pretrained(folder)
    return folder


def make_picture(seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Return a picture of blocks and noise, [H, W, 3] in [0, 1], exact in 8 bits."""
    random = np.random.default_rng(seed)
    height, width = size
    blocks = random.integers(0, 2, (-(-height // 16), -(-width // 16), 3)) * 200
    picture = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    return ((picture + random.integers(0, 56, picture.shape)) / 255).astype(np.float32)


def to_pil(picture: np.ndarray) -> Image.Image:
    """Return a picture [H, W, 3] in [0, 1] for diffusers."""
    return Image.fromarray((picture * 255).round().astype(np.uint8))


@torch.no_grad()
def their_pictures(
    oracle: Oracle,
    pipeline: str,
    control: object,
    *,
    seeds: Sequence[int],
    prompt: str | list[str],
    sampler: str | None = None,
    **options: object,
) -> np.ndarray:
    """Return the pictures of one of diffusers' control pipelines, uint8 [B, H, W, 3].

    Args:
        pipeline: the end of the name of its class, such as "ControlNetPipeline".
        control: the network or networks.
    """
    is_xl = hasattr(oracle.single, "text_encoder_2")
    kind = getattr(diffusers, f"StableDiffusion{'XL' if is_xl else ''}{pipeline}")
    name = "adapter" if "Adapter" in pipeline else "controlnet"
    parts = {key: part for key, part in oracle.single.components.items() if part is not None}
    if not is_xl:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts.pop("image_encoder", None)
    if "Adapter" in pipeline:
        parts.pop("image_encoder", None)
    pipe = kind(**parts, **{name: control})
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = oracle.scheduler(sampler)
    images = pipe(
        prompt,
        num_images_per_prompt=1 if isinstance(prompt, list) else len(seeds),
        generator=_generators(list(seeds)),
        output_type="np",
        **options,
    ).images
    return (images * 255).round().astype(np.uint8)
