"""The benchmark's tasks in diffusers, on torch's CPU backend at its best settings.

Those are channels-last convolutions and the default attention; float32, as torch's half precision
is slower on most CPUs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from tasks import (
    LATENTS,
    PROMPT,
    TIMESTEP,
    Task,
    pooled_width,
    random_normal,
    random_picture,
    token_ids,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

logging.set_verbosity_error()
logging.disable_progress_bar()


def prepare(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    """Load what a task needs, whole; what runs it is returned. Results are channels last."""
    match task.part:
        case "load":
            _pipeline(folder)
            return lambda: np.zeros(1)
        case "picture":
            pipeline = _pipeline(folder)
            return torch.no_grad()(lambda: _picture(pipeline, task))
        case "text":
            encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
            ids = torch.from_numpy(token_ids())
            return torch.no_grad()(lambda: encoder(ids).last_hidden_state.numpy())
        case "unet":
            return torch.no_grad()(_unet(task, folder))
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    vae.to(memory_format=torch.channels_last)
    scale = vae.config.scaling_factor
    if task.part == "decode":
        z = _channels_first(random_normal(1, *LATENTS)) / scale
        return torch.no_grad()(lambda: _channels_last(vae.decode(z).sample))
    x = _channels_first(random_picture())
    return torch.no_grad()(lambda: _channels_last(vae.encode(x).latent_dist.mean * scale))


def operations(run: Callable[[], np.ndarray]) -> int:
    """Floating-point operations of the products, convolutions and attention of one run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _unet(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet.to(memory_format=torch.channels_last)
    x = _channels_first(random_normal(task.batch, *LATENTS))
    text = torch.from_numpy(random_normal(task.batch, 77, unet.config.cross_attention_dim, seed=1))
    added = {}
    if unet.config.addition_embed_type is not None:
        width = pooled_width(unet.config)
        added = {
            "text_embeds": torch.from_numpy(random_normal(task.batch, width, seed=2)),
            "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]] * task.batch),
        }
    return lambda: _channels_last(unet(x, TIMESTEP, text, added_cond_kwargs=added).sample)


def _pipeline(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(
        folder, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def _picture(pipeline: DiffusionPipeline, task: Task) -> np.ndarray:
    """With the sampler that this port takes for the model."""
    if not isinstance(pipeline.scheduler, EulerAncestralDiscreteScheduler):
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    return pipeline(
        PROMPT,
        num_images_per_prompt=task.batch,
        num_inference_steps=task.steps,
        guidance_scale=task.guidance,
        generator=[torch.Generator().manual_seed(1 + i) for i in range(task.batch)],
        output_type="np",
    ).images


def _channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)  # channels last in memory


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()
