"""The benchmark's tasks in diffusers, with the fastest settings of torch on a CPU.

These are channels-last convolutions and the default attention, in float32 or bfloat16.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from tasks import (
    LATENTS,
    PIXELS,
    PROMPT,
    TIMESTEP,
    Task,
    control_picture,
    pooled_width,
    random_normal,
    random_picture,
    token_ids,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

logging.set_verbosity_error()
logging.disable_progress_bar()


def prepare(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    """Load everything that a task needs, and return a function that runs it.

    Its results are channels-last.
    """
    match task.part:
        case "load":
            _pipeline(task, folder)
            return lambda: np.zeros(1)
        case "picture":
            pipeline = _pipeline(task, folder)
            return torch.no_grad()(lambda: _picture(pipeline, task))
        case "text":
            encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=_dtype(task))
            ids = torch.from_numpy(token_ids())
            return torch.no_grad()(lambda: encoder(ids).last_hidden_state.float().numpy())
        case "unet":
            return torch.no_grad()(_unet(task, folder))
        case "control":
            return torch.no_grad()(_control(task, folder))
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=_dtype(task))
    vae.to(memory_format=torch.channels_last)
    scale = vae.config.scaling_factor
    if task.part == "decode":
        z = (_channels_first(random_normal(1, *LATENTS)) / scale).to(vae.dtype)
        return torch.no_grad()(lambda: _channels_last(vae.decode(z).sample))
    x = _channels_first(random_picture()).to(vae.dtype)
    return torch.no_grad()(lambda: _channels_last(vae.encode(x).latent_dist.mean * scale))


def check(task: Task, folder: Path) -> dict[str, int]:
    """Return the number of operations, for a worker's report."""
    return {"operations": count_operations(task, folder)}


def count_operations(task: Task, folder: Path) -> int:
    """Return the floating-point operations of products, convolutions and attention in a task.

    They are counted on torch's meta device, which knows shapes but computes nothing.
    """
    rows = task.batch * (2 if task.guidance > 1 else 1)
    match task.part:
        case "load":
            return 0
        case "picture":
            encoders = [path for path in folder.glob("text_encoder*") if path.is_dir()]
            text = sum(_count("text", rows // task.batch, path) for path in encoders)
            steps = task.steps * _count("unet", rows, folder / "unet")
            return text + steps + _count("decode", task.batch, folder / "vae")
        case "control":
            parts = ("unet", "controlnet")
            return sum(_count(part, task.batch, folder / part) for part in parts)
    name = {"text": "text_encoder", "unet": "unet"}.get(task.part, "vae")
    return _count(task.part, task.batch, folder / name)


@torch.no_grad()
def _count(part: str, batch: int, folder: Path) -> int:
    """Return the number of operations of one network; `folder` has its config."""
    height, width, channels = LATENTS
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        match part:
            case "text":
                config = CLIPTextConfig.from_pretrained(folder)
                CLIPTextModel(config)(torch.zeros(batch, 77, dtype=torch.long))
            case "unet":
                unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
                x, text = (batch, channels, height, width), unet.config.cross_attention_dim
                added = _added(unet, batch)
                unet(torch.zeros(x), 1, torch.zeros(batch, 77, text), added_cond_kwargs=added)
            case "controlnet":
                network = ControlNetModel.from_config(ControlNetModel.load_config(folder))
                x, text = (batch, channels, height, width), network.config.cross_attention_dim
                picture = torch.zeros(batch, 3, PIXELS * height, PIXELS * width)
                network(torch.zeros(x), 1, torch.zeros(batch, 77, text), picture)
            case _:
                vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
                if part == "decode":
                    vae.decode(torch.zeros(batch, channels, height, width))
                else:
                    vae.encode(torch.zeros(batch, 3, 8 * height, 8 * width))
    return counter.get_total_flops()


def _unet(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    unet, x, text = _unet_and_inputs(task, folder)
    added = _added(unet, task.batch)
    return lambda: _channels_last(unet(x, TIMESTEP, text, added_cond_kwargs=added).sample)


def _control(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    """Return the UNet with a ControlNet, as diffusers' pipeline calls them."""
    unet, x, text = _unet_and_inputs(task, folder)
    network = ControlNetModel.from_pretrained(folder / "controlnet", torch_dtype=_dtype(task))
    network.to(memory_format=torch.channels_last)
    picture = _channels_first(control_picture(*LATENTS[:2])).repeat(task.batch, 1, 1, 1).to(x.dtype)

    def step() -> np.ndarray:
        down, mid = network(x, TIMESTEP, text, picture, return_dict=False)
        options = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return _channels_last(unet(x, TIMESTEP, text, **options).sample)

    return step


def _unet_and_inputs(
    task: Task, folder: Path
) -> tuple[UNet2DConditionModel, torch.Tensor, torch.Tensor]:
    """Return the UNet, its latents, and the embeddings of the text."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=_dtype(task))
    unet.to(memory_format=torch.channels_last)
    x = _channels_first(random_normal(task.batch, *LATENTS))
    text = torch.from_numpy(random_normal(task.batch, 77, unet.config.cross_attention_dim, seed=1))
    return unet, x.to(unet.dtype), text.to(unet.dtype)


def _dtype(task: Task) -> torch.dtype:
    """Return the type of the numbers: a task's precision has torch's name for it."""
    return getattr(torch, task.precision)


def _added(unet: UNet2DConditionModel, batch: int) -> dict[str, torch.Tensor]:
    """Return the further inputs of SDXL's UNet, none for other models."""
    if unet.config.addition_embed_type is None:
        return {}
    pooled = random_normal(batch, pooled_width(unet.config), seed=2)
    sizes = [[512.0, 512, 0, 0, 512, 512]] * batch
    return {
        "text_embeds": torch.from_numpy(pooled).to(unet.device, unet.dtype),
        "time_ids": torch.tensor(sizes, device=unet.device),
    }


def _pipeline(task: Task, folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(
        folder, safety_checker=None, torch_dtype=_dtype(task)
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def _picture(pipeline: DiffusionPipeline, task: Task) -> np.ndarray:
    """Generate pictures with the sampler that this port uses for the model."""
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
    """Return an array [B, H, W, C] as a tensor [B, C, H, W]."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)  # channels last in memory


def _channels_last(x: torch.Tensor) -> np.ndarray:
    """Return a tensor [B, C, H, W] as an array [B, H, W, C] of float32."""
    return x.permute(0, 2, 3, 1).float().numpy()
