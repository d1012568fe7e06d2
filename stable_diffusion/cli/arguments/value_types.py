"""What the values of options may be: types for argparse, each with one clear message."""

import argparse
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from ...sampler.noise import MAX_SEED
from ...utils.wording import abbreviate, did_you_mean, format_bytes

MAX_BYTES = 10_000_000_000  # of a LoRA or embedding, which is read whole to be known again

MODEL = "the model"  # what an address may be of, besides files

NEGATIVE = re.compile(r"-[0-9]+")

# An address, and one that may have lost its beginning, of the sites that models come from.
ADDRESS = re.compile(
    r"(?:(?P<scheme>https?|ftp)://)?(?:www\.)?(?P<host>[^/?#]+)(?P<path>/[^?#]*)?.*",
    re.I | re.DOTALL,
)
HUB_HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")  # of weights
OTHER_HOSTS = ("civitai.com", "civitai.green", "civitai.red", "github.com", "modelscope.cn")

_N = TypeVar("_N", int, float)


def number(kind: type[_N], low: _N, high: _N) -> Callable[[str], _N]:
    """A number from `low` to `high`."""
    what = "an integer" if kind is int else "a number"

    def parse_number(text: str) -> _N:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high:  # nor is NaN
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {text}")
        return value

    return parse_number


def seed(text: str) -> int:
    """Return the seed of a picture; a negative one, which means "any" elsewhere, gets a hint."""
    if NEGATIVE.fullmatch(text.strip()):
        raise argparse.ArgumentTypeError(
            f"must be from 0 to {MAX_SEED}, got {text}: leave it out for a random one"
        )
    return number(int, 0, MAX_SEED)(text)


def model_name(text: str) -> str:
    """Return what names a model; an address of a web site gets a hint at the name."""
    _refuse_address(text, MODEL)
    return text


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """One of these words."""

    def parse_word(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"invalid choice: {text!r} (choose from {', '.join(known)})"
                + did_you_mean(text, known)
            )
        return text

    return parse_word


def lora(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE:SCALE`: a file that is there, and a scale, which may be negative."""
    _refuse_address(text, "the LoRA")
    file, colon, scale = text.rpartition(":")
    if not colon or os.path.isfile(os.path.expanduser(text)):
        file, scale = text, "1"
    return _file(file, "LoRA"), number(float, -100, 100)(scale)


def embedding(text: str) -> tuple[str, Path]:
    """`NAME=FILE`: a name, and a file that is there."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE, got {text!r}")
    return name, _file(file, "embedding")


def _file(text: str, what: str) -> Path:
    """A file that is there, and not too large for what it is to be.

    `Path`'s own methods raise for long names, and for `~nobody`.
    """
    _refuse_address(text, f"the {what}")
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        raise argparse.ArgumentTypeError(f"no such {what} file: {text}")
    if (n := os.path.getsize(path)) > MAX_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text} has {format_bytes(n)}; the most for a {what} file is {format_bytes(MAX_BYTES)}"
        )
    return Path(path)


def _refuse_address(text: str, what: str) -> None:
    """Say what to give in place of a web address."""
    if (hint := _explain_address(text, what)) is not None:
        raise argparse.ArgumentTypeError(hint)


def _explain_address(text: str, what: str) -> str | None:
    """Say what to give in place of a web address; None for any other text."""
    found = ADDRESS.fullmatch(text.strip())
    if found is None:
        return None
    host = found["host"].lower()
    if found["scheme"] is None and (host not in (*HUB_HOSTS, *OTHER_HOSTS) or os.path.exists(text)):
        return None
    is_model = what == MODEL
    address = f"{abbreviate(text)} is a web address"
    get_file = f"{address}: download {what}, a .safetensors, and give the path of that"
    parts = [unquote(part) for part in (found["path"] or "").split("/") if part]
    if host not in HUB_HOSTS or parts[:1] in (["datasets"], ["spaces"], ["collections"]):
        return get_file
    if len(parts) > 2 and parts[2] in ("blob", "resolve", "raw"):
        if not is_model or parts[-1].endswith(FILE_SUFFIXES):
            return get_file
        parts[2] = "tree"  # a config file: the model is around it
    if len(parts) < 2 or not is_model:
        return get_file
    name = "/".join(parts[:2])
    revision = parts[3] if len(parts) > 3 and parts[2] in ("tree", "commit") else "main"
    if revision == "main":
        return f"{address}: give {name}"
    return f"{address}: give {name}@{revision}"
