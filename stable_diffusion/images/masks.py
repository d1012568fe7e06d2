"""Masks: which part of a picture is repainted, and how a new part is pasted into the picture.

Pictures are uint8 [H, W, 3]; masks are uint8 [H, W], 255 where a picture is repainted and 0 where
it is kept. Between these, after a blur, both are mixed.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ..utils.size import Size
from .arrays import Fit
from .pixels import resize, split_alpha, split_grey
from .reading import read_channels

WHITE = 255
HALF = 128  # greys from here on count as white, as in diffusers: (x / 255) ≥ 0.5
LOSSY = ("AVIF", "HEIF", "JPEG", "JPEG2000", "MPO", "WEBP")  # formats that add noise
NOISE = 16  # how much they usually add to black, and take away from white


class Box(NamedTuple):
    """A part of a picture in pixels; right and bottom are the first that do not belong to it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """Return width and height."""
        return Size(self.right - self.left, self.bottom - self.top)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return the index of the part in an array [H, W, …]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Margins(NamedTuple):
    """Pixels at the sides of a picture."""

    left: int
    top: int
    right: int
    bottom: int

    def extend(self, size: Size) -> Size:
        """Return the size of a picture to which the pixels are added."""
        return Size(self.left + size.width + self.right, self.top + size.height + self.bottom)


NO_MARGINS = Margins(0, 0, 0, 0)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Read the brightness of a picture, uint8 [H, W]. Transparent parts count as black.

    In a lossy format, what is almost black or white counts as black or white.

    Raises:
        ValueError, OSError: as `reading.read_picture` does.
    """
    return read_channels(path, _split_mask)[..., 0]


def _split_mask(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the brightness of a picture, without the noise of a lossy format."""
    for grey in split_grey(image):
        if grey.mode == "L" and image.format in LOSSY:
            levels = np.arange(WHITE + 1)
            levels[: NOISE + 1], levels[WHITE - NOISE :] = 0, WHITE
            grey = grey.point(levels.tolist())
        yield grey


def read_transparency(path: str | os.PathLike) -> np.ndarray:
    """Read how transparent a picture is, uint8 [H, W]: 0 if it is opaque.

    Raises:
        ValueError, OSError: as `reading.read_picture` does.
    """
    return WHITE - read_channels(path, split_alpha)[..., 0]


def cut(grey: np.ndarray) -> np.ndarray:
    """Return a mask that is white where `grey` is at least half white, and black otherwise.

    Thus noise that a lossy format has added to a mask does not change the picture.
    """
    return np.where(grey >= HALF, WHITE, 0).astype(np.uint8)


def blur(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return a mask with soft edges, as diffusers' `VaeImageProcessor.blur` does.

    Args:
        radius: the standard deviation of the Gaussian blur, in pixels; 0 changes nothing.
    """
    if radius == 0:
        return mask
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius)))


def extend(pixels: np.ndarray, margins: Margins, value: int | None = None) -> np.ndarray:
    """Return a picture or mask with pixels added at its sides.

    Args:
        margins: how many pixels to add at each side.
        value: of the new pixels; None for the colours of the nearest pixels at the border.
    """
    left, top, right, bottom = margins
    widths = [(top, bottom), (left, right), (0, 0)][: pixels.ndim]
    if value is None:
        return np.pad(pixels, widths, mode="edge")
    return np.pad(pixels, widths, constant_values=value)


def pad_to_multiple(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Return a picture or mask whose border is repeated at the right and at the bottom.

    Both sides become multiples of `multiple`, as the networks need.
    """
    height, width = pixels.shape[:2]
    return extend(pixels, Margins(0, 0, -width % multiple, -height % multiple))


def paste(picture: np.ndarray, original: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `picture` where the mask is white, and `original` where it is black, to the bit.

    Args:
        picture, original: uint8 [H, W, 3].
        mask: uint8 [H, W]; greys mix the two.
    """
    weight = mask[..., None].astype(np.int32)
    mixed = picture * weight + original * (WHITE - weight)
    return ((mixed + WHITE // 2) // WHITE).astype(np.uint8)  # rounded


def find_crop_box(mask: np.ndarray, size: Size, padding: int) -> Box:
    """Return the part of a picture to work on, which has all of the mask, as in diffusers.

    It is the smallest box with all pixels of the mask that are not black, with `padding` at each
    side, and grown to the proportions of `size`. At the border of the picture it is moved inwards;
    if it is larger than the picture, its proportions differ.

    Args:
        mask: uint8 [H, W].
        size: the size in which the part will be drawn.
        padding: in pixels of the picture.

    Raises:
        ValueError: if the mask is empty.
    """
    height, width = mask.shape
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        raise ValueError("the mask is empty: all of it is black")
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    aspect = size.width / size.height
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _grow(top, bottom, (right - left) / aspect, height)
    else:
        left, right = _grow(left, right, (bottom - top) * aspect, width)
    return Box(left, top, right, bottom)


def _grow(start: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """Return a range of about the length `wanted` around `start` to `end`, inside 0 to `limit`."""
    missing = int(wanted - (end - start))
    start -= missing // 2
    end += missing - missing // 2
    overhang = max(end - limit, 0)
    start, end = start - overhang, end - overhang
    return (0, min(end - start, limit)) if start < 0 else (start, end)


def enlarge_part(pixels: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """Return a part of a picture or mask in the size in which it is drawn.

    The part keeps its proportions and is centred; if they differ from those of `size`, the border
    of the part is repeated.
    """
    (width, height), (old_width, old_height) = size, box.size
    if width * old_height < height * old_width:  # `size` is narrower than the part
        new_width, new_height = width, max(old_height * width // old_width, 1)
    else:
        new_width, new_height = max(old_width * height // old_height, 1), height
    part = resize(pixels[box.slices], Fit(Size(new_width, new_height)))
    left, top = width // 2 - new_width // 2, height // 2 - new_height // 2
    return extend(part, Margins(left, top, width - new_width - left, height - new_height - top))


def paste_part(picture: np.ndarray, original: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
    """Return `original` with a part that was drawn in another size, pasted through the mask.

    Args:
        picture: the part as it was drawn, after `enlarge_part`; uint8 [h, w, 3].
        original: uint8 [H, W, 3].
        mask: uint8 [H, W].
        box: where the part belongs.
    """
    (height, width, _), (new_width, new_height) = picture.shape, box.size
    if new_width * height > new_height * width:  # the part is wider than what was drawn
        whole_width, whole_height = new_width, height * new_width // width
    else:
        whole_width, whole_height = width * new_height // height, new_height
    part = resize(picture, Fit(Size(whole_width, whole_height)))
    left, top = whole_width // 2 - new_width // 2, whole_height // 2 - new_height // 2
    part = part[top : top + new_height, left : left + new_width]
    result = original.copy()
    result[box.slices] = paste(part, original[box.slices], mask[box.slices])
    return result
