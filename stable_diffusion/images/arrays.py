"""Sizes of pictures, and arrays of pixels: fitting, padding, grids."""

import math
from typing import NamedTuple

import numpy as np

from ..utils.size import Size

MULTIPLE = 64  # the VAE makes 8 pixels one latent, the UNet halves latents three times
MAX_PIXELS = 4096 * 4096  # that are made, or started from: far beyond what the models draw well
MAX_ASPECT = 16  # of a side that is suggested: times that of a square of as many pixels
SHAPE_WEIGHT = 10  # a side that is a tenth longer is as bad as e times the pixels
GRID_BORDER = 8  # pixels of black around each picture of a grid
FITS = ("stretch", "crop", "pad")  # how a picture comes to a size of other proportions


class Fit(NamedTuple):
    """How a picture comes to a (width, height).

    The margin, in pixels of the picture, is left out: so much both left and right, and so much both
    at the top and at the bottom.
    """

    size: Size
    margin: tuple[float, float] = (0, 0)


def fitted_size(size: Size, multiple: int = MULTIPLE) -> Size:
    """Both sides brought down to multiples of `multiple`.

    Raises:
        ValueError: a side is shorter than `multiple`, or there are more than `MAX_PIXELS`.
    """
    width, height = size
    if min(width, height) < multiple:
        raise ValueError(
            f"each side must be at least {multiple} pixels, got {width}x{height}: give the width "
            "and height to enlarge it to"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are too many to start from: give the width and height to "
            "bring them down to"
        )
    return Size(width - width % multiple, height - height % multiple)


def similar_size(size: Size, n_pixels: int, multiple: int = MULTIPLE) -> Size:
    """Return the (width, height) of some `n_pixels` that is most like a picture's `size`.

    Both sides are multiples of `multiple`. Proportions matter most, unless they are extreme: of
    sizes that differ little in them, it is the one whose number of pixels is nearest.
    """
    proportion = size[0] / size[1]
    longest = max(int(MAX_ASPECT * math.sqrt(n_pixels)) // multiple, 1)
    found = []
    for is_lying in (False, True):  # from each height, and from each width
        ratio = 1 / proportion if is_lying else proportion  # of the second side to the first
        most = min(int(2 * math.sqrt(n_pixels / ratio)) // multiple + 1, longest)
        for first in range(1, most + 1):
            second = min(max(round(first * ratio), 1), longest)
            found.append((first, second) if is_lying else (second, first))

    def distance(sides: Size) -> tuple[float, Size]:
        width, height = sides
        shape = abs(math.log(width / height / proportion))
        area = abs(math.log(width * height * multiple**2 / n_pixels))
        return SHAPE_WEIGHT * shape + area, sides

    width, height = min(found, key=distance)
    return Size(width * multiple, height * multiple)


def fit_to_size(had: Size, size: Size, fit: str) -> Fit:
    """How a picture comes from the (width, height) it had to `size`.

    "stretch" changes its proportions where they differ; "crop" leaves out what is too much at two
    opposite sides; "pad" keeps all of it, inside of `size`.
    """
    ratios = [wanted / n for wanted, n in zip(size, had, strict=True)]
    if fit == "crop":
        shown = (wanted / max(ratios) for wanted in size)
        # Rounding may leave a trace under 0.
        return Fit(size, tuple(max(n - m, 0) / 2 for n, m in zip(had, shown, strict=True)))
    if fit == "pad":
        return Fit(tuple(max(round(n * min(ratios)), 1) for n in had))
    return Fit(size)


def pad(image: np.ndarray, size: Size) -> np.ndarray:
    """A picture [H, W, 3] in the middle of `size`, its outermost pixels repeated around it."""
    height, width, _ = image.shape
    missing = size[1] - height, size[0] - width
    return np.pad(image, [*((n // 2, n - n // 2) for n in missing), (0, 0)], mode="edge")


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


def grid_size(n: int, size: Size, n_rows: int) -> Size:
    """Of a grid of `n` pictures of this size; see `make_grid`."""
    if n == 1:
        return size
    width, height = (side + 2 * GRID_BORDER for side in size)
    return Size(n // n_rows * width, n_rows * height)
