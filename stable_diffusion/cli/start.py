"""What the networks start from, and how the pictures that they make become those of the files."""

from dataclasses import dataclass

import numpy as np

from ..images.masks import (
    Box,
    Margins,
    cut,
    enlarge_part,
    extend,
    find_crop_box,
    pad_to_multiple,
    paste,
    paste_part,
)
from ..utils.size import Size
from .settings import StartPicture


@dataclass(frozen=True, eq=False)
class Start:
    """What the networks start from.

    Attributes:
        pixels: float32 [h, w, 3] in [-1, 1], in the size that is drawn.
        mask: booleans [h, w], true where the picture is repainted; None for all of it.
        original: uint8 [H, W, 3], in the size of the result; None if there is no mask.
        paste_mask: uint8 [H, W], the mask through which the new pixels are pasted.
        box: the part of the original that is drawn; None for all of it.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None
    original: np.ndarray | None = None
    paste_mask: np.ndarray | None = None
    box: Box | None = None

    def finish(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture for the file, whose pixels outside the mask are the original's.

        Args:
            picture: as the networks have drawn it, uint8 [h, w, 3].
        """
        if self.original is None or self.paste_mask is None:  # both, or neither
            return picture
        if self.box is not None:
            return paste_part(picture, self.original, self.paste_mask, self.box)
        height, width, _ = self.original.shape
        return paste(picture[:height, :width], self.original, self.paste_mask)


def make_start(start: StartPicture, size: Size, factor: int) -> Start:
    """Return what the networks start from.

    Args:
        size: in which a part of the picture is drawn, if only a part is.
        factor: the VAE's; the sides of what is drawn are multiples of it.
    """
    repainting = start.repainting
    if repainting is None:
        return Start(start.pixels)
    picture, mask, box = start.pixels, repainting.mask, None
    if repainting.crop is None:
        drawn, drawn_mask = pad_to_multiple(picture, factor), pad_to_multiple(mask, factor)
    else:
        box = find_crop_box(mask, size, repainting.crop)
        drawn, drawn_mask = enlarge_part(picture, box, size), enlarge_part(mask, box, size)
    pixels = drawn.astype(np.float32) / np.float32(127.5) - 1
    return Start(pixels, cut(drawn_mask) > 0, picture, mask, box)


def show_like(start: Start, picture: np.ndarray) -> np.ndarray:
    """Return the part of another picture that is drawn, in the size in which it is drawn.

    Args:
        picture: uint8 [H, W, 3], of the size of the original.
    """
    height, width, _ = start.pixels.shape
    if start.box is not None:
        return enlarge_part(picture, start.box, Size(width, height))
    missing = height - picture.shape[0], width - picture.shape[1]
    return extend(picture, Margins(0, 0, missing[1], missing[0]))
