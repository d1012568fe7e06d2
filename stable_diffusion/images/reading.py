"""Read picture files into arrays.

Pillow decodes them. Because a file may come from anywhere, only formats that Pillow decodes itself
are tried, sizes are checked before memory is allocated, and whatever a decoder raises becomes one
kind of error.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..utils.size import Size
from ..utils.wording import format_bytes
from .arrays import FITS, MULTIPLE, Fit, fit_to_size, pad, round_size_down
from .pixels import HEIF, compute_upright_size, read_orientation, to_array, to_bytes
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

# Other formats of Pillow are left out: it passes EPS to Ghostscript and WMF to the system, cannot
# decode BUFR, GRIB, HDF5 and MPEG by itself, and unpacks FITS without a limit; IPTC may contain any
# of these.
FORMATS = (
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO"),
    *("IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG"),
    *("PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
    "XVTHUMB",
)
STANDARD_INPUT = "-"
MAX_FILE_PIXELS = 120_000_000  # such as 20,000 x 6,000, which take about 2 GB while they are read
MAX_FILE_BYTES = 2_000_000_000  # as many pixels of the largest kind fit in it


def load_image(
    path: str | os.PathLike,
    size: Size | None = None,
    multiple: int = MULTIPLE,
    fit: str = "stretch",
) -> tuple[np.ndarray, Size]:
    """Read a picture and bring it to a size that the networks take.

    Args:
        path: a file that `read_picture` takes.
        size: the size wanted; if None, each side of the picture is rounded down to a multiple of
            `multiple`.
        fit: how the picture is brought to `size`, one of `FITS`; see `fit_to_size`.

    Returns:
        The picture, float32 [height, width, 3] in [-1, 1], and its size in the file.

    Raises:
        ValueError: if the file is not a picture, or the picture is too large or too small.
        OSError: if the file cannot be read.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")

    def choose_fit(original: Size) -> Fit:
        if size is None:
            return Fit(round_size_down(original, multiple))
        return fit_to_size(original, size, fit)

    image, original = read_picture(path, choose_fit)
    return (image if size is None else pad(image, size)), original


def read_picture(
    path: str | os.PathLike, choose_fit: Callable[[Size], Fit] = Fit
) -> tuple[np.ndarray, Size]:
    """Read the picture in a file.

    It is rotated as its EXIF orientation says, transparent pixels are blended with white, and of an
    animation the first frame is read. Grey of more than 8 bits keeps its precision. Colour profiles
    are not applied, as in diffusers.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix; or HEIC, if the package pillow-heif
            is installed.
        choose_fit: takes the size of the upright picture and returns how it is cropped and resized
            (default: not at all). Channels are resized one at a time to save memory.

    Returns:
        The picture, float32 [height, width, 3] in [-1, 1], and its upright size in the file.

    Raises:
        ValueError: if the file is not a picture, damaged, has more than `MAX_FILE_PIXELS`, or is a
            pipe or device; or if `choose_fit` raises it.
        OSError: if the file cannot be read.
    """
    with open_picture(path) as image:
        _decode(image)
        orientation = read_orientation(image)  # once: damaged EXIF may give another the next time
        size = compute_upright_size(image, orientation)
    try:
        fit = choose_fit(size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with _convert_errors(path):
        return to_array(image, orientation, fit), size


def read_channels(
    path: str | os.PathLike, split: Callable[[Image.Image], Iterable[Image.Image]]
) -> np.ndarray:
    """Read channels of the picture in a file, in its own size and upright.

    Args:
        path: a file that `read_picture` takes.
        split: one of the functions of `pixels` that return the channels of a decoded picture.

    Returns:
        uint8 [height, width, channels].

    Raises:
        ValueError, OSError: as `read_picture` does.
    """
    with open_picture(path) as image:
        _decode(image)
        return to_bytes(split(image), read_orientation(image))


def read_size(path: str | os.PathLike) -> Size:
    """Return the size of the upright picture in a file, of which only the header is read.

    Raises:
        ValueError, OSError: as `open_picture` does.
    """
    with open_picture(path) as image:
        return compute_upright_size(image, read_orientation(image))


class _UnmappedFile(io.BufferedReader):
    """A file that Pillow and libtiff must read, as it has no descriptor to map into memory.

    If a mapped file is truncated meanwhile, the system kills the process.
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@contextmanager
def open_picture(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open a picture file and read only its header.

    What Pillow raises inside the block becomes a ValueError of one line.

    Raises:
        ValueError: if the file is in none of `FORMATS`, damaged, too large, or a pipe or device.
        OSError: if the file cannot be read.
    """
    require_file(path)
    Image.init()  # registers the formats that this Pillow was built with
    with _UnmappedFile(io.FileIO(path)) as file:
        head = file.read(HEAD_BYTES)
        formats = _choose_formats(path, file, head)
        file.seek(0)
        with _convert_errors(path, head), Image.open(file, formats=formats) as image:
            yield image


def require_file(path: str | os.PathLike) -> None:
    """Check that `path` is a regular file of a size that can be read.

    Raises:
        ValueError: if it is a pipe, a device, an address, standard input, or too large.
        OSError: if it does not exist or is a folder.
    """
    name = os.fspath(path)
    if name == STANDARD_INPUT:
        raise ValueError(
            f"{path}: a picture cannot be read from standard input: save it in a file and give its "
            "name (for a file named -: ./-)"
        )
    try:
        status = os.stat(path)
    except OSError as error:
        if ADDRESS.match(name):
            raise ValueError(f"{path}: {explain_address(name)}") from None
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        message = f"{error.strerror}{suggest_name(Path(path))}"
        raise type(error)(error.errno, message, name or "''") from None
    if stat.S_ISDIR(status.st_mode):
        message = f"{os.strerror(errno.EISDIR)}: name a picture in it"
        raise IsADirectoryError(errno.EISDIR, message, name)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: a pipe or device, not a file: save the picture in a file first")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {format_bytes(status.st_size)} is too much for a picture")


def _choose_formats(path: str | os.PathLike, file: BinaryIO, head: bytes) -> list[str]:
    """Return the formats to try for a file that begins with `head`.

    Raises:
        ValueError: if Pillow cannot read it, or would read only a preview in it.
    """
    if is_raw(path, file):
        raise ValueError(f"{path}: {RAW}")
    if not is_heic(head):
        return [name for name in FORMATS if name in Image.OPEN]
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:  # not installed, or its shared library is missing
        raise ValueError(f"{path}: {explain_heic(path)}") from None
    return [HEIF]


def _decode(image: Image.Image) -> None:
    """Decode all pixels of a picture, unless there are too many."""
    width, height = image.size
    if width * height > MAX_FILE_PIXELS:
        limit = f"{MAX_FILE_PIXELS // 10**6} million"
        raise Image.DecompressionBombError(f"{width}x{height} pixels, at most {limit}")
    if width * height == 0:
        raise ValueError("it has no pixels")
    image.load()


@contextmanager
def _convert_errors(path: str | os.PathLike, head: bytes | None = None) -> Iterator[None]:
    """Convert what Pillow raises to a ValueError of one line, and ignore its warnings.

    Args:
        head: the first bytes of the file, which tell what it is if Pillow does not know the format.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.UnidentifiedImageError:
        reason = "the picture is damaged" if head is None else explain_unreadable(path, head)
        raise ValueError(f"{path}: {reason}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the picture is too large ({error})") from None
    except MemoryError:
        raise ValueError(f"{path}: the picture is too large for the memory") from None
    except Exception as error:  # decoders raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the system: no permission, a folder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: the picture is damaged ({reason})") from None
