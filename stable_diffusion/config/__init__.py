"""The config files of a model, as checked dataclasses, and the models that have a short name."""

from .autoencoder_tiny import AutoencoderTinyConfig
from .diffusion import DiffusionConfig
from .known_models import MODELS, ModelSpec
from .model import Defaults, ModelConfig, PipelineConfig
from .networks import AutoencoderConfig, CLIPTextConfig, UNetConfig

CLIPTextModelConfig = CLIPTextConfig  # its name in the original MLX example

__all__ = [
    "MODELS",
    "AutoencoderConfig",
    "AutoencoderTinyConfig",
    "CLIPTextConfig",
    "CLIPTextModelConfig",
    "Defaults",
    "DiffusionConfig",
    "ModelConfig",
    "ModelSpec",
    "PipelineConfig",
    "UNetConfig",
]
