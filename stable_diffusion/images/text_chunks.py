"""Texts inside picture files: which ones a kind of file can hold, and where.

PNG has chunks of text with a keyword. JPEG and WebP have EXIF: the `UserComment` is where
AUTOMATIC1111's web UI has its text, and `MakerNote` is for what only the program understands that
wrote it. TIFF's `ImageDescription` is ASCII, so it holds the JSON alone. BMP holds nothing.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from .reading import open_picture

PARAMETERS = "parameters"  # the keyword that galleries look for
RECIPE = "stable-diffusion-mlx"  # JSON, ASCII
KEYWORDS = (PARAMETERS, RECIPE)
UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"  # how a UserComment may begin
NOTE = f"{RECIPE}\0".encode()  # how our MakerNote begins
MAX_EXIF = 65_533  # bytes, of one segment of a JPEG


def save_options(texts: Mapping[str, str], file_format: str) -> dict[str, Any]:
    """What Pillow's `save` takes, in a format of its, to write texts by keyword."""
    if not texts:
        return {}
    match file_format:
        case "PNG":
            chunks = PngInfo()
            for keyword, text in texts.items():  # ASCII as AUTOMATIC1111 writes it
                (chunks.add_text if text.isascii() else chunks.add_itxt)(keyword, text)
            return {"pnginfo": chunks}
        case "JPEG" | "WEBP":
            return {"exif": _exif(texts)}
        case "TIFF" if RECIPE in texts:
            return {"tiffinfo": {ExifTags.Base.ImageDescription: texts[RECIPE]}}
    return {}


def _exif(texts: Mapping[str, str]) -> bytes:
    """As much of the texts as a JPEG takes: the recipe comes first."""
    tags = {}
    if RECIPE in texts:
        tags[ExifTags.Base.MakerNote] = NOTE + texts[RECIPE].encode()
    if PARAMETERS in texts:
        comment = texts[PARAMETERS].encode("utf-16-be", "replace")
        tags[ExifTags.Base.UserComment] = UNICODE + comment
    while tags:
        exif = Image.Exif()
        exif[ExifTags.IFD.Exif] = tags  # what `get_ifd` gives, Pillow before 11.3 does not write
        if len(content := exif.tobytes()) <= MAX_EXIF:
            return content
        tags.popitem()
    warnings.warn("the recipe is too long for this kind of file: it is left out", stacklevel=2)
    return b""


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """What `KEYWORDS` a picture has texts for, and these; also of other programs.

    Raises:
        ValueError, OSError: as `picture.opened`.
    """
    with open_picture(path) as image:
        found = {keyword: image.info.get(keyword) for keyword in KEYWORDS}
        exif = image.getexif()
        if found[RECIPE] is None and exif:
            found |= _from_exif(exif, image.format)
    return {keyword: str(text) for keyword, text in found.items() if isinstance(text, str)}


def _from_exif(exif: Image.Exif, file_format: str) -> dict[str, str]:
    tags = exif.get_ifd(ExifTags.IFD.Exif)
    found = {}
    note, comment = tags.get(ExifTags.Base.MakerNote), tags.get(ExifTags.Base.UserComment)
    if isinstance(note, bytes) and note.startswith(NOTE):
        found[RECIPE] = note.removeprefix(NOTE).decode("ascii", "replace")
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        found[PARAMETERS] = _utf_16(comment.removeprefix(UNICODE))
    elif isinstance(comment, bytes) and comment.startswith(ASCII):
        found[PARAMETERS] = comment.removeprefix(ASCII).decode("utf-8", "replace")
    if file_format == "TIFF" and exif.get(ExifTags.Base.ImageDescription, "").startswith("{"):
        found[RECIPE] = exif[ExifTags.Base.ImageDescription]
    return found


def _utf_16(content: bytes) -> str:
    """Of either byte order, which the tag does not say: that with more of ASCII."""
    texts = [content.decode(name, "replace") for name in ("utf-16-be", "utf-16-le")]
    return max(texts, key=lambda text: sum(letter.isascii() for letter in text))
