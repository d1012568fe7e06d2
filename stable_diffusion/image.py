"""Between picture files and arrays: reading, fitting to the networks, grids, saving."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from .picture import Size, read_picture

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
SAVE_OPTIONS = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
MULTIPLE = 64  # the VAE makes 8 pixels one latent, the UNet halves latents three times
MOST_PIXELS = 4096 * 4096  # that are started from: far beyond what the models draw well
GRID_BORDER = 8  # pixels of black around each picture of a grid


def load_image(
    path: str | os.PathLike, size: Size | None = None, multiple: int = MULTIPLE
) -> tuple[np.ndarray, Size]:
    """Read a picture and bring it to a size that the networks take.

    Args:
        path: a file, as `picture.read_picture` takes it.
        size: the (width, height) wanted; without one, each side of the picture is brought down to
            a multiple of `multiple`.

    Returns:
        The picture, float32 [height, width, 3] in [-1, 1], and the (width, height) it had.

    Raises:
        ValueError: the file is no picture, or the picture is too large or too small.
        OSError: the file cannot be read.
    """
    return read_picture(path, lambda had: fitted_size(had, multiple) if size is None else size)


def fitted_size(size: Size, multiple: int = MULTIPLE) -> Size:
    """Both sides brought down to multiples of `multiple`.

    Raises:
        ValueError: a side is shorter than `multiple`, or there are more than `MOST_PIXELS`.
    """
    width, height = size
    if min(width, height) < multiple:
        raise ValueError(f"each side must be at least {multiple} pixels, got {width}x{height}")
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are too many to start from: give the width and height to "
            "bring them down to"
        )
    return width - width % multiple, height - height % multiple


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], clipped, to bytes: rounded, as diffusers does."""
    images = np.asarray(images, dtype=np.float32).clip(0, 1)
    return (images * 255).round().astype(np.uint8)


def make_grid(images: np.ndarray, n_rows: int) -> np.ndarray:
    """Lay B pictures out in `n_rows` rows, each picture in a black border of 8 pixels.

    Args:
        images: uint8 [B, H, W, 3], in reading order. A single one gets no border.
        n_rows: must divide B.

    Returns:
        uint8 [n_rows · (H + 16), B / n_rows · (W + 16), 3].

    Raises:
        ValueError: `n_rows` does not divide the number of pictures.
    """
    if n_rows < 1 or len(images) % n_rows:
        raise ValueError(f"n_rows must divide the {len(images)} images, got {n_rows}")
    if len(images) == 1:
        return images[0]
    border = (GRID_BORDER, GRID_BORDER)
    bordered = np.pad(images, ((0, 0), border, border, (0, 0)))
    n, height, width, channels = bordered.shape
    n_columns = n // n_rows
    rows = bordered.reshape(n_rows, n_columns, height, width, channels).swapaxes(1, 2)
    return rows.reshape(n_rows * height, n_columns * width, channels)


def check_output(path: str | os.PathLike) -> None:
    """Raise ValueError where `save_image` could not write to `path`; creates nothing."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: the folder {path.parent} is not writable")


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write a picture, uint8 [H, W, 3]; the suffix of `path` says how.

    The file appears whole or not at all: it is written beside `path`, then renamed.

    Raises:
        ValueError: see `check_output`.
        OSError: writing failed.
    """
    check_output(path)
    path = Path(path)
    file_format = FORMATS[path.suffix.lower()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(image).save(partial, file_format, **SAVE_OPTIONS.get(file_format, {}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
