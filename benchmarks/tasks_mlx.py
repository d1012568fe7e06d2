"""The benchmark's tasks in this port."""

import stable_diffusion  # noqa: F401  isort: skip  (before mlx, for its BLAS)

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from tasks import (
    LATENTS,
    PROMPT,
    TIMESTEP,
    Task,
    control_picture,
    pooled_width,
    random_normal,
    random_picture,
    token_ids,
)

from stable_diffusion.config.controlnet import read_control_config
from stable_diffusion.controlnet import ControlNet
from stable_diffusion.device import cpu_kernels
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.control_layouts import CONTROLNET
from stable_diffusion.model_io.weights import load_weights, read_weights
from stable_diffusion.pipeline import StableDiffusion, pipeline_class


def prepare(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    """Load everything that a task needs, and return a function that runs it.

    Its results are channels-last.
    """
    if task.part in ("load", "picture"):
        return _pipeline(task, folder)
    if cpu_kernels.is_used():
        cpu_kernels.keep_freed_memory()
    match task.part:
        case "text":
            run, inputs = _text(task, folder)
        case "unet":
            run, inputs = _unet(task, folder)
        case "control":
            run, inputs = _control(task, folder)
        case "decode":
            run, inputs = _vae(task, folder).decode, (mx.array(random_normal(1, *LATENTS)),)
        case "encode":
            vae = _vae(task, folder)
            run, inputs = (lambda x: vae.encode(x)[0]), (mx.array(random_picture()),)
    return lambda: np.array(run(*inputs))


def _is_half(task: Task) -> bool:
    """Return whether the task is computed as with `--float16`."""
    return task.precision == "bfloat16"


def _text(task: Task, folder: Path):
    encoder = loaders.load_text_encoder(folder, _is_half(task))
    read_weights(encoder)
    return (lambda ids: encoder(ids).last_hidden_state), (mx.array(token_ids()),)


def _unet(task: Task, folder: Path):
    unet = loaders.load_unet(folder, _is_half(task))
    read_weights(unet)
    x = mx.array(random_normal(task.batch, *LATENTS))
    text = mx.array(random_normal(task.batch, 77, unet.config.cross_attention_dim, seed=1))
    text_time = None
    if unet.config.addition_embed_type is not None:
        pooled = mx.array(random_normal(task.batch, pooled_width(unet.config), seed=2))
        text_time = pooled, mx.array([[512.0, 512, 0, 0, 512, 512]] * task.batch)
    keys_values = unet.project_text(text)  # once per picture, not once per step
    mx.eval(keys_values)
    return lambda *inputs, **options: unet(*inputs, **options), (
        x,
        mx.array(TIMESTEP),
        keys_values,
        text_time,
    )


def _control(task: Task, folder: Path):
    """Return the UNet with a ControlNet, whose picture is embedded once, not once per step."""
    run, inputs = _unet(task, folder)
    config_file = folder / "controlnet" / "config.json"
    config = read_control_config(json.loads(config_file.read_text()), str(config_file))
    network = ControlNet(config)
    weights = folder / "controlnet" / "diffusion_pytorch_model.safetensors"
    load_weights(network, [weights], CONTROLNET, mx.float32)
    read_weights(network)
    picture = mx.array(control_picture(*LATENTS[:2]))
    text = mx.array(random_normal(task.batch, 77, config.cross_attention_dim, seed=1))
    prepared, keys_values = network.prepare([picture]), network.project_text(text)
    mx.eval(prepared, keys_values)

    def step(x: mx.array, timestep: mx.array, unet_text, text_time) -> mx.array:
        residuals = network(x, timestep, keys_values, text_time, prepared, [1.0])
        return run(x, timestep, unet_text, text_time, residuals=residuals)

    return step, inputs


def _vae(task: Task, folder: Path):
    half = _is_half(task)
    vae = loaders.load_autoencoder(folder, half, vae_float16=half)
    read_weights(vae)
    return vae


def _pipeline(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    sd = pipeline_class(loaders.load_model_config(folder))(folder, _is_half(task))
    if task.precision == "quantized":
        sd.quantize()
    sd.ensure_models_are_loaded()
    return (lambda: np.zeros(1)) if task.part == "load" else lambda: _picture(sd, task)


def _picture(sd: StableDiffusion, task: Task) -> np.ndarray:
    """Generate pictures as the script does: each network is freed after its work."""
    latents = sd.generate_latents(PROMPT, task.batch, task.steps, task.guidance, seed=1)
    mx.eval(latents.inputs)
    sd.free_text_encoders()
    for x_t in latents:
        mx.eval(x_t)
    del sd.unet, latents
    return np.concatenate([np.array(sd.decode(x_t[i : i + 1])) for i in range(len(x_t))])
