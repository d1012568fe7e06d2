"""Stable Diffusion in MLX: pictures from text, and from pictures and text."""

import os

# MLX computes float32 products with 10 bits of precision (TF32) on an M5 and on CUDA, unless this
# variable is 0. It reads the variable at the first such product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# Before anything that imports mlx.
from .device.blas import use_fast_blas

use_fast_blas()

from .pipeline import StableDiffusion, StableDiffusionXL  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ["StableDiffusion", "StableDiffusionXL", "__version__"]
