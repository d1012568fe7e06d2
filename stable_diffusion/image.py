"""Between picture files and arrays: reading, fitting to the networks, grids, saving."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps

from .metadata import save_options

Size = tuple[int, int]  # (width, height) in pixels, as in Pillow and the scripts' options

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)\.partial", re.DOTALL)  # not finished
SAVE_OPTIONS = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
MULTIPLE = 64  # the VAE makes 8 pixels one latent, the UNet halves latents three times
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
        path: a file of any kind and mode that Pillow opens.
        size: the (width, height) wanted; without one, each side of the picture is brought down to
            a multiple of `multiple`.
        fit: how it comes to `size`, one of `FITS`; see `fit_to_size`.

    Returns:
        The picture, float32 [height, width, 3] in [-1, 1], and the (width, height) it had.

    Raises:
        ValueError: the file is no picture, or the picture is too large or too small.
        OSError: the file cannot be read.
    """
    image = read_image(path)
    height, width, _ = image.shape
    try:
        fitted = fit_to_multiple(image, multiple) if size is None else fit_to_size(image, size, fit)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return fitted, (width, height)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The picture in a file, float32 [height, width, 3] in [-1, 1].

    It stands upright (EXIF), transparency lies over white, and of an animation it is the first
    frame. Grey with more than 8 bits keeps them.

    Raises:
        ValueError: it is no picture, a damaged one, or one that Pillow thinks too large.
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return 2 * _to_rgb(ImageOps.exif_transpose(image)) - 1
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the picture is too large ({error})") from None
    except (OSError, SyntaxError, EOFError, ValueError) as error:  # Pillow's decoders raise all
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: missing, not permitted, a folder
        raise ValueError(f"{path}: the picture is damaged ({error})") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    """A picture of any mode, float32 [H, W, 3] in [0, 1]."""
    if image.mode.startswith(("I", "F")):  # I;16 and its byte orders, I, F: over 8 bits
        grey = np.nan_to_num(np.asarray(image).astype(np.float32))
        grey = grey.clip(0) / _white_level(image.mode, grey.max())
        return np.repeat(grey[..., None], 3, axis=-1)  # [H, W] -> [H, W, 3]
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")) / np.float32(255)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        return rgb * alpha + (1 - alpha)
    return np.asarray(image.convert("RGB")) / np.float32(255)


def _white_level(mode: str, brightest: float) -> float:
    """What counts as white: the least usual level that no pixel exceeds.

    Integers of a deep mode come from 16-bit files; only floats may be on a scale of 1 or 255.
    """
    usual = (1, 255, 65535) if mode == "F" else (65535,)
    return next((level for level in usual if brightest <= level), brightest)


def fit_to_multiple(image: np.ndarray, multiple: int = MULTIPLE) -> np.ndarray:
    """Bring both sides of a picture [H, W, 3] down to multiples of `multiple`, by resizing.

    Raises:
        ValueError: a side is shorter than `multiple`.
    """
    height, width, _ = image.shape
    if min(width, height) < multiple:
        raise ValueError(f"each side must be at least {multiple} pixels, got {width}x{height}")
    return resize(image, (width - width % multiple, height - height % multiple))


def fit_to_size(image: np.ndarray, size: Size, fit: str) -> np.ndarray:
    """Bring a picture [H, W, 3] to `size` (width, height).

    "stretch" changes its proportions where they differ; "crop" leaves out what is too much at two
    opposite sides; "pad" repeats the outermost pixels where something is missing there.

    Raises:
        ValueError: `fit` is none of these.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    height, width, _ = image.shape
    ratios = size[0] / width, size[1] / height
    if fit == "crop":
        left = max(width - size[0] / max(ratios), 0) / 2  # rounding may leave a trace under 0
        top = max(height - size[1] / max(ratios), 0) / 2
        return resize(image, size, (left, top, width - left, height - top))
    if fit == "pad":
        inner = [max(round(n * min(ratios)), 1) for n in (width, height)]
        image = resize(image, tuple(inner))
        missing = [n - shown for n, shown in zip(size, inner, strict=True)]
        x, y = ((n // 2, n - n // 2) for n in missing)
        return np.pad(image, (y, x, (0, 0)), mode="edge")
    return resize(image, size)


def resize(
    image: np.ndarray, size: Size, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize a float32 picture [H, W, 3] in [-1, 1] to `size` (width, height), by Lanczos' filter.

    The filter also averages what falls on one pixel, and rings at edges: the result is clipped.
    With a `box` (left, top, right, bottom), only that part of the picture.
    """
    height, width, _ = image.shape
    if box in (None, (0, 0, width, height)) and (width, height) == tuple(size):
        return image
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS, box))
        for channel in np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    ]
    return np.stack(channels, axis=-1).clip(-1, 1)  # 3 of [h, w] -> [h, w, 3]


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


def check_output(path: str | os.PathLike) -> None:
    """Raise ValueError where `save_image` could not write to `path`; creates nothing."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: the folder {path.parent} is not writable")


def save_image(
    path: str | os.PathLike,
    image: np.ndarray,
    texts: Mapping[str, str] = NO_TEXTS,
    *,
    overwrites: bool = True,
) -> None:
    """Write a picture, uint8 [H, W, 3]; the suffix of `path` says how.

    The file appears whole or not at all: it is written beside `path`, then renamed. Texts go into
    it as `metadata` says.

    Raises:
        ValueError: see `check_output`.
        FileExistsError: there is a file, and `overwrites` is off.
        OSError: writing failed.
    """
    check_output(path)
    path = Path(path)
    file_format = FORMATS[path.suffix.lower()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    options = SAVE_OPTIONS.get(file_format, {}) | save_options(texts, file_format)
    try:
        Image.fromarray(image).save(partial, file_format, **options)
        (os.replace if overwrites else _rename_if_free)(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove what processes that are no more left half written of these pictures."""
    paths = set(paths)
    for folder in {path.parent for path in paths if path.parent.is_dir()}:
        for name in os.listdir(folder):
            match = PARTIAL.fullmatch(name)
            if match is None or folder / match["name"] not in paths:
                continue
            try:
                os.kill(int(match["process"]), 0)  # asks only
            except (ProcessLookupError, OverflowError):
                (folder / name).unlink(missing_ok=True)
            except OSError:
                pass  # another user's, who is at it


def _rename_if_free(partial: Path, path: Path) -> None:
    """Give a file its name, but never another's."""
    try:
        os.link(partial, path)  # unlike a rename, refuses what exists
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links, as exFAT
        if path.exists():
            raise FileExistsError(f"{path} exists") from error
        os.replace(partial, path)
