"""Read the picture to start from, and its mask."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...images.arrays import MAX_PIXELS, MULTIPLE
from ...images.reading import load_image, read_size
from ...utils.size import Size
from ..settings import StartPicture
from ..terminal.console import say
from .masked_picture import read_masked_picture


def read_start(values: Mapping[str, Any]) -> StartPicture:
    """Return the picture to start from, in a size that the networks take.

    A picture with too many pixels for any model is not read: a black one takes its place, and
    `job.check_start`, which knows the size that suits the model, refuses it.

    Raises:
        ValueError: if the file is not a picture, or too small, or `--fit` has no size to fit to; or
            if the mask is wrong.
        OSError: if a file cannot be read.
    """
    if values["mask"] is not None or values["outpaint"] is not None:
        return read_masked_picture(values)
    file, fit = values["image"], values["fit"]
    size = None if values["width"] is None else Size(values["width"], values["height"])
    if fit is None:
        fit = "stretch"
    elif size is None:
        raise ValueError("--fit needs --width and --height")
    own_size = None
    if size is None:
        own_size = Size(*read_size(file))
        width, height = own_size
        if width * height > MAX_PIXELS and min(width, height) >= MULTIPLE:
            shape = (*(side - side % MULTIPLE for side in (height, width)), 3)
            black = np.broadcast_to(np.float32(-1), shape)  # takes no memory
            return StartPicture(file, black, own_size, fit)
    pixels, (width, height) = load_image(file, size, fit=fit)
    new_height, new_width, _ = pixels.shape
    if (new_width, new_height) != (width, height):
        say(f"Resized {file} from {width}x{height} to {new_width}x{new_height}")
    return StartPicture(file, pixels, own_size, fit)
