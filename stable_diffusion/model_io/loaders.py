"""From a model's name to its loaded components. Each loader works alone.

Every `key` is a known name of `config.MODELS`, a folder, a safetensors file in the original layout,
a Hub repository (`org/name@revision`), or a `hub.Source` that is open already. Weights stay lazy:
they are read when first used.
"""

import math
import os
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..clip import CLIPTextModel
from ..config.diffusion import DiffusionConfig
from ..config.known_models import MODELS, find_spec
from ..config.model import ModelConfig, PipelineConfig
from ..config.networks import AutoencoderConfig, CLIPTextConfig, Quantization, UNetConfig
from ..config.strict_config import Config
from ..device import memory
from ..quantize import quantize_as
from ..tokenizer.tokenizer import EOS, Tokenizer
from ..unet import UNetModel
from ..vae import Autoencoder
from . import hub
from .layouts import AUTOENCODER, TEXT_ENCODER, UNET, Layout
from .safetensors_file import not_finite
from .single_file import SUFFIXES, SingleFile, open_single_file, open_vae_file
from .sources import BareVae, Source
from .unsupported import refuse_pipeline, refuse_unet
from .weight_files import NATIVE
from .weights import load_native, load_weights

DEFAULT_MODEL = "sd"

Key = str | os.PathLike[str] | Source
_C = TypeVar("_C", bound=Config)
_M = TypeVar("_M", bound=nn.Module)


def open_model(
    key: Key = DEFAULT_MODEL,
    *,
    vae: Key | None = None,
    prediction_type: str | None = None,
) -> Source:
    """The files of a model: see `hub.open_model`. One that is open already stays as it is.

    Args:
        vae: where to take the VAE from: a model as above, a folder or repository of a VAE alone,
            or a file with one, in the original layout or that of diffusers.
        prediction_type: "epsilon", "v_prediction" or "sample", for files that do not say what the
            UNet predicts, or say it wrongly.

    Raises:
        OSError: the model, or a file of it, is not to be had.
        ValueError: it can be none of these, or is a file that is not supported.
    """
    source = key
    if not isinstance(key, Source):
        file = _as_file(key)
        source = hub.open_model(key) if file is None else open_single_file(os.fspath(key), file)
    if vae is None and prediction_type is None:
        return source
    source = copy(source)
    if prediction_type is not None:
        source.prediction_type = prediction_type
    if vae is not None:
        source.vae = _open_vae(vae)
    return source


def _open_vae(key: Key) -> Source:
    if isinstance(key, Source):
        return key
    if (file := _as_file(key)) is not None:
        return open_vae_file(os.fspath(key), file)
    source = hub.open_model(key)
    is_bare = source.find("vae/config.json") is None and source.find("config.json") is not None
    return BareVae(source) if is_bare else source


def _as_file(key: str | os.PathLike[str]) -> Path | None:
    """The single file that `key` means, there or not; None where it is no file's name."""
    file = Path(os.path.expanduser(key))
    if key in MODELS or file.is_dir():
        return None
    return file if file.is_file() or file.suffix in SUFFIXES else None


def load_unet(
    key: Key = DEFAULT_MODEL, float16: bool = False, *, widened: bool = False
) -> UNetModel:
    """The denoising network, in float32 or float16; `widened` from float16's files to float32.

    Raises:
        OSError: the model, or a file of it, is not to be had.
        ValueError: a config or weight file that is not supported or broken; the message names it.
    """
    source = open_model(key)
    config = _unet_config(source)
    model, dtype = UNetModel(config), _dtype(float16 and not widened)
    return _with_weights(model, source, "unet", UNET, float16, dtype, config.quantization)


def load_text_encoder(
    key: Key = DEFAULT_MODEL,
    float16: bool = False,
    model_key: str = "text_encoder",
    *,
    widened: bool = False,
) -> CLIPTextModel:
    """The text encoder, as `load_unet`; SDXL's other one is `text_encoder_2`.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    config = _read_config(source, f"{model_key}/config.json", CLIPTextConfig)
    model, dtype = CLIPTextModel(config), _dtype(float16 and not widened)
    return _with_weights(
        model, source, model_key, TEXT_ENCODER, float16, dtype, config.quantization
    )


def load_autoencoder(key: Key = DEFAULT_MODEL, float16: bool = False) -> Autoencoder:
    """The VAE, which computes in float32: `float16` only lets the smaller files be fetched.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    model = Autoencoder(_autoencoder_config(source))
    return _with_weights(model, source.vae or source, "vae", AUTOENCODER, float16, mx.float32)


def load_tokenizer(
    key: Key = DEFAULT_MODEL,
    vocab_key: str = "tokenizer_vocab",
    merges_key: str = "tokenizer_merges",
) -> Tokenizer:
    """The tokenizer; SDXL's other one is `tokenizer_2_vocab`, `tokenizer_2_merges`.

    Raises: as `load_unet`; and ValueError for keys that do not name one tokenizer.
    """
    folder = vocab_key.removesuffix("_vocab")
    if folder != merges_key.removesuffix("_merges"):
        raise ValueError(f"{vocab_key} and {merges_key} are not of one tokenizer")
    source = open_model(key)
    beside = {
        "config_file": source.find(f"{folder}/tokenizer_config.json"),
        "special_tokens_file": source.find(f"{folder}/special_tokens_map.json"),
        "pad_token": usual_pad_token(source, folder),
    }
    vocab_file = source.find(f"{folder}/vocab.json")
    if vocab_file is None:  # transformers 5 writes one file for all
        return Tokenizer.from_json(source.require(f"{folder}/tokenizer.json"), **beside)
    merges_file = source.require(f"{folder}/merges.txt")
    return Tokenizer.from_files(vocab_file=vocab_file, merges_file=merges_file, **beside)


def usual_pad_token(source: Source, folder: str) -> str:
    """What the tokenizer of a folder pads prompts with, where its files do not say."""
    if isinstance(source, SingleFile):
        return source.pad_token(folder)
    return EOS if (spec := find_spec(source.name)) is None else spec.pad_token


def load_diffusion_config(key: Key = DEFAULT_MODEL) -> DiffusionConfig:
    """The noise schedule that the model was trained on.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    config = _read_config(source, "scheduler/scheduler_config.json", DiffusionConfig)
    if source.prediction_type is not None:
        config = replace(config, prediction_type=source.prediction_type)
    return config


def load_model_config(key: Key = DEFAULT_MODEL) -> ModelConfig:
    """Everything that the config files say; no weights are fetched.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    pipeline = PipelineConfig()  # the defaults, where a folder or cache lacks the index
    if source.find("model_index.json") is not None:
        refuse_pipeline(*source.config("model_index.json"))
        pipeline = _read_config(source, "model_index.json", PipelineConfig)
    unet = _unet_config(source)
    is_xl = unet.addition_embed_type is not None
    text_encoders = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    return ModelConfig(
        name=source.name,
        unet=unet,
        autoencoder=_autoencoder_config(source),
        text_encoders=tuple(
            _read_config(source, f"{name}/config.json", CLIPTextConfig) for name in text_encoders
        ),
        diffusion=load_diffusion_config(source),
        pipeline=pipeline,
        spec=find_spec(pipeline._converted_from or source.name),
    )


def damaged_weights(source: Source, components: Iterable[str], float16: bool) -> list[str]:
    """Which tensors of a model's files hold what is no finite number, as "FILE: KEY".

    With `float16` also those whose numbers half precision cannot hold. All of the files are read.

    Raises: as `load_unet`.
    """
    found = []
    for component in components:
        home = source.vae or source if component == "vae" else source
        layout = home.layouts[component] if isinstance(home, SingleFile) else None
        dtype = _dtype(float16 and component != "vae")
        for file in home.weights(component, float16):
            keys = not_finite(file, dtype, layout)
            found += [f"{file}: {key}" for key in keys]
    return found


def _dtype(float16: bool) -> mx.Dtype:
    return mx.float16 if float16 else mx.float32


def _read_config(source: Source, path: str, config: type[_C]) -> _C:
    return config.from_dict(*source.config(path))


def _unet_config(source: Source) -> UNetConfig:
    config = _read_config(source, "unet/config.json", UNetConfig)
    refuse_unet(source.name, config)
    return config


def _autoencoder_config(source: Source) -> AutoencoderConfig:
    """The VAE's config; one from elsewhere has to scale the latents as the UNet knows them."""
    vae = source.vae or source
    config = _read_config(vae, "vae/config.json", AutoencoderConfig)
    if vae is source:
        return config
    if isinstance(source, SingleFile):
        scale = source.scaling_factor
    elif source.find("vae/config.json") is not None:
        scale = _read_config(source, "vae/config.json", AutoencoderConfig).scaling_factor
    else:
        return config
    if isinstance(vae, SingleFile) and vae.scaling_factor is None:
        return replace(config, scaling_factor=scale)  # a file with a VAE alone does not say
    if config.scaling_factor != scale:
        raise ValueError(
            f"{vae.name} scales latents by {config.scaling_factor}, {source.name} by {scale}: "
            "it is the VAE of another kind of model"
        )
    return config


def _with_weights(
    model: _M,
    source: Source,
    component: str,
    layout: Layout,
    float16: bool,
    dtype: mx.Dtype,
    quantization: Quantization | None = None,
) -> _M:
    """The model, given its weights; `layout` is that of a folder that is not converted."""
    n_weights = sum(math.prod(value.shape) for _, value in tree_flatten(model.parameters()))
    memory.require_room(n_weights, f"{source.name}: {component}/config.json")
    files = source.weights(component, float16)
    if isinstance(source, SingleFile):
        load_weights(model, files, source.layouts[component], dtype)
    elif files[0].name == NATIVE:
        if quantization is not None:
            try:
                quantize_as(model, quantization)
            except ValueError as error:
                raise ValueError(f"{source.name}: {component}/config.json: {error}") from None
        load_native(model, files[0], dtype)
    elif quantization is not None:
        raise FileNotFoundError(
            f"{source.name} has no {component}/{NATIVE}, though its config.json says `quantization`"
        )
    else:
        load_weights(model, files, layout, dtype)
    return model
