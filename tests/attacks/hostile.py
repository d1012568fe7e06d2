"""What attacks on models share: copies of the embedded model, hostile values, hostile JSON."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from stable_diffusion.config.known_models import PACKAGE

TINY = PACKAGE / "tiny"
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
NUMBERS = [0, 1, -1, 2, 3, 5, 7, 8, 16, 33, 64, 127, 1000, 10**5, 2**31 - 1, 2**31, 2**32, 2**63]
NUMBERS += [10**9, 10**18, 10**30, 10**40, -(2**31), -(2**63), 0.5, 1e-30, 1e30, 1e308, -0.0]
TEXTS = ["", "silu", "relu", "a" * 1000, "\0", "\ud800", "../../x", "/etc/passwd", "é\n", "None"]
OTHERS = [None, True, False, [], {}, [[]], [None], {"a": 1}, [1, "a"], [10**9] * 4, [0, 0], [64]]
OTHERS += [[64] * 100, ["DownBlock2D"] * 3, {"__class__": "os.system"}]


def value(rng: Random) -> Any:
    """Return anything that JSON can express, and some values that it cannot."""
    kind = rng.randrange(6)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice([*TEXTS, float("nan"), float("inf")])
    return rng.choice(OTHERS)


def tiny(folder: Path, *changed: str) -> Path:
    """Link the embedded model into a folder, but copy the files `changed`, which may be edited."""
    model = folder / "model"
    for file in TINY.rglob("*"):
        if file.is_file():
            path = file.relative_to(TINY)
            to = model / path
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.as_posix() in changed:
                shutil.copyfile(file, to)
            else:
                to.symlink_to(file)
    return model


def _bound(path: Path) -> None:
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(path.parent)  # such names are short
        end.bind(path.name)
        os.chdir("/")


def _sparse(path: Path) -> None:
    """Create a large file that takes no space on the disk."""
    with path.open("wb") as file:
        file.write(b"BM")
        file.truncate(1 << 40)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


NO_FILES: dict[str, Callable[[Path], object]] = {  # what a path may be instead of a usable file
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _bound,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "nothing": lambda path: path.symlink_to("/dev/null"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path),
    "broken link": lambda path: path.symlink_to(path.parent / "gone"),
    "empty": Path.touch,
    "zeros of 1 TB": _sparse,
    "unreadable": _unreadable,
    "missing": lambda path: None,
}


def damaged(content: bytes, rng: Random) -> bytes:
    """Return content with changed, missing or additional bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 20))
            case 3:
                del data[at : at + rng.randint(1, 50)]
            case _:
                data += rng.choice([b"\0", b"{}", b" ", b"garbage" * 10])
    return bytes(data)


def json_text(content: Any, rng: Random) -> bytes:
    """Return JSON, or what is almost JSON."""
    text = json.dumps(content)
    match rng.randrange(10):
        case 0:
            return damaged(text.encode(), rng)
        case 1:
            return b"\xef\xbb\xbf" + text.encode()
        case 2:
            return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "cp037"]))
        case 3:
            depth = rng.choice([10, 1000, 100_000])
            start, end = rng.choice([("[", "]"), ('{"a":', "}")])
            return (start * depth + "1" + end * depth).encode()
        case 4:
            number = rng.choice(["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, "-1e999"])
            return text.replace(": ", f': {number}, "x": ', 1).encode()
        case 5:
            names = text.split('"')
            return text.replace(
                "{", '{"' + (names[1] if len(names) > 1 else "a") + '": 1, ', 1
            ).encode()
        case 6:
            return rng.choice([b"", b"null", b"1", b'"a"', b"[]", b"{}", b"\xff\xfe", b"\0" * 100])
        case 7:
            return text.encode() + rng.choice([b",", b"{}", b"\n\n", b"//x", b"\0"])
        case 8:
            return text.replace(":", rng.choice(["::", "=", " "]), 1).encode()
    return text.encode()
