"""Unusual and damaged picture files, from seeds."""

import io
import struct
import warnings
import zlib
from random import Random

import numpy as np
from PIL import Image

from attacks.rare_formats import RARE

MODES = [
    *["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB"],
    *["HSV", "I", "I;16", "I;16B", "I;16L", "F"],
]
LOSSLESS = ("BMP", "DIB", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "PCX", "IM")
# First bytes of files in formats that Pillow reads, even if it cannot write them.
MAGIC = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8 ", b"BM"]
MAGIC += [b"II*\0", b"MM\0*", b"II+\0", b"\0\0\1\0", b"\0\0\2\0", b"icns", b"8BPS\0\1", b"P6 "]
MAGIC += [b"P7\n", b"qoif", b"DDS ", b"BLP2", b"BLP1", b"\n\5\1\x08", b"\x01\xda", b"SIMPLE  =  T"]
MAGIC += [b"FTEX", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6", b"\xd7\xcd\xc6\x9a\0\0"]
MAGIC += [b"\1\0\0\0 EMF", b"BUFR", b"GRIB\0\0\0\1", b"\x89HDF\r\n\x1a\n", b"\0\0\1\xb3"]
MAGIC += [b"/* XPM */", b"#define a_width", b"\x59\xa6\x6a\x95", b"\x80\xe8\0\0"]
MAGIC += [b"\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"DanM", b"\0\0\0 ftypavif", b"P7 332\n"]
MAGIC += [b"\x1c\x02\0", b"\0\0\0\0\0\0\0\4", b"\xb1\x68\xde\x3a", b"LinS", b"\0\0\0\x1cGBR\0"]
MAGIC += [b"\x12\xaf", b"Image type: a\r\n", b"\0" * 128, b"\x7fELF", b"#!/bin/sh\n"]


def pixels(rng: Random, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return noise or a gradient, uint8 [H, W, 4]."""
    width, height = size or (rng.randint(1, 90), rng.randint(1, 90))
    generator = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.5:
        return generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 2, 255 - x - y, x + y], axis=-1).astype(np.uint8)


def any_image(rng: Random, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture of any mode."""
    rgba = Image.fromarray(pixels(rng, size))
    mode = rng.choice(MODES)
    if mode in ("I", "F", "I;16", "I;16L", "I;16B"):
        grey = np.asarray(rgba.convert("L"), np.float32) * rng.choice([1 / 255, 1, 257, -3, 1e30])
        if mode != "F":
            dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
            data = grey.clip(-(2**31), 2**31 - 200).astype(np.int64).astype(dtype)
            return Image.frombytes(mode, rgba.size, data.tobytes())
        grey[rng.randrange(len(grey))] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 0])
        return Image.fromarray(grey)
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"], "LAB": ["RGB"]}.get(mode, [mode])
    image = rgba
    for step in steps:
        image = (image.convert("RGB") if step == "P" else image).convert(step)
    return Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image


def save_options(rng: Random, image: Image.Image) -> dict:
    """Return further data that may be written into a file."""
    options = {}
    if rng.random() < 0.2:
        number = {"RGB": (1, 2, 3), "L": 7, "P": 3, "1": 0}.get(image.mode, 5)
        options["transparency"] = rng.choice([number, bytes(rng.randbytes(9))])
    if rng.random() < 0.2:
        options["icc_profile"] = rng.randbytes(rng.randint(0, 300))
    if rng.random() < 0.2:
        options["compression"] = rng.choice(["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
    return options


def any_file(rng: Random) -> tuple[bytes, Image.Image, str]:
    """Return a complete file, the picture that was written, and the format."""
    Image.init()
    while True:
        image = any_image(rng)
        name, make = rng.choice([*((name, None) for name in sorted(Image.SAVE)), *RARE])
        file = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if make is not None:
                    file.write(make(image))
                else:
                    image.save(file, name, **save_options(rng, image))
        except Exception:  # the format does not have the mode or option
            continue
        if file.getvalue():
            return file.getvalue(), image, name


def damage(rng: Random, content: bytes) -> bytes:
    """Change, exchange, insert or remove bytes, mostly near the beginning."""
    data = bytearray(content)
    reach = rng.choice([32, 200, len(data)])
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(min(reach, len(data)) or 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if data else b"x"
            case 1:
                data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 50))
            case 3:
                del data[at : at + rng.randint(1, 50)]
            case 4:
                data[at : at + 20] = data[: rng.randint(0, 40)]
    return bytes(data)


def png(width: int, height: int, data: bytes, bits: int = 8, colours: int = 2) -> bytes:
    """Return a PNG with these values in its header; `data` is compressed here."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge(rng: Random) -> bytes:
    """Return a small file that claims to be a large picture."""
    width, height = (rng.choice([0, 1, 9_000, 20_000, 65_535, 2**31 - 1, 2**32 - 1]) for _ in "wh")
    short = struct.pack("<HH", width % 65536, height % 65536)
    long = struct.pack("<ii", width % 2**31, height % 2**31)
    match rng.randrange(8):
        case 0:
            return png(width, height, bytes(rng.randrange(5000)), rng.choice([1, 8, 16]))
        case 1:
            return f"P{rng.choice('123456f')} {width} {height} 255\n".encode() + rng.randbytes(99)
        case 2:
            head = struct.pack("<2sIHHII", b"BM", 99, 0, 0, 54, 40)
            return head + long + rng.randbytes(99)
        case 3:
            head = b"GIF89a" + short + b"\xf7\0\0" + bytes(768)
            return head + b"," + bytes(4) + short + b"\0\x08\0"
        case 4:
            kind = rng.choice([1, 2, 3, 9, 10, 11])
            return bytes([0, kind == 1, kind]) + bytes(9) + short + b"\x18\0" + rng.randbytes(99)
        case 5:
            return b"qoif" + struct.pack(">II", width, height) + b"\4\0" + rng.randbytes(99)
        case 6:
            return _huge_tiff(rng, width, height)
        case _:
            file = io.BytesIO()
            Image.new("RGB", (8, 8)).save(file, rng.choice(["JPEG", "JPEG2000", "WEBP", "ICO"]))
            content = file.getvalue()
            return content.replace(b"\0\x08\0\x08", struct.pack("<HH", 65500, 65500)).replace(
                b"\0\0\0\x08" * 2, struct.pack(">II", width, height)
            )


def _huge_tiff(rng: Random, width: int, height: int) -> bytes:
    compression = rng.choice([1, 5, 8, 32773, 34925, 7])
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1}
    values |= {278: rng.choice([1, height]), 279: rng.choice([99, 2**32 - 1])}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + tags + bytes(4) + rng.randbytes(99)


def bomb(rng: Random) -> bytes:
    """Return a valid PNG that is large but small on disk."""
    width, height = rng.choice([(20_000, 100), (100, 20_000), (20_000, 5_900), (20_000, 20_000)])
    bits, colours, channels = rng.choice([(8, 2, 3), (8, 6, 4), (8, 0, 1), (1, 0, 1), (16, 0, 1)])
    row = bytes(1 + -(-width * channels * bits // 8))
    data = b"" if width * height > 2e8 else row * height
    return png(width, height, data, bits, colours)
