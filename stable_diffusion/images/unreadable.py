"""Explain what a file is that Pillow cannot read, or why there is no file, and what to do.

A kind of file is recognized by its first bytes, never by its suffix: a failed download has the
right suffix, too.
"""

import os
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote

from ..utils.wording import did_you_mean

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://?|data:", re.IGNORECASE)
MIN_LIKENESS = 0.75  # of a suggested file name; the suffix alone makes short names alike
MAX_NAMES = 10_000  # files of a folder that are compared with a misspelt name
HEAD_BYTES = 65_536  # of a file that are examined: an SVG may begin with long comments
HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)  # ISO/IEC 23008-12, annexes B to E; the last two also begin AVIF
AVIF_BRANDS = frozenset((b"avif", b"avis"))
RAW_SUFFIXES = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef"),
        *(".nrw", ".orf", ".pef", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
    )
)  # of files that are TIFFs by their content; some differ from other TIFFs only in the suffix

EXPORT = "open it in a viewer or drawing program, and export it as PNG first"
RAW = "a raw file of a camera: export it as JPEG, PNG or TIFF with a photo program first"
JPEG_XL = "JPEG XL, which Pillow does not read: convert it first ({djxl})"
POSTSCRIPT = f"not a picture but PostScript (EPS): {EXPORT}"
VIDEO = "not a picture but a video: save one of its frames as a picture first ({ffmpeg})"
ARCHIVE = "not a picture but an archive: unpack it first, and name a picture in it"
LAYERS = "a project of a painting program: export it as PNG first"
DOWNLOAD = "the download may have failed: get the picture itself"

# The offset and bytes that identify a kind of file, and what to say about it. `{…}` stands for a
# command of `_make_commands`.
MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\x0a", JPEG_XL),  # a codestream
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL),  # a container
    (0, b"%!", POSTSCRIPT),
    (0, b"\xc5\xd0\xd3\xc6", POSTSCRIPT),  # EPS with a preview
    (0, b"\xd7\xcd\xc6\x9a", f"not a picture but a Windows metafile: {EXPORT}"),
    (40, b" EMF", f"not a picture but a Windows metafile: {EXPORT}"),
    (0, b"\x1a\x45\xdf\xa3", VIDEO),  # WebM and Matroska
    (0, b"\0\0\x01\xba", VIDEO),  # MPEG
    (0, b"\0\0\x01\xb3", VIDEO),
    (0, b"FLV\x01", VIDEO),
    (0, b"OggS", VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", VIDEO),  # WMV
    (4, b"moov", VIDEO),  # old QuickTime
    (4, b"mdat", VIDEO),
    (4, b"wide", VIDEO),
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"IIU\0", RAW),  # Panasonic
    (6, b"HEAPCCDR", RAW),  # the first Canon cameras
    (0, b"\0MRM", RAW),  # Minolta
    (0, b"FOVb", RAW),  # Sigma
    (0, b"PK\x03\x04", ARCHIVE),
    (0, b"PK\x05\x06", ARCHIVE),
    (0, b"\x1f\x8b", ARCHIVE),
    (0, b"BZh", ARCHIVE),
    (0, b"\xfd7zXZ\0", ARCHIVE),
    (0, b"(\xb5/\xfd", ARCHIVE),  # Zstandard
    (0, b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (0, b"Rar!\x1a\x07", ARCHIVE),
    (257, b"ustar", ARCHIVE),
    (0, b"gimp xcf", LAYERS),
    (0, b"8BPS\0\x02", LAYERS),  # large Photoshop documents
    (0, b"\x76\x2f\x31\x01", "OpenEXR, which Pillow does not read: convert it to PNG first"),
    (0, b"#?RADIANCE", "Radiance HDR, which Pillow does not read: convert it to PNG first"),
    (0, b"#?RGBE", "Radiance HDR, which Pillow does not read: convert it to PNG first"),
    (0, b"SIMPLE  =", "FITS, which is not supported: convert it to PNG or TIFF first"),
    (128, b"DICM", "DICOM, which Pillow does not read: convert it to PNG or TIFF first"),
)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DNG_VERSION, NEW_SUBFILE_TYPE, COMPRESSION, PHOTOMETRIC, SUB_FILES = 50706, 254, 259, 262, 330
REDUCED = 1  # bit of NEW_SUBFILE_TYPE: a preview of another picture
RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, DNG's linear raw
RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65000, 65535)  # Sony, Epson, Samsung, Nikon, …
SHORT = 3  # type of an entry: unsigned integers of 16 bits
MAX_ENTRIES = 4096  # that are read of a TIFF's directory


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with `head` is HEIC or HEIF, but not AVIF."""
    brands = _read_brands(head)
    return not brands.isdisjoint(HEIC_BRANDS) and brands.isdisjoint(AVIF_BRANDS)


def explain_heic(path: str | os.PathLike) -> str:
    """Return a message that says how a HEIC file can be read."""
    return (
        "HEIC, which Pillow reads only with the package pillow-heif: install it "
        f"(pip install pillow-heif), or convert the picture first (on a Mac: {_make_sips(path)})"
    )


def is_raw(path: str | os.PathLike, file: BinaryIO) -> bool:
    """Return whether a file is a camera's raw file in the form of a TIFF.

    Pillow would read the small preview in it.

    Args:
        path: its name, of which only the suffix matters.
        file: the opened file, at any position.
    """
    file.seek(0)
    head = file.read(10)
    if not head.startswith(TIFF_MAGIC):
        return False
    values = _read_tiff_values(head, file)
    return (
        Path(path).suffix.lower() in RAW_SUFFIXES
        or head.endswith(b"CR")  # Canon's CR2
        or DNG_VERSION in values
        or values.get(PHOTOMETRIC) in RAW_PHOTOMETRIC
        or values.get(COMPRESSION) in RAW_COMPRESSIONS
        or (SUB_FILES in values and bool(values.get(NEW_SUBFILE_TYPE, 0) & REDUCED))
    )


def explain_unreadable(path: str | os.PathLike, head: bytes) -> str:
    """Return a message that says what a file is that Pillow cannot read, and what to do.

    Args:
        head: its first `HEAD_BYTES` bytes.
    """
    text = _explain(path, head) or "not a picture that can be read: convert it to PNG or JPEG first"
    commands = _make_commands(path)
    return re.sub(r"{(\w+)}", lambda match: commands[match[1]], text)


def explain_address(address: str) -> str:
    """Return a message that says how to get the picture at an address (URL)."""
    scheme, _, rest = address.partition(":")
    path = re.split("[?#]", rest)[0].removeprefix("//").partition("/")[2]  # after the host
    if scheme.lower() == "file":
        return f"an address, not a file: name the file ({shlex.quote(unquote(f'/{path}'))})"
    if scheme.lower() in ("http", "https", "ftp"):
        name = Path(unquote(path)).name or "picture"
        command = shlex.join(["curl", "-L", "-o", _make_operand(name), address])
        return f"pictures are not downloaded here: download it first ({command})"
    return "an address, not a file: save the picture in a file and name that"


def suggest_name(path: Path) -> str:
    """Return the end of a message about a file that does not exist: what may have been meant."""
    if not path.name:
        return ": name a picture"
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES)]
    except OSError:  # no permission to list it
        return ""
    files = {name: str(path.with_name(name)) for name in names}
    return did_you_mean(path.name, (), files, MIN_LIKENESS)


def _explain(path: str | os.PathLike, head: bytes) -> str | None:
    """Return what a file is, with names of commands in braces; None if it is unknown."""
    if not head:
        return "not a picture but an empty file: copy or download it again"
    if not head.strip(b"\0"):
        return "not a picture but only zeros: copy or download it again"
    if _read_brands(head):
        return _explain_iso(head)
    for start, magic, text in MAGIC:
        if head.startswith(magic, start):
            return text
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return VIDEO
    if b"%PDF-" in head[:1024]:  # the specification allows so much before it
        return f"not a picture but a PDF document: {EXPORT}"
    return _explain_text(head)


def _explain_iso(head: bytes) -> str:
    """Return what an ISO base media file is: HEIC, AVIF, a raw file or a video."""
    brands = _read_brands(head)
    if not brands.isdisjoint(AVIF_BRANDS):
        return "AVIF, which this Pillow cannot read: convert it to PNG first"
    if not brands.isdisjoint(HEIC_BRANDS):
        return (
            "HEIC that pillow-heif cannot read, as it is damaged or of a rare kind: convert it "
            "first (on a Mac: {sips})"
        )
    return RAW if b"crx " in brands else VIDEO


def _explain_text(head: bytes) -> str | None:
    """Return what a text file is; None if it is not text."""
    text = _decode(head)
    if text is None:
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "not a picture but a Git LFS pointer to one: fetch it (git lfs pull)"
    if re.match(r"(\.\./)*[^\n]*/annex/objects/", text):
        return "not a picture but a git-annex pointer to one: fetch it (git annex get)"
    root = _find_root_element(text)
    if root == "svg":
        return "not a picture of pixels but a drawing (SVG): export it as PNG first ({rsvg})"
    if root in ("html", "head", "body"):
        return f"not a picture but a web page (HTML): {DOWNLOAD}"
    if root is not None:
        return f"not a picture but XML: {DOWNLOAD}"
    if re.match(r'\{\s*["}]|\[\s*["{\[\]\d]', text):
        return f"not a picture but JSON: {DOWNLOAD}"
    return f"not a picture but text: {DOWNLOAD}"


def _decode(head: bytes) -> str | None:
    """Return the text in a file; None if it is not text."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    # A character that is cut in two at the end of the head is replaced.
    text = head.decode(encoding, "replace")
    strange = sum(not (c.isprintable() or c.isspace()) or c == "\ufffd" for c in text)
    # Text in another encoding has a few strange characters, a binary file about a third.
    return None if "\0" in text or strange > 1 + len(text) / 10 else text.strip()


def _find_root_element(text: str) -> str | None:
    """Return the name of the first element of XML or HTML, in lower case, without a prefix."""
    if re.match(r"<!doctype\s+html", text, re.IGNORECASE):
        return "html"
    before_root = re.compile(
        r"\s*(<!--.*?-->|<\?.*?\?>|<!doctype[^[>]*(\[.*?\]\s*)?>)", re.S | re.I
    )
    position = 0
    while match := before_root.match(text, position):
        position = match.end()
    match = re.compile(r"\s*<(?:[\w.-]+:)?([a-z][\w.-]*)", re.IGNORECASE).match(text, position)
    return None if match is None else match[1].lower()


def _read_brands(head: bytes) -> frozenset[bytes]:
    """Return the brands of an ISO base media file, an empty set if it is another kind of file."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4]), len(head))
    return frozenset((head[8:12], *(head[i : i + 4] for i in range(16, end, 4))))


def _read_tiff_values(head: bytes, file: BinaryIO) -> dict[int, int]:
    """Return the first value of each entry in a TIFF's first directory, by tag.

    Only values of integers are meaningful. BigTIFF, which no camera writes, gives no entries.
    """
    if not head.startswith(TIFF_MAGIC[:2]):
        return {}
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    file.seek(int.from_bytes(head[4:8], order))
    n = min(int.from_bytes(file.read(2), order), MAX_ENTRIES)
    values = {}
    for _ in range(n):
        entry = file.read(12)  # tag, type, count and value
        tag, kind = int.from_bytes(entry[:2], order), int.from_bytes(entry[2:4], order)
        values[tag] = int.from_bytes(entry[8:10] if kind == SHORT else entry[8:], order)
    return values


def _make_commands(path: str | os.PathLike) -> dict[str, str]:
    """Return the shell commands that convert a file, by name."""
    source, png = _make_operand(path), _make_operand(_find_unused_name(path, ".png"))
    return {
        "sips": _make_sips(path),
        "djxl": shlex.join(["djxl", source, png]),
        "ffmpeg": shlex.join(["ffmpeg", "-i", source, "-frames:v", "1", png]),
        "rsvg": shlex.join(["rsvg-convert", "-o", png, source]),
    }


def _make_sips(path: str | os.PathLike) -> str:
    """Return the macOS command that converts a file to JPEG."""
    jpeg = _make_operand(_find_unused_name(path, ".jpg"))
    return shlex.join(["sips", "-s", "format", "jpeg", _make_operand(path), "--out", jpeg])


def _make_operand(path: str | os.PathLike) -> str:
    """Return a file's name in a form that no program mistakes for an option."""
    name = os.fspath(path)
    return f"./{name}" if name.startswith("-") else name


def _find_unused_name(path: str | os.PathLike, suffix: str) -> Path:
    """Return an unused name for a converted file."""
    path = Path(path)
    name = path.with_suffix(suffix)
    n = 1
    while name.exists():
        name = path.with_name(f"{path.stem}-{n}{suffix}")
        n += 1
    return name
