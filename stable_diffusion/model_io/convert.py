"""Quantize once: a model as a folder that loads as it is, `--model FOLDER`.

    python -m stable_diffusion.convert MODEL FOLDER --text-encoder-bits 4 --unet-bits 8

The folder is laid out as diffusers lays them out, but its weights are in MLX's layout (see
`native`), and a config.json says how its network is quantized. It is written tensor by tensor, and
gets its name when all of it is there.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tqdm import tqdm

from ..cli.terminal.console import say
from ..config.model import ModelConfig
from ..config.networks import Quantization
from ..quantize import quantize_text_encoder, quantize_unet
from ..utils.atomic_files import remove_abandoned, unfinished_folder
from .loaders import (
    Key,
    load_autoencoder,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    open_model,
)
from .model import Model, announcements
from .safetensors_file import save_native
from .weight_files import NATIVE, STEMS

pass

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
VOCABULARY = ("vocab.json", "merges.txt", "tokenizer.json")
SPECIAL_TOKENS, TOKENIZER_CONFIG = "special_tokens_map.json", "tokenizer_config.json"

Quantize = Callable[[nn.Module], Quantization]  # in place


def convert(
    model: Key,
    folder: str | os.PathLike[str],
    *,
    text_encoder_bits: int | None = None,
    unet_bits: int | None = None,
    group_size: int | None = None,
    float16: bool = False,
    vae: Key | None = None,
    prediction_type: str | None = None,
) -> None:
    """Write a model as a folder that loads without being renamed, turned over or quantized.

    Args:
        model, vae, prediction_type: as of `open_model`.
        folder: to be made; its own folder is there.
        text_encoder_bits, unet_bits: of linear layers, one of `BITS`; None for no quantization.
        group_size: one of `GROUP_SIZES`; where None, as in `StableDiffusion.quantize`.
        float16: store in half precision what is not quantized. Without it float32 is stored, but
            for the matrices that are left of a quantized UNet.

    Raises:
        OSError: the model is not to be had, `folder` is there already or cannot be written.
        ValueError: the model is not supported or broken, or is quantized already.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} is there already: give the name of a new folder")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name} in")
    opened = open_model(model, vae=vae, prediction_type=prediction_type)
    config = opened.config
    text = text_encoder_bits and partial(
        quantize_text_encoder, bits=text_encoder_bits, group_size=group_size
    )
    unet = unet_bits and partial(quantize_unet, bits=unet_bits, group_size=group_size)
    _refuse_twice(config, text, unet)
    for line in announcements(opened, STEMS, float16):
        say(line)

    remove_abandoned([folder])
    with unfinished_folder(folder) as unfinished:
        _write_configs(opened, config, unfinished)
        for i in range(len(config.text_encoders)):
            name = "text_encoder" if i == 0 else "text_encoder_2"
            load = partial(load_text_encoder, model_key=name)
            _write_network(opened, name, load, text, float16, unfinished)
            _write_tokenizer(opened, name.replace("text_encoder", "tokenizer"), unfinished)
        _write_network(opened, "unet", load_unet, unet, float16, unfinished)
        _write_network(opened, "vae", load_autoencoder, None, float16, unfinished)


def _refuse_twice(config: ModelConfig, text: Quantize | None, unet: Quantize | None) -> None:
    asked = {"the UNet": (config.unet, unet), "the text encoder": (config.text_encoders[0], text)}
    for what, (network, quantize) in asked.items():
        if quantize is not None and network.quantization is not None:
            raise ValueError(
                f"{config.name}: {what} has {network.quantization.bits} bits already, and others "
                "would be worse: convert what it was made of"
            )


def _write_network(
    model: Model,
    component: str,
    load: Callable[[Model, bool], nn.Module],
    quantize: Quantize | None,
    float16: bool,
    folder: Path,
) -> None:
    """Convert one network; its config.json is in `folder` already."""
    network = load(model, float16)
    if quantize is not None:
        file = folder / component / "config.json"
        quantization = quantize(network)
        _write_json(file, json.loads(file.read_bytes()) | {"quantization": asdict(quantization)})
        if n := len(quantization.unquantized):
            say(f"{component}: {n} linear layers do not divide into groups, and stay whole")
    tensors = dict(tree_flatten(network.parameters()))
    del network  # so that a tensor goes once it is written
    if float16:
        tensors = {key: _half(value) for key, value in tensors.items()}
    total = sum(value.nbytes for value in tensors.values())
    with tqdm(total=total, desc=component, unit="B", unit_scale=True) as progress:
        save_native(tensors, folder / component / NATIVE, progress.update)


def _half(value: mx.array) -> mx.array:
    return value.astype(mx.float16) if value.dtype == mx.float32 else value


def _write_configs(model: Model, config: ModelConfig, folder: Path) -> None:
    """Everything that is JSON, as the model's files say it, and as the user does."""
    source = model.source
    has_index = source.find(INDEX) is not None
    index = source.config(INDEX)[0] if has_index else _index(config)
    if config.spec is not None:
        index["_converted_from"] = config.pipeline._converted_from or model.name
    scheduler = source.config(SCHEDULER)[0] | {"prediction_type": config.diffusion.prediction_type}
    vae = model.source_of("vae").config("vae/config.json")[0]
    vae = vae | {"scaling_factor": config.autoencoder.scaling_factor}
    contents = {INDEX: index, SCHEDULER: scheduler, "vae/config.json": vae}
    for name in ("unet", "text_encoder", "text_encoder_2")[: 1 + len(config.text_encoders)]:
        contents[f"{name}/config.json"] = source.config(f"{name}/config.json")[0]
    for path, content in contents.items():
        (folder / path).parent.mkdir(exist_ok=True)
        _write_json(folder / path, content)


def _index(config: ModelConfig) -> dict[str, Any]:
    """A model_index.json for a model that comes without."""
    return {
        "_class_name": f"StableDiffusion{'XL' if config.is_xl else ''}Pipeline",
        "force_zeros_for_empty_prompt": config.pipeline.force_zeros_for_empty_prompt,
    }


def _write_tokenizer(model: Model, component: str, folder: Path) -> None:
    source = model.source
    load_tokenizer(model, f"{component}_vocab", f"{component}_merges")  # refuses broken files
    (folder / component).mkdir()
    for name in (*VOCABULARY, SPECIAL_TOKENS):
        if (file := source.find(f"{component}/{name}")) is not None:
            shutil.copyfile(file, folder / component / name)
    path = f"{component}/{TOKENIZER_CONFIG}"
    config = {} if source.find(path) is None else source.config(path)[0]
    config["pad_token"] = config.get("pad_token") or source.pad_token(component)
    _write_json(folder / path, config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
