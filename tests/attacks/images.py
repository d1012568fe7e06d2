"""Any file as a picture: reading it, and starting `image2image.py` from it."""

import io
import os
import stat
import struct
import threading
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.harness import Case, attack, require
from attacks.hostile import NO_FILES
from attacks.pictures import LOSSLESS, MAGIC, any_file, any_image, bomb, damage, huge, pixels
from attacks.programs import image2image_case, program
from stable_diffusion.images.masks import read_mask, read_transparency
from stable_diffusion.images.pixels import split_hidden_colours
from stable_diffusion.images.reading import (
    FORMATS,
    MAX_FILE_PIXELS,
    load_image,
    read_channels,
    read_picture,
    read_size,
)

SUFFIXES = (".png", ".jpg", ".webp", ".eps", ".txt", "", ".safetensors", ".PNG", ".tif")


def read(case: Case, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a file of any name; check that the picture is finite, in range and of the size named."""
    file = case.keep(case.folder / f"a{case.rng.choice(SUFFIXES)}", content)
    return check_picture(*read_picture(file))


def check_picture(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Check a picture and its size, and return both."""
    require(image.dtype == np.float32 and image.shape == (size[1], size[0], 3), f"{image.shape}")
    require(np.isfinite(image).all(), "not finite")
    require(image.min() >= -1 and image.max() <= 1, "out of range")
    require(image.size // 3 <= MAX_FILE_PIXELS, "too large")
    return image, size


@attack("images", cases=600, quick=40)
def formats(case: Case) -> None:
    """Check that every mode in every format of Pillow is read as Pillow converts it."""
    content, image, name = any_file(case.rng)
    try:
        ours, _ = read(case, content)
    except ValueError:
        require(name not in FORMATS or not pillow_reads(content), f"{name} {image.mode} is refused")
        raise
    with Image.open(io.BytesIO(content)) as opened:
        require(
            name in LOSSLESS or opened.size == image.size or name in ("ICNS", "ICO", "PCD"), "size"
        )
        opened.load()
        opaque = opened.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
        if opaque and "transparency" not in opened.info:
            expected = np.asarray(opened.convert("RGB"), np.float32) / 127.5 - 1
            require(np.abs(ours - expected).max() < 1e-6, f"{name} {opened.mode} differs")


def pillow_reads(content: bytes) -> bool:
    """Return whether Pillow by itself decodes a file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.isfinite(np.asarray(image.convert("RGB"))).all()
    except Exception:
        return False


@attack("images", cases=500, quick=20)
def truncated(case: Case) -> None:
    """Truncate a file: it is the same picture, or refused."""
    content, _, name = any_file(case.rng)
    cut = content[: case.rng.randrange(len(content))]
    part, _ = read(case, cut)
    whole, _ = read_picture(case.keep(case.folder / "whole", content))
    same = part.shape == whole.shape and np.abs(part - whole).max() < 0.02
    require(same, f"{name} of {len(content)} bytes cut at {len(cut)} is another picture")


@attack("images", cases=600, quick=40)
def damaged(case: Case) -> None:
    """Change bytes: a picture, or refused; in formats with checksums, the same picture."""
    content, _, name = any_file(case.rng)
    part, _ = read(case, damage(case.rng, content))
    if name == "PNG":
        whole, _ = read_picture(case.keep(case.folder / "whole", content))
        require(part.shape == whole.shape, "another size")
        require(np.abs(part - whole).max() < 1e-6, "other pixels, in spite of checksums")


@attack("images", cases=600, quick=20)
def masks(case: Case) -> None:
    """Read any file, whole or damaged, as a mask and as a transparency: bytes, or refused."""
    content, _, _ = any_file(case.rng)
    if case.rng.random() < 0.5:
        content = damage(case.rng, content)
    file = case.keep(case.folder / f"m{case.rng.choice(SUFFIXES)}", content)
    size = read_size(file)
    for mask in (read_mask(file), read_transparency(file)):
        require(mask.dtype == np.uint8 and mask.shape == (size.height, size.width), f"{mask.shape}")
    pixels = read_channels(file, split_hidden_colours)
    require(pixels.dtype == np.uint8 and pixels.shape == (*mask.shape, 3), f"{pixels.shape}")


@attack("images", cases=300, quick=40)
def headers(case: Case) -> None:
    """Read small files that say that they are large, and the beginnings of every format."""
    if case.rng.random() < 0.5:
        read(case, huge(case.rng))
    else:
        read(case, case.rng.choice(MAGIC) + case.rng.randbytes(case.rng.randrange(600)))


@attack("images", cases=24, quick=0)
def bombs(case: Case) -> None:
    """Read large pictures, or refuse them, within the memory that a case may take."""
    file = case.keep(case.folder / "a.png", bomb(case.rng))
    size = case.rng.choice([None, (64, 64), (512, 512)])
    image, had = load_image(file, size)
    require(size is None or image.shape == (size[1], size[0], 3), f"{image.shape}")
    require(had[0] * had[1] <= MAX_FILE_PIXELS, f"read {had}")


@attack("images", cases=150, quick=15)
def orientations(case: Case) -> None:
    """Read valid and corrupt EXIF: the picture is upright, or as stored."""
    image = Image.fromarray(pixels(case.rng)[..., :3])
    orientation = case.rng.choice([*range(10), 65535])
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "x" * case.rng.randrange(60)
    content = exif.tobytes()
    is_damaged = case.rng.random() < 0.5
    if is_damaged:
        content = content[:6] + damage(case.rng, content[6:])
    file = case.folder / "a"
    name = case.rng.choice(["PNG", "WEBP", "TIFF", "JPEG"])
    try:
        image.save(
            file, name, exif=content, **({} if name == "TIFF" else {"xmp": b"<x"}), lossless=True
        )
    except Exception:  # Pillow may not read what it wrote
        return
    ours, size = check_picture(*read_picture(case.keep(file)))
    turned = orientation in (5, 6, 7, 8)
    if not is_damaged:
        require(size == (image.size[::-1] if turned else image.size), f"{orientation}: {size}")
    require({*size} == {*image.size}, "another size")
    require(abs(ours.mean() - (np.asarray(image) / 127.5 - 1).mean()) < 0.05, "another picture")


@attack("images", cases=80)
def animated(case: Case) -> None:
    """Check that the first frame is read, whatever follows."""
    colours = [tuple(case.rng.randrange(256) for _ in "rgb") for _ in range(4)]
    frames = [Image.new("RGB", (40, 30), colour) for colour in colours]
    file = io.BytesIO()
    name = case.rng.choice(["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
    options = {"lossless": True} if name == "WEBP" else {}
    frames[0].save(file, name, save_all=True, append_images=frames[1:], **options)
    ours, _ = read(case, file.getvalue())
    require(np.abs(ours - (np.array(colours[0]) / 127.5 - 1)).max() < 0.1, f"{name}: another frame")


@attack("images", cases=100, quick=30)
def no_files(case: Case) -> None:
    """Read paths that are not files of pixels."""
    rng, path = case.rng, case.folder / "a.png"
    kind = rng.choice([*sorted(NO_FILES), "through a file"])
    NO_FILES.get(kind, Path.touch)(path)
    named = {"through a file": path / "b.png"}.get(kind, path)
    if rng.random() < 0.2:
        named = Path(f"{path}{rng.choice(['/', '/..', chr(0), chr(0xDCFF), 'x' * 300])}")
    read_picture(named)
    require(False, f"{kind} is no picture")


def iptc(content: bytes) -> bytes:
    """Return a picture inside a record of IPTC, which says that it is a JPEG."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\x40", (3, 30): b"\0\x40", (3, 120): b"\5"}
    heads = (
        b"\x1c" + bytes(tag) + struct.pack(">H", len(value)) + value
        for tag, value in fields.items()
    )
    return b"".join(heads) + b"\x1c\x08\x0a\x84\0" + struct.pack(">I", len(content)) + content


@attack("images", cases=30)
def programs_run(case: Case) -> None:
    """Check that formats that Pillow gives to other programs are refused, and no program runs."""
    marker, gs = case.folder / "ran", case.folder / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {marker}\n")
    gs.chmod(gs.stat().st_mode | stat.S_IXUSR)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{gs.parent}:{path}"
    try:
        eps = io.BytesIO()
        any_image(case.rng).convert("RGB").save(eps, "EPS")
        content = eps.getvalue()
        match case.rng.randrange(3):
            case 0:  # the binary kind
                head = struct.pack("<III", 0xC6D3D0C5, 30, len(content)) + bytes(18)
                content = head + content
            case 1:
                content = iptc(content)
        read(case, content)
    finally:
        os.environ["PATH"] = path
        require(not marker.exists(), "a program was run")
    require(False, "EPS was read")


@attack("images", cases=40)
def changing(case: Case) -> None:
    """Truncate and rewrite a file while it is read."""
    path, rng = case.folder / "a", case.rng
    content = any_file(rng)[0]
    path.write_bytes(content)
    cuts = [rng.randrange(len(content)) for _ in range(20)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for cut in cuts:
                os.truncate(path, cut)
                path.write_bytes(content)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        check_picture(*read_picture(path))
    finally:
        stop.set()
        thread.join()


@cache
def start() -> bytes:
    """Return the file of a picture that can be started from."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(file, "PNG")
    return file.getvalue()


@attack("images", cases=80, quick=3)
def scripts(case: Case) -> None:
    """Make a picture from any file by the script in this process."""
    content = case.rng.choice([any_file(case.rng)[0], start(), huge(case.rng)])
    if case.rng.random() < 0.4:
        content = damage(case.rng, content)
    file = case.keep(case.folder / "in.png", content)
    sizes = ([], ["--width=64", "--height=64"], ["--width=128", "--height=64"])
    image2image_case(case, *case.rng.choice(sizes), file, "a red circle")


@attack("images", cases=25, quick=1)
def as_programs(case: Case) -> None:
    """Make a picture from any file in a process whose standard error is seen completely."""
    content = any_file(case.rng)[0]
    if case.rng.random() < 0.7:
        content = damage(case.rng, content)
    file = case.keep(case.folder / "in.png", content)
    program(case, "image2image.py", "--width=64", "--height=64", str(file), "a red circle")
