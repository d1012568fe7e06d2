"""Between picture files and arrays: reading, fitting to the networks, grids, saving."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from ..utils.atomic_files import write_whole
from ..utils.size import Size
from .text_chunks import save_options

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
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that a format, as Pillow writes it, has
MAX_BYTES = 220  # of a name; file systems take 255, and what is not finished has a longer one
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


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
    if len(os.fsencode(path.name)) > MAX_BYTES:
        raise ValueError(f"{path}: the name is longer than {MAX_BYTES} bytes")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")


def check_folder(folder: Path) -> None:
    """Raise ValueError where `folder` is none that can be written to, or made."""
    for part in folder.parts:
        if len(os.fsencode(part)) > MAX_BYTES:
            raise ValueError(f"{folder}: a name is longer than {MAX_BYTES} bytes")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not is_folder(there):
        raise ValueError(f"{folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: the folder {there} is not writable")


def check_size(path: str | os.PathLike, size: Size) -> None:
    """Raise ValueError where the format that a name says has no pictures of this size."""
    file_format = FORMATS[Path(path).suffix.lower()]
    most = MAX_SIDE.get(file_format, math.inf)
    if max(size) > most:
        width, height = size
        raise ValueError(
            f"{path}: {width}x{height} pixels, and {file_format} has at most {most} a side: "
            "use .png"
        )


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
