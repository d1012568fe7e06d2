"""Train a small ControlNet (arXiv:2302.05543) for the tiny UNet: shapes where an outline says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel

from tools.outlines import Layout, layouts
from tools.shapes import Scene
from tools.tiny_model import build_scheduler, tokenize
from tools.tiny_training import Training, to_tensor
from tools.wording import caption

POOL = 12288  # scenes that are kept
FRESH = 3  # of them replaced every step
EMPTY = 0.15  # share of empty prompts, for guidance (arXiv:2207.12598)
SHAPE_UNSAID = 0.3  # share of shapes that the prompt leaves to the outline
RELATION_UNSAID = 0.4
SIZE_UNSAID = 0.7
PLACES_FIRST = 0.4  # share of the steps that learn places more than form
HARD = {"star", "cross", "ring", "crescent"}  # shapes with points or hollows hardly a pixel wide
EASY_KEPT = 0.4  # share of the layouts without hard shapes that are learned from


def build_control(unet: UNet2DConditionModel) -> ControlNetModel:
    """Build a ControlNet that starts from the UNet's weights, and adds nothing yet.

    Its middle block has no attention, which saves a third of its size: what the text says reaches
    the picture through the UNet and the ControlNet's second level.
    """
    config = unet.config
    control = ControlNetModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=config.down_block_types,
        mid_block_type="UNetMidBlock2D",
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=config.use_linear_projection,
        conditioning_embedding_out_channels=(8, 16, 48, 96),
    )
    weights = unet.state_dict()
    own = control.state_dict()
    own |= {name: weights[name] for name in own if name in weights}
    control.load_state_dict(own)
    return control


def label(layout: Layout, rng: np.random.Generator) -> str:
    """Return a prompt for a layout, which often leaves shapes, sizes or the relation open."""
    if rng.random() < EMPTY:
        return ""
    scene = layout.scene
    items = tuple(
        replace(
            item,
            shape=None if rng.random() < SHAPE_UNSAID else item.shape,
            size=None if rng.random() < SIZE_UNSAID else item.size,
        )
        for item in scene.items
    )
    relation = None if rng.random() < RELATION_UNSAID else scene.relation
    return caption(Scene(items, scene.background, relation), rng)


def draw_outline(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Return the outline, [64, 64], 1 or 2 pixels wide: lines of editors and of canny differ."""
    inner, outer = ((True, False), (False, True), (True, True))[int(rng.integers(3))]
    return layout.outline(inner, outer)


def encode_layouts(
    pipe: StableDiffusionPipeline, count: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scaled latents [B, 8, 8, 8], encoded prompts [B, 77, C], outlines [B, 64, 64]."""
    scenes = (
        layout
        for layout in layouts(rng, unseen=False)
        if HARD & {item.shape for item in layout.scene.items} or rng.random() < EASY_KEPT
    )
    chosen = [next(scenes) for _ in range(count)]
    pictures = to_tensor(np.stack([layout.render() for layout in chosen]))
    prompts = [label(layout, rng) for layout in chosen]
    outlines = np.stack([draw_outline(layout, rng) for layout in chosen])
    with torch.no_grad():
        latents = pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor
        ids = tokenize(pipe.tokenizer, prompts, pipe.tokenizer.model_max_length)
        context = pipe.text_encoder(ids).last_hidden_state
    return latents, context, torch.from_numpy(outlines)


@cache
def _alpha_bar() -> torch.Tensor:
    """Return the share of the picture's variance that is left at each timestep, [1000]."""
    return build_scheduler().alphas_cumprod


def control_loss(
    unet: UNet2DConditionModel,
    control: ControlNetModel,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    noisier: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the mean squared error of v at evenly spread random timesteps.

    Args:
        noisier: take timesteps more often the noisier they are: they decide the places.
    """
    latents, context, outlines = batch
    alpha_bar = _alpha_bar()
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = ((spread.sqrt() if noisier else spread) * len(alpha_bar)).long()
    alpha = alpha_bar[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alpha_bar[timesteps]).sqrt()[:, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    noisy, v = alpha * latents + sigma * noise, alpha * noise - sigma * latents
    pictures = outlines[:, None].float().expand(-1, 3, -1, -1)  # [B, 3, 64, 64]
    context = context.float()
    down, middle = control(noisy, timesteps, context, pictures, return_dict=False)
    predicted = unet(
        noisy,
        timesteps,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    return F.mse_loss(predicted, v)


def train_control(
    pipe: StableDiffusionPipeline,
    control: ControlNetModel,
    steps: int,
    work: Path,
    seed: int,
    batch: int = 32,
    pool: int = POOL,
) -> None:
    """Train beside the frozen UNet; the average of the weights stays in `control`.

    The first steps learn places. The rest see all timesteps alike, for the form of the shapes,
    which takes longer: the UNet has seen shapes only at the places that prompts name.
    """
    pipe.unet.requires_grad_(False)
    control.train()
    training = Training("control", control, steps, 1e-3, work)
    rng = np.random.default_rng([seed, 11, training.step])
    torch.manual_seed(seed + training.step)
    stored: tuple[torch.Tensor, ...] = ()
    filled = 0
    for step in training:
        # Start with some batches' worth, then add a few every step, over the oldest when full.
        count = FRESH if filled else 64 * batch
        for _ in range(0, count, batch):
            many = min(count, batch)
            latents, context, outlines = encode_layouts(pipe, many, rng)
            new = latents, context.half(), outlines
            stored = stored or tuple(t.new_empty(pool, *t.shape[1:]) for t in new)
            place = (filled + torch.arange(many)) % pool
            for store, tensor in zip(stored, new, strict=True):
                store[place] = tensor
            filled += many
        chosen = torch.randint(0, min(filled, pool), (batch,))
        latents, context, outlines = (store[chosen] for store in stored)
        data = latents, context, outlines
        loss = control_loss(pipe.unet, control, data, noisier=step < PLACES_FIRST * steps)
        training.descend(loss, batch)
    training.average.copy_to(control)
    control.eval().requires_grad_(False)
