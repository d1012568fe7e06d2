"""Write a model as a folder that is quantized once and loads as it is: `--model FOLDER`.

    python -m stable_diffusion.convert MODEL FOLDER --text-encoder-bits 4 --unet-bits 8

The folder has the layout of diffusers, but its weights are in MLX's layout (`save_native`), and
the config.json of a quantized network says how it is quantized. The folder is written tensor by
tensor, and gets its name when it is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.model import ModelConfig
from ..config.networks import Quantization
from ..quantize import quantize_text_encoder, quantize_unet
from ..stored_weights import forget_tensor, quantize_now
from ..utils.atomic_files import create_folder_atomically, remove_abandoned
from .loaders import (
    Key,
    load_autoencoder,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    open_model,
)
from .model import Model, describe_downloads
from .safetensors_file import save_native
from .sources import INDEX, SCHEDULER_CONFIG, VAE_CONFIG
from .weight_files import NATIVE, STEMS

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (  # the others
    *("vocab.json", "merges.txt", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)

OnMessage = Callable[[str], object]  # a line of text
OnProgress = Callable[[str, int, int], object]  # component, bytes written, bytes in all


def convert_model(
    model: Key,
    folder: str | os.PathLike[str],
    *,
    text_encoder_bits: int | None = None,
    unet_bits: int | None = None,
    group_size: int | None = None,
    float16: bool = False,
    vae: Key | None = None,
    unet: Key | None = None,
    prediction_type: str | None = None,
    on_message: OnMessage = lambda line: None,
    on_progress: OnProgress = lambda component, written, total: None,
) -> None:
    """Write a model as a folder that loads without renaming, transposing or quantizing.

    Args:
        model, vae, unet, prediction_type: as in `open_model`.
        folder: a new folder in an existing one.
        text_encoder_bits, unet_bits: bits of a weight, one of `config.networks.BITS`, see
            `quantize_unet`; None does not quantize.
        group_size: how many weights share a scale, one of `config.networks.GROUP_SIZES`; None
            takes the defaults of `StableDiffusion.quantize`.
        float16: store the weights that are not quantized in half precision. Otherwise they are
            stored in float32, except the matrices of a quantized UNet, which are in float16.
        on_message: called with each line that a user may want to read: what is downloaded, and
            what is not quantized.
        on_progress: called with the component ("unet", "vae", "text_encoder" or
            "text_encoder_2"), how many of its bytes are written, and how many there are; first
            with 0 of them, then after each tensor.

    Raises:
        OSError: if the model or one of its files cannot be found, or if `folder` exists or cannot
            be written.
        ValueError: if the model is not supported, is damaged, or is quantized already.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already: give the name of a new folder")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name} in")
    opened = open_model(
        model, vae=vae, unet=unet, prediction_type=prediction_type, on_message=on_message
    )
    config = opened.config
    _check_not_quantized(config, text_encoder_bits, unet_bits)
    networks = _list_networks(config, text_encoder_bits, unet_bits, group_size)
    for line in describe_downloads(opened, STEMS, float16):
        on_message(line)

    remove_abandoned([folder])
    with create_folder_atomically(folder) as unfinished:
        _write_configs(opened, unfinished)
        for tokenizer in ("tokenizer", "tokenizer_2")[: len(config.text_encoders)]:
            _write_tokenizer(opened, tokenizer, unfinished)
        for network in networks:
            _write_network(opened, network, float16, unfinished, on_message, on_progress)


@dataclass(frozen=True)
class _Network:
    """A network to convert.

    Attributes:
        component: its folder.
        load: loads it from a model, in half precision or not.
        quantize: quantizes it in place; None if it stays as it is.
    """

    component: str
    load: Callable[[Model, bool], nn.Module]
    quantize: Callable[[nn.Module], Quantization] | None = None


def _check_not_quantized(
    config: ModelConfig, text_encoder_bits: int | None, unet_bits: int | None
) -> None:
    """Check that the networks to quantize are not quantized already.

    Raises:
        ValueError: if one is.
    """
    for what, quantization, bits in (
        ("the UNet", config.unet.quantization, unet_bits),
        ("the text encoder", config.text_encoders[0].quantization, text_encoder_bits),
    ):
        if bits is not None and quantization is not None:
            raise ValueError(
                f"{config.name}: {what} has {quantization.bits} bits already, and quantizing it "
                "again would make it worse: convert the model that it was made from"
            )


def _list_networks(
    config: ModelConfig,
    text_encoder_bits: int | None,
    unet_bits: int | None,
    group_size: int | None,
) -> list[_Network]:
    """Return all networks of a model, and how to convert each."""
    quantize_text = quantize_image = None
    if text_encoder_bits is not None:
        quantize_text = partial(
            quantize_text_encoder, bits=text_encoder_bits, group_size=group_size
        )
    if unet_bits is not None:
        quantize_image = partial(quantize_unet, bits=unet_bits, group_size=group_size)
    text_encoders = [
        _Network(name, partial(load_text_encoder, model_key=name), quantize_text)
        for name in config.text_encoder_names
    ]
    return [
        *text_encoders,
        _Network("unet", load_unet, quantize_image),
        _Network("vae", load_autoencoder),
    ]


def _write_network(
    model: Model,
    network: _Network,
    float16: bool,
    folder: Path,
    on_message: OnMessage,
    on_progress: OnProgress,
) -> None:
    """Write the weights of a network, whose config.json is in `folder` already."""
    component = network.component
    loaded = network.load(model, float16)
    if network.quantize is not None:
        quantization = network.quantize(loaded)
        config_file = folder / component / "config.json"
        config = json.loads(config_file.read_bytes())
        _write_json(config_file, config | {"quantization": asdict(quantization)})
        if n := len(quantization.unquantized):
            on_message(
                f"{component}: {n} layers stay as they are, because the number of their "
                "inputs is not a multiple of the group size"
            )
    tensors = dict(tree_flatten(loaded.parameters()))
    if float16:
        tensors = {key: _to_float16(value) for key, value in tensors.items()}
    total = sum(value.nbytes for value in tensors.values())
    written = 0

    def count(n_bytes: int) -> None:
        nonlocal written
        written += n_bytes
        on_progress(component, written, total)

    count(0)
    values = _take_parameters(loaded, tensors, float16)
    save_native(tensors, values, folder / component / NATIVE, count)


def _take_parameters(
    network: nn.Module, tensors: dict[str, mx.array], float16: bool
) -> Iterator[mx.array]:
    """Yield the parameters in the order of `tensors`, and remove each from there and the network.

    So each is freed when it is written. A quantized layer is computed when the first of its
    parameters is taken.
    """
    layers = dict(network.named_modules())
    for key in list(tensors):
        path, _, name = key.rpartition(".")
        quantize_now(layers[path])
        forget_tensor(layers[path])
        del tensors[key]
        value = layers[path].pop(name)
        yield _to_float16(value) if float16 else value
        del value


def _to_float16(value: mx.array) -> mx.array:
    """Return float32 in half precision, and other types as they are."""
    return value.astype(mx.float16) if value.dtype == mx.float32 else value


def _write_configs(model: Model, folder: Path) -> None:
    """Write the JSON files of the model; what the user gave replaces what they say."""
    source, config = model.source, model.config
    has_index = source.find(INDEX) is not None
    index = source.config(INDEX)[0] if has_index else _make_index(config)
    if config.spec is not None:
        index["_converted_from"] = config.pipeline._converted_from or model.name
    scheduler = source.config(SCHEDULER_CONFIG)[0]
    scheduler = scheduler | {"prediction_type": config.diffusion.prediction_type}
    vae = model.source_of("vae").config(VAE_CONFIG)[0]
    vae = vae | {"scaling_factor": config.autoencoder.scaling_factor}
    contents = {INDEX: index, SCHEDULER_CONFIG: scheduler, VAE_CONFIG: vae}
    for name in ("unet", *config.text_encoder_names):
        path = f"{name}/config.json"
        contents[path] = model.source_of(name).config(path)[0]
    for path, content in contents.items():
        (folder / path).parent.mkdir(exist_ok=True)
        _write_json(folder / path, content)


def _make_index(config: ModelConfig) -> dict[str, Any]:
    """Return a model_index.json for a model without one."""
    tasks = {"inpainting": "Inpaint", "editing": "InstructPix2Pix"}
    task = tasks.get(config.unet.task or "", "")
    return {
        "_class_name": f"StableDiffusion{'XL' if config.is_xl else ''}{task}Pipeline",
        "force_zeros_for_empty_prompt": config.pipeline.force_zeros_for_empty_prompt,
    }


def _write_tokenizer(model: Model, component: str, folder: Path) -> None:
    """Copy the files of a tokenizer, and write its config with the pad token in it."""
    load_tokenizer(model, f"{component}_vocab", f"{component}_merges")  # refuses damaged files
    source = model.source
    (folder / component).mkdir()
    for name in TOKENIZER_FILES:
        if (file := source.find(f"{component}/{name}")) is not None:
            shutil.copyfile(file, folder / component / name)
    path = f"{component}/{TOKENIZER_CONFIG}"
    config = {} if source.find(path) is None else source.config(path)[0]
    config["pad_token"] = config.get("pad_token") or source.pad_token(component)
    _write_json(folder / path, config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
