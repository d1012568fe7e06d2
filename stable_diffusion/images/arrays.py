"""Sizes of pictures, and arrays of pixels: fitting, padding, grids."""

import math
from typing import NamedTuple

import numpy as np

from ..utils.size import Size

MULTIPLE = 64  # the VAE halves each side three times, and the UNet halves latents three times
MAX_PIXELS = 4096 * 4096  # of a picture that is made or started from; models draw far less well
MAX_ASPECT = 16  # longest side of a suggested size, in sides of a square with as many pixels
SHAPE_WEIGHT = 10  # a side that is a tenth longer is as bad as e times the pixels
GRID_BORDER = 8  # black pixels around each picture of a grid
FITS = ("stretch", "crop", "pad")  # ways to bring a picture to a size of other proportions


class Fit(NamedTuple):
    """A way to bring a picture to another size.

    Attributes:
        size: the size after resizing.
        margin: pixels of the original that are cut off first: at the left and also at the right,
            and at the top and also at the bottom.
    """

    size: Size
    margin: tuple[float, float] = (0, 0)


def round_size_down(size: Size, multiple: int = MULTIPLE) -> Size:
    """Return a size with both sides rounded down to multiples of `multiple`.

    Raises:
        ValueError: if a side is shorter than `multiple`, or there are more than `MAX_PIXELS`.
    """
    width, height = size
    if min(width, height) < multiple:
        raise ValueError(
            f"each side must be at least {multiple} pixels, got {width}x{height}: give a width "
            "and height to enlarge it"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are too many to start from: give a width and height to "
            "reduce it"
        )
    return Size(width - width % multiple, height - height % multiple)


def find_similar_size(size: Size, n_pixels: int, multiple: int = MULTIPLE) -> Size:
    """Return the size of about `n_pixels` whose proportions are most like those of `size`.

    Both sides are multiples of `multiple`. Proportions matter most, unless they are extreme; among
    sizes with almost the same proportions, the one with the closest number of pixels wins.
    """
    width, height = size
    aspect = width / height
    longest = max(int(MAX_ASPECT * math.sqrt(n_pixels)) // multiple, 1)
    candidates = []  # sides in units of `multiple`
    for first_is_width in (False, True):  # a width for each height, and a height for each width
        ratio = 1 / aspect if first_is_width else aspect  # of the second side to the first
        largest = min(int(2 * math.sqrt(n_pixels / ratio)) // multiple + 1, longest)
        for first in range(1, largest + 1):
            second = min(max(round(first * ratio), 1), longest)
            candidates.append(Size(first, second) if first_is_width else Size(second, first))

    def distance(candidate: Size) -> tuple[float, Size]:
        shape = abs(math.log(candidate.width / candidate.height / aspect))
        area = abs(math.log(candidate.width * candidate.height * multiple**2 / n_pixels))
        return SHAPE_WEIGHT * shape + area, candidate  # the size decides between equals

    width, height = min(candidates, key=distance)
    return Size(width * multiple, height * multiple)


def fit_to_size(original: Size, size: Size, fit: str) -> Fit:
    """Return how to bring a picture from its original size to `size`.

    Args:
        fit: what happens if the proportions differ. "stretch" changes them; "crop" cuts off two
            opposite sides; "pad" keeps the whole picture, so that it is smaller than `size` in one
            direction (`pad` adds the rest).
    """
    (old_width, old_height), (width, height) = original, size
    ratios = width / old_width, height / old_height
    if fit == "crop":
        scale = max(ratios)
        # Rounding may make a margin slightly negative.
        x_margin = max(old_width - width / scale, 0) / 2
        y_margin = max(old_height - height / scale, 0) / 2
        return Fit(size, (x_margin, y_margin))
    if fit == "pad":
        scale = min(ratios)
        return Fit(Size(max(round(old_width * scale), 1), max(round(old_height * scale), 1)))
    return Fit(size)


def pad(image: np.ndarray, size: Size) -> np.ndarray:
    """Return a picture [H, W, 3] centred in `size`; its border pixels are repeated around it."""
    width, height = size
    missing = height - image.shape[0], width - image.shape[1]
    return np.pad(image, [*((n // 2, n - n // 2) for n in missing), (0, 0)], mode="edge")


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to bytes: clipped, then rounded, as diffusers does."""
    images = np.asarray(images, dtype=np.float32).clip(0, 1)
    return (images * 255).round().astype(np.uint8)


def make_grid(images: np.ndarray, n_rows: int) -> np.ndarray:
    """Arrange B pictures in `n_rows` rows, each picture with a black border of 8 pixels.

    Args:
        images: uint8 [B, H, W, 3], in reading order. A single picture gets no border.
        n_rows: must divide B.

    Returns:
        uint8 [n_rows · (H + 16), B / n_rows · (W + 16), 3].

    Raises:
        ValueError: if `n_rows` does not divide the number of pictures.
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


def choose_rows(n: int, n_rows: int) -> int:
    """Return `n_rows` if `n` pictures fill that many rows of a grid, otherwise 1."""
    return n_rows if n % n_rows == 0 else 1


def compute_grid_size(n: int, size: Size, n_rows: int) -> Size:
    """Return the size of a grid of `n` pictures of the same size; see `make_grid`."""
    if n == 1:
        return size
    width, height = (side + 2 * GRID_BORDER for side in size)
    return Size(n // n_rows * width, n_rows * height)
