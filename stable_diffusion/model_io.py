"""From a model's name to its loaded components. Each loader works alone.

Every `key` is a known name of `config.MODELS`, a folder, a Hub repository (`org/name@revision`),
or a `hub.Source` that is open already. Weights stay lazy: they are read when first used.
"""

import json
import os
from typing import TypeVar

import mlx.core as mx

from . import hub
from .clip import CLIPTextModel
from .config import (
    AutoencoderConfig,
    CLIPTextConfig,
    Config,
    DiffusionConfig,
    ModelConfig,
    PipelineConfig,
    UNetConfig,
)
from .hub import Source
from .models import find_spec
from .tokenizer import EOS, Tokenizer
from .unet import UNetModel
from .vae import Autoencoder
from .weights import AUTOENCODER, TEXT_ENCODER, UNET, load_weights

DEFAULT_MODEL = "sd"

Key = str | os.PathLike[str] | Source
_C = TypeVar("_C", bound=Config)


def open_model(key: Key = DEFAULT_MODEL) -> Source:
    """The files of a model: see `hub.open_model`. One that is open already stays as it is."""
    return key if isinstance(key, Source) else hub.open_model(key)


def load_unet(key: Key = DEFAULT_MODEL, float16: bool = False) -> UNetModel:
    """The denoising network, in float32 or float16.

    Raises:
        OSError: the model, or a file of it, is not to be had.
        ValueError: a config or weight file that is not supported or broken; the message names it.
    """
    source = open_model(key)
    model = UNetModel(_read_config(source, "unet/config.json", UNetConfig))
    load_weights(model, source.weights("unet", float16), UNET, _dtype(float16))
    return model


def load_text_encoder(
    key: Key = DEFAULT_MODEL, float16: bool = False, model_key: str = "text_encoder"
) -> CLIPTextModel:
    """The text encoder, in float32 or float16; SDXL's other one is `text_encoder_2`.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    model = CLIPTextModel(_read_config(source, f"{model_key}/config.json", CLIPTextConfig))
    load_weights(model, source.weights(model_key, float16), TEXT_ENCODER, _dtype(float16))
    return model


def load_autoencoder(key: Key = DEFAULT_MODEL, float16: bool = False) -> Autoencoder:
    """The VAE, which computes in float32: `float16` only lets the smaller files be fetched.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    model = Autoencoder(_read_config(source, "vae/config.json", AutoencoderConfig))
    load_weights(model, source.weights("vae", float16), AUTOENCODER, mx.float32)
    return model


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
    spec = find_spec(source.name)
    beside = {
        "config_file": source.find(f"{folder}/tokenizer_config.json"),
        "special_tokens_file": source.find(f"{folder}/special_tokens_map.json"),
        "pad_token": EOS if spec is None else spec.pad_token,
    }
    vocab_file = source.find(f"{folder}/vocab.json")
    if vocab_file is None:  # transformers 5 writes one file for all
        return Tokenizer.from_json(source.require(f"{folder}/tokenizer.json"), **beside)
    merges_file = source.require(f"{folder}/merges.txt")
    return Tokenizer.from_files(vocab_file=vocab_file, merges_file=merges_file, **beside)


def load_diffusion_config(key: Key = DEFAULT_MODEL) -> DiffusionConfig:
    """The noise schedule that the model was trained on.

    Raises: as `load_unet`.
    """
    return _read_config(open_model(key), "scheduler/scheduler_config.json", DiffusionConfig)


def load_model_config(key: Key = DEFAULT_MODEL) -> ModelConfig:
    """Everything that the config files say; no weights are fetched.

    Raises: as `load_unet`.
    """
    source = open_model(key)
    pipeline = PipelineConfig()  # the defaults, where a folder or cache lacks the index
    if source.find("model_index.json") is not None:
        pipeline = _read_config(source, "model_index.json", PipelineConfig)
    unet = _read_config(source, "unet/config.json", UNetConfig)
    is_xl = unet.addition_embed_type is not None
    text_encoders = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    return ModelConfig(
        name=source.name,
        unet=unet,
        autoencoder=_read_config(source, "vae/config.json", AutoencoderConfig),
        text_encoders=tuple(
            _read_config(source, f"{name}/config.json", CLIPTextConfig) for name in text_encoders
        ),
        diffusion=load_diffusion_config(source),
        pipeline=pipeline,
        spec=find_spec(source.name),
    )


def _dtype(float16: bool) -> mx.Dtype:
    return mx.float16 if float16 else mx.float32


def _read_config(source: Source, path: str, config: type[_C]) -> _C:
    file = source.require(path)
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    return config.from_dict(data, str(file))
