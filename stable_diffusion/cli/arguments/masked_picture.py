"""Read a picture of which a part is repainted, and the mask of that part."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...images.arrays import MAX_PIXELS, MULTIPLE, Fit, fit_to_size
from ...images.masks import (
    HALF,
    NO_MARGINS,
    WHITE,
    Margins,
    blur,
    cut,
    extend,
    read_mask,
    read_transparency,
)
from ...images.pixels import resize, split_colours, split_hidden_colours
from ...images.reading import MAX_FILE_PIXELS, read_channels, read_size
from ...utils.size import Size
from ..settings import TRANSPARENCY, Repainting, StartPicture
from ..terminal.console import say


def read_masked_picture(values: Mapping[str, Any]) -> StartPicture:
    """Return the picture to start from, and the part of it to repaint, as the options say.

    The picture is extended first, and then resized. One with too many pixels for any model is not
    read: a black one takes its place, as in `read_start`.

    Raises:
        ValueError: if a file is not a picture, or too small or too large; if the mask does not fit
            the picture, or leaves nothing to repaint.
        OSError: if a file cannot be read.
    """
    file, fit, crop = values["image"], values["fit"] or "stretch", values["mask_crop"]
    margins = NO_MARGINS if values["outpaint"] is None else Margins(*values["outpaint"])
    file_size = read_size(file)
    size = margins.extend(file_size)
    own_size: Size | None = size
    _check_limit(file, size)
    if crop is None and values["width"] is not None:
        size, own_size = Size(values["width"], values["height"]), None
    elif crop is None:
        _check_sides(file, size)
        if values["fit"] is not None:
            raise ValueError("--fit needs --width and --height")
    if own_size is not None and crop is None and size.width * size.height > MAX_PIXELS:
        picture = np.broadcast_to(np.uint8(0), (size.height, size.width, 3))  # takes no memory
        mask = picture[..., 0]
    else:
        mask = _read_mask(values, file_size)
        is_transparent = values["mask"] == TRANSPARENCY
        picture = read_channels(file, split_hidden_colours if is_transparent else split_colours)
        picture, mask = extend(picture, margins), extend(mask, margins, WHITE)
        if own_size is None:
            picture, mask = _bring_to_size(picture, size, fit), _bring_to_size(mask, size, fit)
            if not cut(mask).any():
                raise ValueError(
                    f"nothing is left of the mask in {_format(size)}: give another --fit, or "
                    "another --width and --height"
                )
        mask = blur(mask if crop is not None else cut(mask), values["mask_blur"])
        if not cut(mask).any():
            raise ValueError("nothing is left of the mask: give less --mask-blur, or a larger mask")
    repainting = Repainting(
        mask, values["mask"], values["invert_mask"], values["mask_blur"], crop, margins
    )
    return StartPicture(file, picture, own_size, fit, repainting)


def _check_limit(file: str, size: Size) -> None:
    """Raise ValueError if the extended picture has too many pixels."""
    if size.width * size.height > MAX_FILE_PIXELS:
        limit = f"{MAX_FILE_PIXELS // 10**6} million"
        raise ValueError(f"{file}: {_format(size)} are too many pixels: at most {limit}")


def _check_sides(file: str, size: Size) -> None:
    """Raise ValueError if the picture is too small to be drawn in its own size."""
    if min(size) < MULTIPLE:
        raise ValueError(
            f"{file}: each side must be at least {MULTIPLE} pixels, got {_format(size)}: give a "
            "width and height to enlarge it, or --mask-crop"
        )


def _read_mask(values: Mapping[str, Any], size: Size) -> np.ndarray:
    """Return the mask that the options name, uint8 [height, width].

    If only a part is drawn, greys stay as they are, as with diffusers' `padding_mask_crop`: both
    pictures blend there. Otherwise it is black and white.

    Args:
        size: that of the picture. A mask of another size with the same proportions is resized.

    Raises:
        ValueError: if the file is not a picture, or has other proportions, or the mask is empty.
        OSError: if the file cannot be read.
    """
    file, is_inverted = values["mask"], values["invert_mask"]
    if file is None:  # the picture is extended only
        return np.zeros((size.height, size.width), np.uint8)
    if file == TRANSPARENCY:
        grey = read_transparency(values["image"])
    else:
        grey = _read_fitting_mask(file, values["image"], size)
    mask = grey if values["mask_crop"] is not None else cut(grey)
    if is_inverted:
        mask = WHITE - mask
    if not cut(mask).any():
        raise ValueError(_explain_empty(values, int(grey.max())))
    if (mask == WHITE).all():
        warnings.warn(
            "the mask has all of the picture, so that nothing of it is kept", stacklevel=2
        )
    return mask


def _read_fitting_mask(file: str, picture_file: str, size: Size) -> np.ndarray:
    """Return the brightness of a mask, uint8 [height, width], in the size of the picture.

    Raises:
        ValueError, OSError: as `_read_mask` does.
    """
    mask_size = read_size(file)
    if mask_size == size:
        return read_mask(file)
    # The same proportions, if a side was rounded to whole pixels.
    width_error = abs(mask_size.width - size.width * mask_size.height / size.height)
    height_error = abs(mask_size.height - size.height * mask_size.width / size.width)
    if min(width_error, height_error) > 1:
        raise ValueError(
            f"{file}: the mask has {_format(mask_size)} pixels, and {picture_file} has "
            f"{_format(size)}: give a mask of the same size, or of the same proportions"
        )
    say(f"Resized the mask {file} from {_format(mask_size)} to {_format(size)}")
    return resize(read_mask(file), Fit(size))


def _explain_empty(values: Mapping[str, Any], brightest: int) -> str:
    """Return what is wrong with a mask that leaves nothing to repaint.

    Args:
        brightest: the brightest grey of the mask, before it is inverted.
    """
    file = values["mask"]
    if values["invert_mask"]:
        what = "all of it is transparent" if file == TRANSPARENCY else "all of it is white"
        name = values["image"] if file == TRANSPARENCY else file
        return f"{name}: the mask is empty: {what}, and --invert-mask repaints the rest"
    if file == TRANSPARENCY:
        return (
            f"{values['image']}: the mask is empty: no part of the picture is transparent; give a "
            "picture of the mask with --mask FILE"
        )
    return (
        f"{file}: the mask is empty: white is repainted, and its brightest grey is {brightest} of "
        f"{WHITE}, where {HALF} is needed"
    )


def _bring_to_size(pixels: np.ndarray, size: Size, fit: str) -> np.ndarray:
    """Return a picture or mask in another size; see `fit_to_size`."""
    height, width = pixels.shape[:2]
    resized = resize(pixels, fit_to_size(Size(width, height), size, fit))
    height, width = resized.shape[:2]
    x, y = size.width - width, size.height - height  # pixels that "pad" adds
    return extend(resized, Margins(x // 2, y // 2, x - x // 2, y - y // 2))


def _format(size: Size) -> str:
    return f"{size.width}x{size.height}"
