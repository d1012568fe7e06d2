"""From a model's name to its components: files, configs and weights."""

from .convert import convert_model
from .loaders import (
    load_autoencoder,
    load_diffusion_config,
    load_model_config,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    open_model,
)
from .model import Model

__all__ = [
    "Model",
    "convert_model",
    "load_autoencoder",
    "load_diffusion_config",
    "load_model_config",
    "load_text_encoder",
    "load_tokenizer",
    "load_unet",
    "open_model",
]
