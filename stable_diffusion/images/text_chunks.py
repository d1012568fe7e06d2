"""Texts inside picture files: which texts each file format can hold, and where.

PNG has text chunks with a keyword. JPEG and WebP have EXIF: AUTOMATIC1111's web UI writes its text
as the `UserComment`, and `MakerNote` is meant for data that only the writing program understands.
TIFF's `ImageDescription` is ASCII, so it holds only the JSON. BMP holds no text.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from .reading import open_picture

PARAMETERS = "parameters"  # the keyword that galleries and the web UI look for
RECIPE = "stable-diffusion-mlx"  # JSON in ASCII
KEYWORDS = (PARAMETERS, RECIPE)
UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"  # prefixes of a UserComment
MAKER_NOTE_PREFIX = f"{RECIPE}\0".encode()
MAX_EXIF_BYTES = 65_533  # of one JPEG segment


def make_save_options(texts: Mapping[str, str], file_format: str) -> dict[str, Any]:
    """Return the arguments of Pillow's `save` that write texts into a file.

    Args:
        texts: by keyword, some of `KEYWORDS`.
        file_format: Pillow's name of it, such as "PNG".
    """
    if not texts:
        return {}
    match file_format:
        case "PNG":
            chunks = PngInfo()
            for keyword, text in texts.items():  # ASCII in tEXt, as AUTOMATIC1111 writes it
                (chunks.add_text if text.isascii() else chunks.add_itxt)(keyword, text)
            return {"pnginfo": chunks}
        case "JPEG" | "WEBP":
            return {"exif": _encode_exif(texts)}
        case "TIFF" if RECIPE in texts:
            return {"tiffinfo": {ExifTags.Base.ImageDescription: texts[RECIPE]}}
    return {}


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """Return the texts of a picture by keyword, those of `KEYWORDS` that it has.

    Raises:
        ValueError, OSError: as `open_picture` does.
    """
    with open_picture(path) as image:
        found = {keyword: image.info.get(keyword) for keyword in KEYWORDS}
        exif = image.getexif()
        if found[RECIPE] is None and exif:
            found |= _decode_exif(exif, image.format)
    return {keyword: str(text) for keyword, text in found.items() if isinstance(text, str)}


def _encode_exif(texts: Mapping[str, str]) -> bytes:
    """Return EXIF data with the texts that fit into a JPEG; the recipe comes first."""
    tags = {}
    if RECIPE in texts:
        tags[ExifTags.Base.MakerNote] = MAKER_NOTE_PREFIX + texts[RECIPE].encode()
    if PARAMETERS in texts:
        comment = texts[PARAMETERS].encode("utf-16-be", "replace")
        tags[ExifTags.Base.UserComment] = UNICODE + comment
    while tags:
        exif = Image.Exif()
        exif[ExifTags.IFD.Exif] = tags  # Pillow before 11.3 does not write changes of `get_ifd`
        if len(content := exif.tobytes()) <= MAX_EXIF_BYTES:
            return content
        tags.popitem()
    warnings.warn("the recipe is too long for this kind of file: it is left out", stacklevel=2)
    return b""


def _decode_exif(exif: Image.Exif, file_format: str | None) -> dict[str, str]:
    """Return the texts in EXIF data by keyword."""
    tags = exif.get_ifd(ExifTags.IFD.Exif)
    found = {}
    note, comment = tags.get(ExifTags.Base.MakerNote), tags.get(ExifTags.Base.UserComment)
    if isinstance(note, bytes) and note.startswith(MAKER_NOTE_PREFIX):
        found[RECIPE] = note.removeprefix(MAKER_NOTE_PREFIX).decode("ascii", "replace")
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        found[PARAMETERS] = _decode_utf_16(comment.removeprefix(UNICODE))
    elif isinstance(comment, bytes) and comment.startswith(ASCII):
        found[PARAMETERS] = comment.removeprefix(ASCII).decode("utf-8", "replace")
    if file_format == "TIFF" and exif.get(ExifTags.Base.ImageDescription, "").startswith("{"):
        found[RECIPE] = exif[ExifTags.Base.ImageDescription]
    return found


def _decode_utf_16(content: bytes) -> str:
    """Decode UTF-16 in the byte order that gives more ASCII; the tag does not name the order."""
    texts = [content.decode(name, "replace") for name in ("utf-16-be", "utf-16-le")]
    return max(texts, key=lambda text: sum(letter.isascii() for letter in text))
