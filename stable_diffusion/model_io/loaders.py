"""From a model's name to its loaded components. Each loader works alone.

Every `key` is a known name of `config.MODELS`, a folder, a safetensors file in the original layout,
a Hub repository (`org/name` or `org/name@revision`), or a model that is open already. Weights stay
lazy: they are read when they are first used.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..autoencoder_tiny import AutoencoderTiny
from ..clip import CLIPTextModel
from ..config.autoencoder_tiny import TINY_VAES, AutoencoderTinyConfig
from ..config.diffusion import DiffusionConfig
from ..config.known_models import MODELS
from ..config.model import ModelConfig
from ..config.networks import Quantization
from ..device import memory
from ..quantize import quantize_as
from ..tokenizer.files import SMALL_FILES, SmallFiles, read_tokenizer, read_tokenizer_json
from ..tokenizer.tokenizer import Tokenizer
from ..unet import UNetModel
from ..vae import Autoencoder
from . import hub
from .hub_file import ResolvedFile, parse_hub_name, resolve_file
from .model import Model, read_unet_config
from .safetensors_file import find_not_finite
from .single_file import SUFFIXES, open_single_file, open_vae_file
from .sources import BareNetwork, Source
from .tiny_vae import TINY_DECODERS, TINY_ENCODERS, TinyVaeFiles
from .unet_file import open_unet_file
from .weight_files import NATIVE
from .weights import flatten_parameters, load_native, load_weights

DEFAULT_MODEL = "sd"

ModelPath = str | os.PathLike[str]
Key = ModelPath | Model
_Network = TypeVar("_Network", bound=nn.Module)


def open_model(
    key: Key = DEFAULT_MODEL,
    *,
    vae: Key | None = None,
    unet: Key | None = None,
    prediction_type: str | None = None,
    on_message: Callable[[str], object] = lambda line: None,
) -> Model:
    """Open a model, so that its config files are read once for everything that uses it.

    An open model is returned as it is, or changed in a copy if one of the options is given.

    Args:
        vae: where to take the VAE from: a model as above, a folder or repository of a VAE alone,
            or a file with one, in the original layout or that of diffusers, on the Hub
            `org/name/FILE.safetensors`; or "taesd", the tiny VAE for the model.
        unet: where to take the UNet from, named in the same ways.
        prediction_type: "epsilon", "v_prediction" or "sample", for files that do not say what the
            UNet predicts, or say it wrongly.
        on_message: called with a line before a file of a VAE or UNet is downloaded.

    Raises:
        OSError: if the model or one of its files cannot be found.
        ValueError: if the key is none of these, or means a file that is not supported.
    """
    model = key if isinstance(key, Model) else Model(_open_source(key))
    if vae is None and unet is None and prediction_type is None:
        return model
    source = model.source
    unet_source = model.unet
    if unet is not None:
        unet_source = _open_unet(unet, source, on_message)
        prediction_type = prediction_type or unet_source.prediction_type
    if prediction_type is not None:
        source = source.with_prediction_type(prediction_type)
    vae_source = model.vae if vae is None else _open_vae(vae, model, on_message)
    return Model(source, vae_source, unet_source)


def _open_source(path: ModelPath) -> Source:
    """Find the files of a model: a single file, or what `hub.open_source` finds."""
    file = _as_file(path)
    return hub.open_source(path) if file is None else open_single_file(os.fspath(path), file)


def _open_vae(key: Key, model: Model, on_message: Callable[[str], object]) -> Source:
    """Find the files of a VAE for a model, alone or within another model."""
    if isinstance(key, Model):
        return key.source_of("vae")
    if isinstance(key, str) and key in TINY_VAES:
        key = TINY_VAES[key][model.is_xl]
    decoders = TINY_DECODERS[:: -1 if model.is_xl else 1]
    found = _find_network(key, "vae", "VAE", on_message, preferred=decoders, beside=TINY_ENCODERS)
    if isinstance(found, Source):
        return found
    source = open_vae_file(name_file(found), found.path)
    source.file_commit = found.commit
    return source


def _open_unet(key: Key, model: Source, on_message: Callable[[str], object]) -> Source:
    """Find the files of a UNet, alone or within a model, for another model."""
    if isinstance(key, Model):
        return key.source_of("unet")
    found = _find_network(key, "unet", "UNet", on_message)
    if isinstance(found, Source):
        return found
    source = open_unet_file(name_file(found), found.path, model.name, read_unet_config(model))
    source.file_commit = found.commit
    return source


def _find_network(
    key: ModelPath,
    component: str,
    what: str,
    on_message: Callable[[str], object],
    **choices: Sequence[str],
) -> Source | ResolvedFile:
    """Find the files of a network, alone or within a model; or the one file with it.

    Args:
        what: the network's name in messages.
        choices: as for `resolve_file`.
    """
    name = os.fspath(key)
    is_here = os.path.exists(os.path.expanduser(name))
    hub_name = parse_hub_name(name) if isinstance(key, str) and not is_here else None
    if hub_name is None or not hub_name.path:
        if (file := _as_file(key)) is not None:
            return ResolvedFile(file, name)
        source = hub.open_source(key)
        if source.find(f"{component}/config.json") is not None:
            return source
        if source.find("config.json") is not None:
            return BareNetwork(source, component)
    return resolve_file(key, what, announce=on_message, **choices)


def name_file(found: ResolvedFile) -> str:
    """Return the name of a file for messages, also if its folder or repository was given."""
    if found.commit is not None:
        return found.commit[0]
    is_folder = os.path.isdir(os.path.expanduser(found.name))
    return os.path.join(found.name, found.path.name) if is_folder else found.name


def _as_file(path: ModelPath) -> Path | None:
    """Return the single file that a path means, which may not exist; None if it means none."""
    file = Path(os.path.expanduser(path))
    if path in MODELS or file.is_dir():
        return None
    return file if file.is_file() or file.suffix in SUFFIXES else None


def load_unet(
    key: Key = DEFAULT_MODEL, float16: bool = False, *, widened: bool = False
) -> UNetModel:
    """Load the UNet.

    Args:
        float16: half precision instead of float32.
        widened: take the files that `float16` chooses, but convert the weights to float32.

    Raises:
        OSError: if the model or one of its files cannot be found.
        ValueError: if a config or weight file is not supported or broken; the message names it.
    """
    model = open_model(key)
    config, dtype = model.unet_config, _dtype(float16 and not widened)
    return _load(UNetModel(config), model, "unet", float16, dtype, config.quantization)


def load_text_encoder(
    key: Key = DEFAULT_MODEL,
    float16: bool = False,
    model_key: str = "text_encoder",
    *,
    widened: bool = False,
) -> CLIPTextModel:
    """Load a text encoder.

    Args:
        model_key: "text_encoder", or "text_encoder_2" for SDXL's second one.
        float16, widened: as for `load_unet`.

    Raises:
        OSError, ValueError: as `load_unet` does.
    """
    model = open_model(key)
    config, dtype = model.text_encoder_config(model_key), _dtype(float16 and not widened)
    return _load(CLIPTextModel(config), model, model_key, float16, dtype, config.quantization)


def load_autoencoder(
    key: Key = DEFAULT_MODEL, float16: bool = False, *, vae_float16: bool = False
) -> Autoencoder | AutoencoderTiny:
    """Load the VAE, of either kind.

    Args:
        float16: take the fp16 variant of the files, if there is one, which is smaller.
        vae_float16: half precision instead of float32. `ModelConfig.require_vae_float16` checks
            that the VAE can compute in it.

    Raises:
        OSError, ValueError: as `load_unet` does.
    """
    model, dtype = open_model(key), _dtype(vae_float16)
    config, source = model.autoencoder_config, model.source_of("vae")
    if not isinstance(config, AutoencoderTinyConfig):
        return _load(Autoencoder(config), model, "vae", float16, dtype)
    tiny = AutoencoderTiny(config)
    if not isinstance(source, TinyVaeFiles):
        return _load(tiny, model, "vae", float16, dtype)
    source.load(tiny, dtype)
    return tiny


def load_tokenizer(
    key: Key = DEFAULT_MODEL,
    vocab_key: str = "tokenizer_vocab",
    merges_key: str = "tokenizer_merges",
) -> Tokenizer:
    """Load a tokenizer; the keys of SDXL's second one are `tokenizer_2_vocab`, `…_2_merges`.

    Raises:
        OSError, ValueError: as `load_unet` does, and if the keys do not name one tokenizer.
    """
    folder = vocab_key.removesuffix("_vocab")
    if folder != merges_key.removesuffix("_merges"):
        raise ValueError(f"{vocab_key} and {merges_key} are not of one tokenizer")
    source = open_model(key).source
    files = SmallFiles(*(source.find(f"{folder}/{name}") for name in SMALL_FILES))
    pad_token = source.pad_token(folder)
    vocab_file = source.find(f"{folder}/vocab.json")
    if vocab_file is None:  # transformers 5 writes vocabulary and merges into one file
        tokenizer_file = source.require(f"{folder}/tokenizer.json")
        return read_tokenizer_json(tokenizer_file, files, pad_token)
    merges_file = source.require(f"{folder}/merges.txt")
    return read_tokenizer(vocab_file, merges_file, files, pad_token)


def load_diffusion_config(key: Key = DEFAULT_MODEL) -> DiffusionConfig:
    """Return the noise schedule that a model was trained on.

    Raises:
        OSError, ValueError: as `load_unet` does.
    """
    return open_model(key).diffusion_config


def load_model_config(key: Key = DEFAULT_MODEL) -> ModelConfig:
    """Return everything that the config files say; no weights are downloaded.

    Raises:
        OSError, ValueError: as `load_unet` does.
    """
    return open_model(key).config


def find_damaged_weights(key: Key, components: Iterable[str], float16: bool) -> list[str]:
    """Return the tensors of a model that have a number that is not finite, as "FILE: KEY".

    All files of the components are read. With `float16` numbers that half precision cannot hold
    count too, except in the VAE, which computes in float32.

    Raises:
        OSError, ValueError: as `load_unet` does.
    """
    model = open_model(key)
    found = []
    for component in components:
        source = model.source_of(component)
        dtype = _dtype(float16 and component != "vae")
        for file in source.weights(component, float16):
            keys = find_not_finite(file, dtype, source.layout(component))
            found += [f"{file}: {key}" for key in keys]
    return found


def _dtype(float16: bool) -> mx.Dtype:
    return mx.float16 if float16 else mx.float32


def _load(
    network: _Network,
    model: Model,
    component: str,
    float16: bool,
    dtype: mx.Dtype,
    quantization: Quantization | None = None,
) -> _Network:
    """Give a network the weights of a component and return it.

    Args:
        float16: which files to take.
        dtype: of the weights in memory.
        quantization: of the files; only those that `convert` wrote are quantized.

    Raises:
        OSError, ValueError: as `load_unet` does, and if the network does not fit into memory.
    """
    n_weights = sum(math.prod(value.shape) for value in flatten_parameters(network).values())
    source = model.source_of(component)
    where = f"{source.name}: {component}/config.json"
    memory.require_room(n_weights, where)
    files = source.weights(component, float16)
    if source.is_native(files[0]):
        if quantization is not None:
            try:
                quantize_as(network, quantization)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        load_native(network, files[0], dtype)
    elif quantization is not None:
        raise FileNotFoundError(
            f"{source.name} has no {component}/{NATIVE}, though its config.json says `quantization`"
        )
    else:
        load_weights(network, files, source.layout(component), dtype)
    return network
