"""What the config files of a model say, and the models that have a short name."""

from .diffusion import DiffusionConfig
from .known_models import MODELS, ModelSpec
from .model import Defaults, ModelConfig, PipelineConfig
from .networks import AutoencoderConfig, CLIPTextConfig, UNetConfig

__all__ = [
    "MODELS",
    "AutoencoderConfig",
    "CLIPTextConfig",
    "Defaults",
    "DiffusionConfig",
    "ModelConfig",
    "ModelSpec",
    "PipelineConfig",
    "UNetConfig",
]
