"""Write small files in formats that Pillow reads but does not write."""

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image


def _bytes(image: Image.Image, mode: str) -> bytes:
    return image.convert(mode).tobytes()


def _short(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


def _long(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _big(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def cur(image: Image.Image) -> bytes:
    """Return a cursor: a bitmap without its first 14 bytes, with twice its height in the header."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "BMP")
    bitmap = bytearray(file.getvalue()[14:])
    width, height = image.size
    bitmap[8:12] = _long(2 * height)
    mask = bytes(-(-width // 32) * 4 * height)
    sides = bytes([width % 256, height % 256])
    entry = sides + bytes(2) + _short(0, 0) + _long(len(bitmap) + len(mask), 22)
    return _short(0, 2, 1) + entry + bitmap + mask


def dcx(image: Image.Image) -> bytes:
    """Return a file that can hold several PCX, with one."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PCX")
    return _long(0x3ADE68B1, 12, 0) + file.getvalue()


def fli(image: Image.Image) -> bytes:
    """Return an animation of one frame with a palette, uncompressed."""
    grey = _bytes(image, "L")
    palette = _short(1) + b"\0\0" + bytes(each for i in range(256) for each in (i, 255 - i, i))
    chunks = _long(6 + len(palette)) + _short(4) + palette
    chunks += _long(6 + len(grey)) + _short(16) + grey
    frame = _long(16 + len(chunks)) + _short(0xF1FA, 2) + bytes(8) + chunks
    head = _long(128 + len(frame)) + _short(0xAF12, 1, *image.size, 8, 0) + _long(70)
    return head.ljust(80, b"\0") + _long(128, 0) + bytes(40) + frame


def ftex(image: Image.Image) -> bytes:
    """Return an uncompressed texture."""
    data = _bytes(image, "RGB")
    return b"FTEX" + _long(0, *image.size, 1, 1, 1, 32, len(data)) + data


def ftex_dxt1(image: Image.Image) -> bytes:
    """Return a texture in equal blocks of 4 × 4."""
    width, height = image.size
    block = np.asarray(image.convert("RGB")).tobytes()[:8].ljust(8, b"x")
    data = block * (-(-width // 4) * -(-height // 4))
    return b"FTEX" + _long(0, *image.size, 1, 1, 0, 32, len(data)) + data


def gbr(image: Image.Image) -> bytes:
    """Return a brush of GIMP."""
    mode = "L" if image.mode in ("1", "L") else "RGBA"
    head = _big(30, 2, *image.size, len(mode)) + b"GIMP" + _big(9)
    return head + b"a\0" + _bytes(image, mode)


def imt(image: Image.Image) -> bytes:
    """Return greys of IM Tools."""
    width, height = image.size
    head = f"* comment\nwidth {width}\nheight {height}\npixel n8\n"
    return head.encode() + b"\x0c" + _bytes(image, "L")


def mcidas(image: Image.Image) -> bytes:
    """Return a weather satellite's greys of 8, 16 or 32 bits."""
    depth = {"I;16": 2, "I": 4}.get(image.mode, 1)
    kind = {1: np.uint8, 2: ">u2", 4: ">i4"}[depth]
    width, height = image.size
    words = [0] * 65
    words[2], words[9], words[10], words[11] = 4, height, width, depth
    words[14], words[34] = 1, 256
    return _big(*words[1:]) + np.asarray(image.convert("L")).astype(kind).tobytes()


def pcd(image: Image.Image) -> bytes:
    """Return a PhotoCD, which has one size, rotated or not."""
    content = bytearray(96 * 2048 + 768 * 512 * 3 // 2)
    content[2048:2052] = b"PCD_"
    content[2048 + 1538] = image.width % 4
    data = _bytes(image, "L")[: 768 * 512]
    content[96 * 2048 : 96 * 2048 + len(data)] = data
    return bytes(content)


def pixar(image: Image.Image) -> bytes:
    """Return RGB in the format of Pixar's image computer."""
    width, height = image.size
    head = (b"\x80\xe8\0\0".ljust(416, b"\0") + _short(height, width)).ljust(424, b"\0")
    return (head + _short(14, 2)).ljust(1024, b"\0") + _bytes(image, "RGB")


PSD_MODES = {"1": (0, 1), "L": (1, 8), "P": (2, 8), "CMYK": (4, 8), "LAB": (9, 8)}


def psd(image: Image.Image) -> bytes:
    """Return a Photoshop file: one plane per channel, raw or with packed rows."""
    mode = image.mode if image.mode in (*PSD_MODES, "RGBA") else "RGB"
    image = image.convert(mode) if mode != image.mode else image
    number, bits = PSD_MODES.get(mode, (3, 8))
    width, height = image.size
    planes = [band.tobytes() for band in image.split()]
    if mode == "CMYK":
        planes = [bytes(255 - each for each in plane) for plane in planes]
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, len(planes), height, width, bits, number)
    palette = bytes(range(256)) * 3 if mode == "P" else b""
    head += _big(len(palette)) + palette + _big(0, 0)
    if width > 128 or width % 2 or mode == "1":
        return head + b"\0\0" + b"".join(planes)
    packed = b"".join(
        bytes([width - 1]) + plane[y * width : (y + 1) * width]
        for plane in planes
        for y in range(height)
    )
    counts = struct.pack(">H", width + 1) * (height * len(planes))
    return head + b"\0\1" + counts + packed


def sun(image: Image.Image) -> bytes:
    """Return a Sun raster file: rows of whole words, some of them in trivial runs."""
    width, height = image.size
    grey = np.asarray(image.convert("L"))
    kind = 1 if width % 2 else 2
    if kind == 1:
        grey = np.pad(grey, ((0, 0), (0, 1)))
    data = grey.tobytes()
    if kind == 2:
        data = data.replace(b"\x80", b"\x80\0")
    return _big(0x59A66A95, width, height, 8, len(data), kind, 0, 0) + data


def xpm(image: Image.Image) -> bytes:
    """Return C source of sixteen colours."""
    greys = np.asarray(image.convert("L")) // 16
    width, height = image.size
    colours = [f'"{i:x} c #{i * 17:02x}{255 - i:02x}80",' for i in range(16)]
    if image.mode.endswith("A"):
        colours[3] = '"3 c None",'
    rows = (f'"{"".join(f"{each:x}" for each in row)}",' for row in greys)
    lines = ["/* XPM */", "static char *a[] = {", f'"{width} {height} 16 1",', *colours, *rows]
    return "\n".join([*lines, "};"]).encode()


def xvthumb(image: Image.Image) -> bytes:
    """Return a thumbnail of 332 colours."""
    width, height = image.size
    return f"P7 332\n#x\n{width} {height} 255\n".encode() + _bytes(image, "L")


RARE: list[tuple[str, Callable[[Image.Image], bytes]]] = [
    *[("CUR", cur), ("DCX", dcx), ("FLI", fli), ("FTEX", ftex), ("FTEX", ftex_dxt1), ("GBR", gbr)],
    *[("IMT", imt), ("MCIDAS", mcidas), ("PCD", pcd), ("PIXAR", pixar), ("PSD", psd), ("SUN", sun)],
    *[("XPM", xpm), ("XVTHUMB", xvthumb)],
]
