"""From a model's name to its components: files, configs and weights."""

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
    "load_autoencoder",
    "load_diffusion_config",
    "load_model_config",
    "load_text_encoder",
    "load_tokenizer",
    "load_unet",
    "open_model",
]
