"""The config files of a model, as checked dataclasses, and the models that have a short name."""

from .autoencoder_tiny import AutoencoderTinyConfig
from .diffusion import DiffusionConfig
from .few_step import FewStepSettings
from .known_models import FEW_STEP_MODELS, MODELS, FewStepModel, ModelSpec
from .model import Defaults, ModelConfig, PipelineConfig
from .networks import AutoencoderConfig, CLIPTextConfig, UNetConfig

CLIPTextModelConfig = CLIPTextConfig  # its name in the original MLX example

__all__ = [
    "FEW_STEP_MODELS",
    "MODELS",
    "AutoencoderConfig",
    "AutoencoderTinyConfig",
    "CLIPTextConfig",
    "CLIPTextModelConfig",
    "Defaults",
    "DiffusionConfig",
    "FewStepModel",
    "FewStepSettings",
    "ModelConfig",
    "ModelSpec",
    "PipelineConfig",
    "UNetConfig",
]
