"""Messages about files that Pillow cannot read: what they are, and what to do."""

import os
import re
import shlex
import sys
from types import ModuleType

import numpy as np
import pytest
from picture_arrays import HEIGHT, RGB, WIDTH, assert_close, blend_with_white, read_image, scale
from PIL import Image, ImageFile, TiffImagePlugin

from stable_diffusion.images.pixels import HEIF, ORIENTATION
from stable_diffusion.images.reading import read_size
from stable_diffusion.images.unreadable import RAW, is_heic
from stable_diffusion.utils.wording import describe_error


def make_ftyp(*brands: bytes) -> bytes:
    """Return the first bytes of an ISO base media file; the second brand is a version."""
    return (8 + 4 * len(brands)).to_bytes(4, "big") + b"ftyp" + b"".join(brands) + bytes(64)


FOREIGN = {  # first bytes of files of these kinds, and a part of the message
    "codestream.jxl": (b"\xff\x0a" + bytes(range(64)), "JPEG XL"),
    "container.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
    "a.svg": (b'<?xml version="1.0"?><!-- <html> -->\n<svg width="1">', "SVG"),
    "doctype.svg": (b'<!DOCTYPE svg PUBLIC "a" [<!ENTITY b "c">]>\n<s:svg xmlns:s="a">', "SVG"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
    "a.ps": (b"%!PS-Adobe-3.0\n", "PostScript"),
    "preview.eps": (b"\xc5\xd0\xd3\xc6" + bytes(range(40)), "PostScript"),
    "a.mp4": (make_ftyp(b"isom", b"\0\0\2\0", b"mp41"), "video"),
    "a.mov": (make_ftyp(b"qt  ", b"\0\0\0\0", b"qt  "), "video"),
    "a.webm": (b"\x1a\x45\xdf\xa3" + bytes(range(40)), "video"),
    "a.avi": (b"RIFF\x24\0\0\0AVI LIST", "video"),
    "a.cr3": (make_ftyp(b"crx ", b"\0\0\0\1", b"isom"), "raw"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "raw"),
    "a.orf": (b"IIRO\x08\0\0\0", "raw"),
    "404.png": (b"\n<!doctype HTML>\n<title>404", "HTML"),
    "html.png": (b"<!-- a --><HTML><svg></svg>", "HTML"),
    "denied.png": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied', "XML"),
    "error.png": (b'{"error": "rate limit"}', "JSON"),
    "list.png": (b'[{"id": 1}]', "JSON"),
    "utf-16.png": ("<html><p>é".encode("utf-16"), "HTML"),
    "cut.png": ("é".encode() * 40 + b"\xc3", "but text"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a", "git lfs pull"),
    "annex.png": (b"../.git/annex/objects/aa/bb/MD5E-s1--c.png", "git annex get"),
    "nothing.png": (b"", "empty file"),
    "zeros.png": (bytes(70_000), "only zeros"),
    "a.zip": (b"PK\x03\x04" + bytes(range(40)), "archive"),
    "a.exr": (b"\x76\x2f\x31\x01" + bytes(range(40)), "OpenEXR"),
    "a.dcm": (bytes(128) + b"DICM", "DICOM"),
}


@pytest.mark.parametrize("suffix", ["", ".jpg"])
@pytest.mark.parametrize("name", FOREIGN)
def test_messages_name_the_kind_of_file(tmp_path, monkeypatch, name, suffix):
    """The content tells what they are, not the suffix."""
    monkeypatch.chdir(tmp_path)
    content, message = FOREIGN[name]
    (tmp_path / f"{name}{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{name}{suffix}: .*{message}") as raised:
        read_image(f"{name}{suffix}")
    assert str(raised.value).count(": ") > 1 or "(" in str(raised.value)  # what to do


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("a.svg", "rsvg-convert -o 'my file-1.png' 'my file.jpg'"),
        ("container.jxl", "djxl 'my file.jpg' 'my file-1.png'"),
        ("a.mp4", "ffmpeg -i 'my file.jpg' -frames:v 1 'my file-1.png'"),
    ],
)
def test_commands_can_be_pasted(tmp_path, monkeypatch, kind, command):
    """They read the file and write to a name that does not exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my file.png").touch()
    (tmp_path / "my file.jpg").write_bytes(FOREIGN[kind][0])
    with pytest.raises(ValueError, match=re.escape(f"({command})")):
        read_image("my file.jpg")


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("dng.jpg", {50706: b"\1\4\0\0"}),
        ("nef.tif", {254: 1, 330: 8}),
        ("pentax.pef", {}),
    ],
)
def test_raw_files_of_cameras(tmp_path, name, tags):
    """They are TIFFs; Pillow would read a preview of a few pixels."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    Image.fromarray(RGB).save(tmp_path / name, "TIFF", tiffinfo=info)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path / name}: {RAW}')}$"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("tag", [259, 262])
@pytest.mark.parametrize("order", ["little", "big"])
def test_raw_files_that_pillow_does_not_know(tmp_path, tag, order):
    """The directory may be anywhere in the file."""
    value = {259: 34713, 262: 32803}[tag]
    begin = {"little": b"II*\0", "big": b"MM\0*"}[order] + (100_000).to_bytes(4, order)
    entry = b"".join(n.to_bytes(size, order) for n, size in ((tag, 2), (3, 2), (1, 4), (value, 2)))
    directory = (1).to_bytes(2, order) + entry + bytes(6)
    (tmp_path / "a.tif").write_bytes(begin.ljust(100_000, b"\0") + directory)
    with pytest.raises(ValueError, match=RAW):
        read_image(tmp_path / "a.tif")


HEIC = make_ftyp(b"heic", b"\0\0\0\0", b"mif1", b"heic")


def test_brands_of_heic():
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        assert is_heic(make_ftyp(brand, bytes(4), b"miaf"))
    assert is_heic(make_ftyp(b"miaf", bytes(4), b"heic"))
    assert not is_heic(make_ftyp(b"avif", bytes(4), b"mif1"))
    assert not is_heic(make_ftyp(b"mif1", bytes(4), b"miaf", b"avif"))
    assert not is_heic(make_ftyp(b"isom", bytes(4))) and not is_heic(b"heic")


def test_heic_without_its_package(tmp_path, monkeypatch):
    """The command in the message reads the file and overwrites none."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.chdir(tmp_path)
    for name, converted in (("a b.heic", "'a b.jpg'"), ("c.jpg", "c-1.jpg"), ("-d.heic", "-d.jpg")):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(ValueError, match=r"HEIC.*pip install pillow-heif") as raised:
            read_image(name)
        dot = "./" if name.startswith("-") else ""
        source = shlex.quote(f"{dot}{name}")
        command = f"sips -s format jpeg {source} --out {dot}{converted}"
        assert str(raised.value).startswith(f"{name}: HEIC") and command in str(raised.value)


@pytest.fixture
def heif_opener(monkeypatch):
    """Replace pillow-heif by a class that returns `RGB`, which its container has rotated."""

    class HeifImageFile(ImageFile.ImageFile):
        format = HEIF

        def _open(self) -> None:
            image = Image.fromarray(RGB)
            self._size, self._mode = image.size, "RGB"
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            self.info["exif"] = exif.tobytes()
            self.tile = []

        def load(self):
            self._im = self.im = Image.fromarray(RGB).im
            return super().load()

    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    package = ModuleType("pillow_heif")
    package.register_heif_opener = lambda: Image.register_open(
        HEIF, HeifImageFile, lambda prefix: prefix[4:8] == b"ftyp"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", package)


def test_heic_with_its_package(tmp_path, heif_opener, monkeypatch):
    """The picture is not rotated again, and the limit on pixels holds."""
    (tmp_path / "a.jpg").write_bytes(HEIC)
    assert_close(read_image(tmp_path / "a.jpg"), scale(RGB))
    assert read_size(tmp_path / "a.jpg") == (WIDTH, HEIGHT)
    monkeypatch.setattr("stable_diffusion.images.reading.MAX_FILE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ValueError, match=r"a\.jpg: the picture is too large"):
        read_image(tmp_path / "a.jpg")


def test_real_heic(tmp_path):
    """It is upright, and transparent pixels are blended with white."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(RGB).save(tmp_path / "a.heic", quality=100, exif=exif.tobytes())
    assert np.abs(read_image(tmp_path / "a.heic") - scale(np.rot90(RGB, -1))).mean() < 0.03
    assert read_size(tmp_path / "a.heic") == (HEIGHT, WIDTH)
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "b.heic", quality=100)
    assert np.abs(read_image(tmp_path / "b.heic") - blend_with_white(RGB, alpha)).mean() < 0.03
    whole = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"cut\.heic: (HEIC that pillow-heif|the picture is dam)"):
        read_image(tmp_path / "cut.heic")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-", "-: a picture cannot be read from standard input: save it in a file"),
        (
            "https://a.org/b/c%20d.jpg?e=1#f",
            "curl -L -o 'c d.jpg' 'https://a.org/b/c%20d.jpg?e=1#f'",
        ),
        ("HTTP://a.org", "curl -L -o picture HTTP://a.org"),
        ("https:/a.org/b.png", "pictures are not downloaded here: download it first (curl"),
        ("file:///b/c%20d.jpg", "name the file ('/b/c d.jpg')"),
        (f"data:image/png;base64,{'A' * 5000}", "an address, not a file"),
        ("s3://a/b.png", "an address, not a file"),
    ],
)
def test_names_that_are_not_files(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_image(name)


def test_missing_files(tmp_path, monkeypatch):
    (tmp_path / "holiday.jpeg").touch()
    (tmp_path / "notes.txt").touch()

    def message_for(name: os.PathLike | str) -> str:
        """Return the message of the error when a file is read."""
        with pytest.raises(OSError) as raised:
            read_image(name)
        return describe_error(raised.value)

    missing = "No such file or directory"
    wrong, right = tmp_path / "Holidays.jpg", tmp_path / "holiday.jpeg"
    assert message_for(wrong) == f"{wrong}: {missing}: did you mean {right}?"
    assert message_for(tmp_path / "xyz.png") == f"{tmp_path / 'xyz.png'}: {missing}"
    nowhere = tmp_path / "nowhere" / "a.png"
    assert message_for(nowhere) == f"{nowhere}: {missing}: there is no folder {nowhere.parent}"
    assert message_for(right / "a.png").endswith(f"Not a directory: there is no folder {right}")
    assert message_for(tmp_path) == f"{tmp_path}: Is a directory: name a picture in it"
    assert message_for("") == f"'': {missing}: name a picture"
    monkeypatch.chdir(tmp_path)
    assert message_for("holidy.jpeg") == f"holidy.jpeg: {missing}: did you mean holiday.jpeg?"
