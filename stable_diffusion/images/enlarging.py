"""Enlarge pictures by a filter."""

import numpy as np
from PIL import Image

from ..utils.size import Size


def resize_lanczos(picture: np.ndarray, size: Size) -> np.ndarray:
    """Return a picture, uint8 [H, W, 3], in another size, by Lanczos' filter."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
