"""Turn a decoded Pillow picture of any mode into channels of floats: RGB, upright and resized."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ..utils.size import Size
from .arrays import Fit

HEIF = "HEIF"  # the name of the format in the package pillow-heif
# Formats whose integers of mode I are on the scale of 16 bits: Pillow converts them to it.
SCALED_TO_16_BITS = ("PNG", "PPM")
DEEP_MODES = ("I", "F")  # how modes of more than 8 bits begin: I;16 and its byte orders, I, F
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # TIFF tags; SAMPLE_FORMAT is 1 for unsigned integers
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSES = {  # what makes a picture upright, by its orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 if it is upright."""
    if image.format == HEIF:  # libheif has already rotated it as the container says
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the picture may be whole even if its EXIF is damaged
        return 1


def compute_upright_size(image: Image.Image, orientation: int) -> Size:
    """Return the size of a picture after it is rotated upright."""
    width, height = image.size
    return Size(height, width) if orientation in SIDEWAYS else Size(width, height)


def to_array(image: Image.Image, orientation: int, fit: Fit) -> np.ndarray:
    """Return the pixels of a decoded picture, upright, cropped and resized.

    Args:
        orientation: the EXIF orientation of the picture.
        fit: how the upright picture is cropped and resized.

    Returns:
        float32 [height, width, 3] in [-1, 1].
    """
    (width, height), (x_margin, y_margin) = fit
    pixels = np.empty((height, width, 3), np.float32)
    if orientation in SIDEWAYS:  # channels are resized before they are rotated
        fit = Fit(Size(height, width), (y_margin, x_margin))
    for i, channel in enumerate(_split_channels(image, fit)):
        if orientation in TRANSPOSES:
            channel = channel.transpose(TRANSPOSES[orientation])
        pixels[..., i] = np.asarray(channel)
    pixels /= np.float32(127.5)
    pixels -= 1
    return pixels.clip(-1, 1, out=pixels)  # Lanczos overshoots at edges


def to_bytes(channels: Iterable[Image.Image], orientation: int) -> np.ndarray:
    """Return channels of a picture, upright.

    Args:
        channels: all of one size, each with values from 0 to 255.
        orientation: the EXIF orientation of the picture.

    Returns:
        uint8 [height, width, channels].
    """
    upright = []
    for channel in channels:
        if orientation in TRANSPOSES:
            channel = channel.transpose(TRANSPOSES[orientation])
        upright.append(_round(channel))
    return np.stack(upright, axis=-1)


def resize(pixels: np.ndarray, fit: Fit) -> np.ndarray:
    """Crop and resize bytes, [height, width] or [height, width, 3], by Lanczos' filter."""
    image = Image.fromarray(pixels)
    (width, height), (x, y) = image.size, fit.margin
    return np.asarray(
        image.resize(fit.size, Image.Resampling.LANCZOS, (x, y, width - x, height - y))
    )


def split_colours(image: Image.Image) -> Iterator[Image.Image]:
    """Yield red, green and blue, blended with white where the picture is transparent."""
    return _split_channels(image, Fit(Size(*image.size)))


def split_hidden_colours(image: Image.Image) -> Iterator[Image.Image]:
    """Yield red, green and blue as they are stored, also where the picture is transparent."""
    if not _has_transparency(image):
        return split_colours(image)
    image = _convert(image, "RGBA")
    return (image.getchannel(name) for name in "RGB")


def split_grey(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the brightness of a picture, blended with black where it is transparent."""
    if image.mode.startswith(DEEP_MODES):
        yield _convert_deep_grey(image)
        return
    if _has_transparency(image):
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, _convert(image, "RGBA"))
    if image.mode not in ("1", "L"):
        image = _convert(image, "RGB")
    yield _convert(image, "L")


def split_alpha(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the opacity of a picture."""
    if image.mode.startswith(DEEP_MODES) or not _has_transparency(image):
        yield Image.new("L", image.size, "white")
    else:
        yield _convert(image, "RGBA").getchannel("A")


def _split_channels(image: Image.Image, fit: Fit) -> Iterator[Image.Image]:
    """Yield red, green and blue in turn: resized pictures of mode F with values from 0 to 255.

    One at a time: at the full size of the file there is never more than one channel of floats.
    """
    if image.mode.startswith(DEEP_MODES):
        yield from [_resize(_convert_deep_grey(image), fit)] * 3
    elif _has_transparency(image):
        image = _convert(image, "RGBA")
        for name in "RGB":
            yield _resize(_blend_with_white(image.getchannel(name), image.getchannel("A")), fit)
    else:
        image = _convert(image, "RGB")
        for name in "RGB":
            yield _resize(image.getchannel(name).convert("F"), fit)


def _has_transparency(image: Image.Image) -> bool:
    """Return whether some pixels may be transparent."""
    if image.mode == "P" and image.palette is None:  # in ICNS, where Pillow's own property fails
        return "transparency" in image.info
    return image.has_transparency_data


def _convert_deep_grey(image: Image.Image) -> Image.Image:
    """Convert grey of more than 8 bits to mode F with values from 0 to 255."""
    grey = np.asarray(image)
    if image.mode == "I" and _is_unsigned(image):
        grey = grey.view(np.uint32)
    grey = grey.astype(np.float32)
    brightest = float(np.max(grey, initial=0, where=np.isfinite(grey)))
    np.nan_to_num(grey, copy=False, posinf=brightest)
    grey.clip(0, None, out=grey)
    grey *= 255 / _guess_white_level(image.mode, image.format, brightest)
    return _from_array(grey)


def _is_unsigned(image: Image.Image) -> bool:
    """Return whether a file has unsigned integers of 32 bits, which Pillow reads as signed."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    return tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,)


def _guess_white_level(mode: str, file_format: str | None, brightest: float) -> float:
    """Return the value that counts as white: the lowest usual one that no pixel exceeds.

    Floats may be on a scale of 1, 255 or 65535. Integers of 16 bits are on the scale of 65535. A
    file of mode I, which has 32 bits, may hold bytes (Pillow's conversion to RGB assumes so, and
    thus diffusers) or values of 16 bits.
    """
    levels: tuple[int, ...] = (65535,)
    if mode == "F":
        levels = (1, 255, 65535)
    elif mode == "I" and file_format not in SCALED_TO_16_BITS:
        levels = (255, 65535)
    return next((level for level in levels if brightest <= level), brightest)


def _blend_with_white(channel: Image.Image, alpha: Image.Image) -> Image.Image:
    """Blend a channel from 0 to 255 with white (255) by its alpha; in place, to save memory."""
    colour = np.array(channel, dtype=np.float32)
    colour -= 255
    colour *= np.asarray(alpha)
    colour /= 255
    colour += 255
    return _from_array(colour)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert a picture to a mode, without the copy that `convert` makes if it has it already."""
    return image if image.mode == mode else image.convert(mode)


def _resize(channel: Image.Image, fit: Fit) -> Image.Image:
    """Crop and resize a picture of floats by Lanczos' filter, which also averages."""
    (width, height), (x, y) = channel.size, fit.margin
    if channel.size == fit.size and not any(fit.margin):
        return channel
    return channel.resize(fit.size, Image.Resampling.LANCZOS, (x, y, width - x, height - y))


def _round(channel: Image.Image) -> np.ndarray:
    """Return a channel with values from 0 to 255 as bytes; Lanczos overshoots at edges."""
    values = np.asarray(channel)
    if values.dtype == np.uint8:
        return values
    return values.clip(0, 255).round().astype(np.uint8)


def _from_array(channel: np.ndarray) -> Image.Image:
    """Return a picture of mode F that shares the array's memory; `Image.fromarray` copies twice."""
    height, width = channel.shape
    return Image.frombuffer("F", (width, height), channel, "raw", "F", 0, 1)
