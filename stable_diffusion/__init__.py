"""Stable Diffusion in MLX: pictures from text, and from pictures and text."""

# Before anything that imports mlx.
from .device.blas import use_fast_blas

use_fast_blas()

from .pipeline import StableDiffusion, StableDiffusionXL  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ["StableDiffusion", "StableDiffusionXL", "__version__"]
