"""Picture files to arrays: what is opened, how much of it, and what is damaged.

Pillow does the decoding. A file may come from anywhere, so only formats that Pillow decodes itself
are tried, sizes are checked before memory is taken, and whatever a decoder raises is one error.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..utils.size import Size
from ..utils.wording import format_bytes as bytes_of
from .arrays import FITS, MULTIPLE, Fit, fit_to_size, fitted_size, pad
from .unreadable import (
    ADDRESS,
    HEAD_BYTES,
    RAW,
    explain_address,
    explain_heic,
    explain_unreadable,
    is_heic,
    is_raw,
    suggest_name,
)

# Not those that Pillow hands to other programs (EPS to Ghostscript, WMF to the system) or to nobody
# (BUFR, GRIB, HDF5, MPEG), nor FITS, which it unpacks without a limit, nor IPTC, which may hold any
# of these.
FORMATS = (
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO"),
    *("IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG"),
    *("PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
    "XVTHUMB",
)
HEIF = "HEIF"  # as the package pillow-heif calls its format
SCALED = ("PNG", "PPM")  # whose integers Pillow brings to 16 bits, where it has them in mode I
STANDARD_INPUT = "-"
MAX_PIXELS = 120_000_000  # of a file: such as 20,000 x 6,000, which take some 2 GB while read
MAX_BYTES = 2_000_000_000  # of a file: so many pixels, of the largest kind, with room to spare
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # TIFF tags; the second is 1 for unsigned integers
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # by its value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # orientations that lay width along height
DEEP = ("I", "F")  # begin the modes of more than 8 bits: I;16 and its byte orders, I, F


def read_picture(
    path: str | os.PathLike, fit: Callable[[Size], Fit] = Fit
) -> tuple[np.ndarray, Size]:
    """The picture in a file, and the (width, height) it has there.

    It stands upright (EXIF), transparency lies over white, and of an animation it is the first
    frame. Grey with more than 8 bits keeps them; see `_white_level`. Colour profiles are not
    applied, nor are they by diffusers.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix; or HEIC, if the package pillow-heif
            is installed.
        fit: from the size it has to what is wanted (default: the same). It is resized by Lanczos'
            filter, a channel at a time, for large pictures take much memory.

    Returns:
        float32 [height, width, 3] in [-1, 1].

    Raises:
        ValueError: it is no picture, a damaged one, one of more than `MAX_PIXELS`, or no file but
            a pipe or device; or what `fit` raises.
        OSError: the file cannot be read.
    """
    with open_picture(path) as image:
        _load(image)
        orientation = _orientation(image)
        size = image.size[::-1] if orientation in TURNED else image.size
    try:
        wanted, margin = fit(size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with _decoding(path):
        lying = Fit(wanted[::-1], margin[::-1]) if orientation in TURNED else Fit(wanted, margin)
        pixels = np.empty((wanted[1], wanted[0], 3), np.float32)
        for i, channel in enumerate(_channels(image, lying)):
            if orientation in UPRIGHT:
                channel = channel.transpose(UPRIGHT[orientation])
            pixels[..., i] = np.asarray(channel)
    pixels /= np.float32(127.5)
    pixels -= 1
    return pixels.clip(-1, 1, out=pixels), size  # the filter rings at edges


class _Unmapped(io.BufferedReader):
    """A file that Pillow and libtiff have to read: of one that they map into memory, and that is
    cut meanwhile, the system would end this process."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@contextmanager
def open_picture(path: str | os.PathLike) -> Iterator[Image.Image]:
    """A picture file of which nothing but the header has been read.

    What Pillow raises within is turned into one line.

    Raises:
        ValueError: it is none of `FORMATS`, damaged, too large, or no file but a pipe or device.
        OSError: the file cannot be read.
    """
    require_file(path)
    Image.init()  # of which formats this Pillow has been built with
    with _Unmapped(io.FileIO(path)) as file:
        head = file.read(HEAD_BYTES)
        formats = _formats(path, file, head)
        file.seek(0)
        with _decoding(path, head), Image.open(file, formats=formats) as image:
            yield image


def read_size(path: str | os.PathLike) -> Size:
    """Return the (width, height) of the picture in a file, as it stands upright.

    Only the header is read.

    Raises:
        ValueError, OSError: see `opened`.
    """
    with open_picture(path) as image:
        return image.size[::-1] if _orientation(image) in TURNED else image.size


def require_file(path: str | os.PathLike) -> None:
    """Check that there is a file, and that it can be read as one.

    Raises:
        ValueError: it may never end, or cannot be gone back in; or it is no file but an address.
        OSError: there is none, or it is a folder.
    """
    name = os.fspath(path)
    if name == STANDARD_INPUT:
        raise ValueError(
            f"{path}: a picture is not read from standard input: save it in a file and name that "
            "(a file that is called -: ./-)"
        )
    try:
        found = os.stat(path)
    except OSError as error:
        if ADDRESS.match(name):
            raise ValueError(f"{path}: {explain_address(name)}") from None
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        what = f"{error.strerror}{suggest_name(Path(path))}"
        raise type(error)(error.errno, what, name or "''") from None
    if stat.S_ISDIR(found.st_mode):
        what = f"{os.strerror(errno.EISDIR)}: name a picture in it"
        raise IsADirectoryError(errno.EISDIR, what, name)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: a pipe or device, not a file: save the picture in one first")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{path}: {bytes_of(found.st_size)} are too many for a picture")


def _formats(path: str | os.PathLike, file: BinaryIO, head: bytes) -> list[str]:
    """Return the formats that a file, which begins with `head`, may be in.

    Raises:
        ValueError: Pillow would not read it, or something else than the picture in it.
    """
    if is_raw(path, file):
        raise ValueError(f"{path}: {RAW}")
    if not is_heic(head):
        return [name for name in FORMATS if name in Image.OPEN]
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:  # not installed, or without its library
        raise ValueError(f"{path}: {explain_heic(path)}") from None
    return [HEIF]


@contextmanager
def _decoding(path: str | os.PathLike, head: bytes | None = None) -> Iterator[None]:
    """Turn what Pillow raises into one line, and what it warns of into nothing.

    `head` is what the file begins with, to tell of what kind it is if Pillow does not know it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.UnidentifiedImageError:
        why = "the picture is damaged" if head is None else explain_unreadable(path, head)
        raise ValueError(f"{path}: {why}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the picture is too large ({error})") from None
    except MemoryError:
        raise ValueError(f"{path}: the picture is too large for the memory there is") from None
    except Exception as error:  # decoders raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: not permitted, a folder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: the picture is damaged ({reason})") from None


def _load(image: Image.Image) -> None:
    """Decode all of a picture, if that takes no more memory than it may."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        most = f"{MAX_PIXELS // 10**6} million"
        raise Image.DecompressionBombError(f"{width}x{height} pixels, at most {most}")
    if width * height == 0:
        raise ValueError("it has no pixels")
    image.load()


def _orientation(image: Image.Image) -> int:
    """How a picture lies (EXIF)."""
    if image.format == HEIF:  # libheif has turned it by what the container says
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged notes do not make a damaged picture
        return 1


def _channels(image: Image.Image, fit: Fit) -> Iterator[Image.Image]:
    """Red, green and blue in turn, of mode F, from 0 to 255, resized.

    One at a time: what is of the file's size is gone before the next is made.
    """
    if image.mode.startswith(DEEP):
        yield from [_resize(_grey(image), fit)] * 3
    elif _has_transparency(image):
        image = _as_mode(image, "RGBA")
        for name in "RGB":
            yield _resize(_over_white(image.getchannel(name), image.getchannel("A")), fit)
    else:
        image = _as_mode(image, "RGB")
        for name in "RGB":
            yield _resize(image.getchannel(name).convert("F"), fit)


def _has_transparency(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is None:  # in ICNS; there Pillow's own answer fails
        return "transparency" in image.info
    return image.has_transparency_data


def _grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, of mode F, from 0 to 255."""
    grey = np.asarray(image)
    if image.mode == "I" and _is_unsigned(image):
        grey = grey.view(np.uint32)
    grey = grey.astype(np.float32)
    brightest = np.max(grey, initial=0, where=np.isfinite(grey))
    np.nan_to_num(grey, copy=False, posinf=brightest)
    grey.clip(0, None, out=grey)
    grey *= 255 / _white_level(image.mode, image.format, brightest)
    return _from_floats(grey)


def _is_unsigned(image: Image.Image) -> bool:
    """Return whether a file's integers have 32 bits and no sign; Pillow reads them with one."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    return tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,)


def _over_white(channel: Image.Image, alpha: Image.Image) -> Image.Image:
    """A colour of some opacity, both from 0 to 255, over 255; in place, for memory."""
    colour = np.array(channel, dtype=np.float32)
    colour -= 255
    colour *= np.asarray(alpha)
    colour /= 255
    colour += 255
    return _from_floats(colour)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture, converted where it must; `convert` always copies."""
    return image if image.mode == mode else image.convert(mode)


def _resize(channel: Image.Image, fit: Fit) -> Image.Image:
    """Resize a picture of floats; the filter also averages what falls on one pixel."""
    (width, height), (x, y) = channel.size, fit.margin
    if channel.size == fit.size and not any(fit.margin):
        return channel
    return channel.resize(fit.size, Image.Resampling.LANCZOS, (x, y, width - x, height - y))


def _from_floats(channel: np.ndarray) -> Image.Image:
    """A picture of mode F; `Image.fromarray` would copy twice."""
    height, width = channel.shape
    return Image.frombuffer("F", (width, height), channel, "raw", "F", 0, 1)


def _white_level(mode: str, file_format: str | None, brightest: float) -> float:
    """Return what counts as white: the least usual level that no pixel exceeds.

    Floats may be on a scale of 1, 255 or 65535. Integers of 16 bits are on that of 65535. Mode I is
    of 32 bits, and what a file has in them may be bytes, as Pillow's and so diffusers' conversion
    to RGB takes them, or 16 bits.
    """
    if mode == "F":
        usual = (1, 255, 65535)
    elif mode == "I" and file_format not in SCALED:
        usual = (255, 65535)
    else:
        usual = (65535,)
    return next((level for level in usual if brightest <= level), brightest)


def load_image(
    path: str | os.PathLike,
    size: Size | None = None,
    multiple: int = MULTIPLE,
    fit: str = "stretch",
) -> tuple[np.ndarray, Size]:
    """Read a picture and bring it to a size that the networks take.

    Args:
        path: a file, as `picture.read_picture` takes it.
        size: the (width, height) wanted; without one, each side of the picture is brought down to
            a multiple of `multiple`.
        fit: how it comes to `size`, one of `FITS`; see `fit_to_size`.

    Returns:
        The picture, float32 [height, width, 3] in [-1, 1], and the (width, height) it had.

    Raises:
        ValueError: the file is no picture, or the picture is too large or too small.
        OSError: the file cannot be read.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")

    def fitted(had: Size) -> Fit:
        return Fit(fitted_size(had, multiple)) if size is None else fit_to_size(had, size, fit)

    image, had = read_picture(path, fitted)
    return (image if size is None else pad(image, size)), had
