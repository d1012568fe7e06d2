"""Write arrays to picture files, and check beforehand that this is possible."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from ..utils.atomic_files import write_atomically
from ..utils.size import Size
from .text_chunks import make_save_options

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that Pillow can write in a format
MAX_NAME_BYTES = 220  # file systems take 255; the temporary name of an unfinished file is longer
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; a working directory may have been deleted."""
    return path.is_dir() and path.stat().st_nlink > 0


def check_output(path: str | os.PathLike) -> None:
    """Check that `save_image` can write to `path`, without creating anything.

    Raises:
        ValueError: if it cannot.
    """
    path = Path(path)
    check_name(path)
    if not is_folder(path.parent):
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    check_folder(path.parent)


def check_name(path: Path) -> None:
    """Check that a picture can have this name.

    Raises:
        ValueError: if it cannot.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise ValueError(f"{path}: the name is longer than {MAX_NAME_BYTES} bytes")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")


def check_folder(folder: Path) -> None:
    """Check that `folder` can be written to, or be created if it does not exist.

    Raises:
        ValueError: if it cannot.
    """
    for part in folder.parts:
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            raise ValueError(f"{folder}: a name is longer than {MAX_NAME_BYTES} bytes")
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not is_folder(existing):
        raise ValueError(f"{folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: the folder {existing} is not writable")


def check_size(path: str | os.PathLike, size: Size) -> None:
    """Check that the file format of a name allows pictures of this size.

    Raises:
        ValueError: if it does not.
    """
    file_format = FORMATS[Path(path).suffix.lower()]
    limit = MAX_SIDE.get(file_format, math.inf)
    if max(size) > limit:
        width, height = size
        raise ValueError(
            f"{path}: {width}x{height} pixels are too many for {file_format}, which has at most "
            f"{limit} on each side: use .png"
        )


def save_image(
    path: str | os.PathLike,
    image: np.ndarray,
    texts: Mapping[str, str] = NO_TEXTS,
    *,
    overwrites: bool = True,
) -> None:
    """Write a picture to a file, in the format of its suffix.

    The file appears complete or not at all; see `atomic_files.write_atomically`.

    Args:
        image: uint8 [H, W, 3].
        texts: texts to write into the file, as far as its format holds them; see `text_chunks`.
        overwrites: whether an existing file is replaced.

    Raises:
        ValueError: as `check_output` and `check_size` do.
        FileExistsError: if the file exists and `overwrites` is False.
        OSError: if writing fails.
    """
    path = Path(path)
    height, width, _ = image.shape
    check_output(path)
    check_size(path, Size(width, height))
    file_format = FORMATS[path.suffix.lower()]
    options = SAVE_OPTIONS.get(file_format, {}) | make_save_options(texts, file_format)
    encoded = io.BytesIO()  # Pillow writes to memory, so that errors of the disk are the system's
    Image.fromarray(image).save(encoded, file_format, **options)
    try:
        write_atomically(path, encoded.getbuffer(), overwrites=overwrites)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error
