"""Between picture files and arrays: reading, fitting to the networks, grids, saving."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from .metadata import save_options
from .picture import Fit, Size, read_picture
from .unfinished import write_whole

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
MOST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that a format, as Pillow writes it, has
MULTIPLE = 64  # the VAE makes 8 pixels one latent, the UNet halves latents three times
MOST_PIXELS = 4096 * 4096  # that are made, or started from: far beyond what the models draw well
MOST_BYTES = 220  # of a name; file systems take 255, and what is not finished has a longer one
LONGEST = 16  # of a side that is suggested: times that of a square of as many pixels
SHAPE_WEIGHT = 10  # a side that is a tenth longer is as bad as e times the pixels
GRID_BORDER = 8  # pixels of black around each picture of a grid
FITS = ("stretch", "crop", "pad")  # how a picture comes to a size of other proportions
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


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


def fitted_size(size: Size, multiple: int = MULTIPLE) -> Size:
    """Both sides brought down to multiples of `multiple`.

    Raises:
        ValueError: a side is shorter than `multiple`, or there are more than `MOST_PIXELS`.
    """
    width, height = size
    if min(width, height) < multiple:
        raise ValueError(
            f"each side must be at least {multiple} pixels, got {width}x{height}: give the width "
            "and height to enlarge it to"
        )
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are too many to start from: give the width and height to "
            "bring them down to"
        )
    return width - width % multiple, height - height % multiple


def similar_size(size: Size, n_pixels: int, multiple: int = MULTIPLE) -> Size:
    """Return the (width, height) of some `n_pixels` that is most like a picture's `size`.

    Both sides are multiples of `multiple`. Proportions matter most, unless they are extreme: of
    sizes that differ little in them, it is the one whose number of pixels is nearest.
    """
    proportion = size[0] / size[1]
    longest = max(int(LONGEST * math.sqrt(n_pixels)) // multiple, 1)
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
    return width * multiple, height * multiple


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


def is_folder(path: Path) -> bool:
    """Whether there is this folder; the one that a program is started in may be deleted."""
    return path.is_dir() and path.stat().st_nlink > 0


def check_output(path: str | os.PathLike) -> None:
    """Raise ValueError where `save_image` could not write to `path`; creates nothing."""
    path = Path(path)
    check_name(path)
    if not is_folder(path.parent):
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    check_folder(path.parent)


def check_name(path: Path) -> None:
    """Raise ValueError where no picture can have this name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if len(os.fsencode(path.name)) > MOST_BYTES:
        raise ValueError(f"{path}: the name is longer than {MOST_BYTES} bytes")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")


def check_folder(folder: Path) -> None:
    """Raise ValueError where `folder` is none that can be written to, or made."""
    for part in folder.parts:
        if len(os.fsencode(part)) > MOST_BYTES:
            raise ValueError(f"{folder}: a name is longer than {MOST_BYTES} bytes")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not is_folder(there):
        raise ValueError(f"{folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: the folder {there} is not writable")


def check_size(path: str | os.PathLike, size: Size) -> None:
    """Raise ValueError where the format that a name says has no pictures of this size."""
    file_format = FORMATS[Path(path).suffix.lower()]
    most = MOST_SIDE.get(file_format, math.inf)
    if max(size) > most:
        width, height = size
        raise ValueError(
            f"{path}: {width}x{height} pixels, and {file_format} has at most {most} a side: "
            "use .png"
        )


def grid_size(n: int, size: Size, n_rows: int) -> Size:
    """Of a grid of `n` pictures of this size; see `make_grid`."""
    if n == 1:
        return size
    width, height = (side + 2 * GRID_BORDER for side in size)
    return n // n_rows * width, n_rows * height


def save_image(
    path: str | os.PathLike,
    image: np.ndarray,
    texts: Mapping[str, str] = NO_TEXTS,
    *,
    overwrites: bool = True,
) -> None:
    """Write a picture, uint8 [H, W, 3]; the suffix of `path` says how.

    The file appears whole or not at all; see `unfinished.write_whole`. Texts go into it as
    `metadata` says.

    Raises:
        ValueError: see `check_output` and `check_size`.
        FileExistsError: there is a file, and `overwrites` is off.
        OSError: writing failed.
    """
    check_output(path)
    check_size(path, image.shape[1::-1])
    path = Path(path)
    file_format = FORMATS[path.suffix.lower()]
    options = SAVE_OPTIONS.get(file_format, {}) | save_options(texts, file_format)
    encoded = io.BytesIO()  # so that errors of writing are the system's, not Pillow's
    Image.fromarray(image).save(encoded, file_format, **options)
    try:
        write_whole(path, encoded.getbuffer(), overwrites=overwrites)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error
