"""The values of options: functions that turn text into a value, or raise one clear message.

All of them raise `argparse.ArgumentTypeError` if the text is not such a value.
"""

import argparse
import os
import re
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from ...config.autoencoder_tiny import TINY_VAES
from ...config.networks import BITS
from ...hires import FILTERS, MAX_SCALE, MIN_SCALE
from ...model_io.hub_file import MAIN, HubName, parse_hub_name
from ...sampler.noise import MAX_SEED
from ...utils.wording import abbreviate, did_you_mean, format_bytes
from ..settings import TRANSPARENCY

MAX_COUNT = 100_000  # of anything that is counted, far more than is useful
MAX_SIDE = 2**14  # pixels; no machine has the memory for the UNet at this size
MAX_BLUR = 1000  # pixels
MAX_GUIDANCE = 1000  # above about 30 the pictures are unusable
MAX_LORA_SCALE = 100
MAX_BYTES = 10_000_000_000  # of a LoRA or embedding, which is read whole for its checksum

SHARE = r"\s*([0-9.]+(?:e-[0-9]+)?)\s*"  # of the steps; recipes may have 1e-05
RANGE = re.compile(f"{SHARE}[-,]{SHARE}")

NEGATIVE_INTEGER = re.compile(r"-[0-9]+")

# A web address, or one without its scheme, of the sites that models come from.
ADDRESS = re.compile(
    r"(?:(?P<scheme>https?|ftp)://)?(?:www\.)?(?P<host>[^/?#]+)(?P<path>/[^?#]*)?.*",
    re.I | re.DOTALL,
)
HUB_HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
OTHER_HOSTS = ("civitai.com", "civitai.green", "civitai.red", "github.com", "modelscope.cn")
NO_MODEL_PATHS = ("datasets", "spaces", "collections")  # on the Hub
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?")
VAE_FILES = (  # in the folder of a VAE, or of a model
    *("config.json", "vae/config.json"),
    *("taesd_decoder.safetensors", "taesdxl_decoder.safetensors"),
)
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")

Number = TypeVar("Number", int, float)


def make_number_parser(kind: type[Number], low: Number, high: Number) -> Callable[[str], Number]:
    """Return a function that reads a number from `low` to `high`."""
    what = "an integer" if kind is int else "a number"

    def parse_number(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high:  # true of NaN, too
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {text}")
        return value

    return parse_number


parse_count = make_number_parser(int, 1, MAX_COUNT)
parse_clip_skip = make_number_parser(int, 0, MAX_COUNT)
parse_side = make_number_parser(int, 1, MAX_SIDE)
parse_blur = make_number_parser(int, 0, MAX_BLUR)
parse_crop = make_number_parser(int, 0, MAX_SIDE)
parse_margin = make_number_parser(int, 0, MAX_SIDE)
parse_fraction = make_number_parser(float, 0, 1)
parse_timestep = make_number_parser(int, 0, MAX_COUNT)
parse_guidance = make_number_parser(float, 0, MAX_GUIDANCE)
parse_lora_scale = make_number_parser(float, -MAX_LORA_SCALE, MAX_LORA_SCALE)


def parse_timesteps(text: str) -> tuple[int, ...]:
    """Return timesteps that are separated by commas, and fall."""
    timesteps = tuple(parse_timestep(part.strip()) for part in text.split(","))
    if any(t <= t_next for t, t_next in pairwise(timesteps)):
        raise argparse.ArgumentTypeError(
            f"must fall from one to the next, such as 999,749,499,249, got {abbreviate(text)}"
        )
    return timesteps


def parse_cfg_range(text: str) -> tuple[float, ...]:
    """Return the two parts of `START-END`, or () for all steps; recipes have a comma."""
    found = parse_range(text, "0.1-0.7")
    return () if found == (0, 1) else found


def parse_range(text: str, example: str) -> tuple[float, float]:
    """Return the two parts of `START-END`, shares of the steps."""
    match = RANGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be START-END, such as {example}, got {abbreviate(text)!r}"
        )
    start, end = (parse_fraction(part) for part in match.groups())
    if start >= end:
        raise argparse.ArgumentTypeError(f"must begin before it ends, got {abbreviate(text)!r}")
    return start, end


def parse_margins(text: str) -> tuple[int, ...]:
    """Return how many pixels to add at the left, top, right and bottom; one number is for all."""
    margins = tuple(parse_margin(part.strip()) for part in text.split(","))
    if len(margins) == 1:
        margins *= 4
    if len(margins) != 4:
        raise argparse.ArgumentTypeError(
            f"must be one number or four, LEFT,TOP,RIGHT,BOTTOM, got {abbreviate(text)}"
        )
    if not any(margins):
        raise argparse.ArgumentTypeError(f"must add pixels at one side at least, got {text}")
    return margins


def parse_hires_scale(text: str) -> float:
    """Return how many times larger each side of a picture becomes, more than 1."""
    try:
        scale = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not MIN_SCALE < scale <= MAX_SCALE:  # true of NaN, too
        raise argparse.ArgumentTypeError(
            f"must be more than {MIN_SCALE:g} and at most {MAX_SCALE:g}, got {text}"
        )
    return scale


def parse_hires_strength(text: str) -> float:
    """Return how far a second pass goes from the enlarged picture, above 0."""
    strength = parse_fraction(text)
    if strength == 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}: it would run no step")
    return strength


def parse_upscaler(text: str) -> Path:
    """Return the path of the file of an upscaler."""
    return _parse_file(text, "upscaler")


def parse_hires_upscale(text: str) -> str:
    """Return the word for a filter that enlarges, or the path of an upscaler's file."""
    if text in FILTERS:
        return text
    if not os.path.isfile(os.path.expanduser(text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {' nor '.join(FILTERS)} nor the .safetensors file of an upscaler"
            + did_you_mean(text, FILTERS)
        )
    return str(parse_upscaler(text))


def make_choice_parser(choices: Collection[str]) -> Callable[[str], str]:
    """Return a function that reads one of these words."""

    def parse_choice(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"invalid choice: {text!r} (choose from {', '.join(choices)})"
                + did_you_mean(text, choices)
            )
        return text

    return parse_choice


def parse_bits(text: str) -> int:
    """Return the number of bits of a weight."""
    return int(make_choice_parser(tuple(map(str, BITS)))(text))


def parse_seed(text: str) -> int:
    """Return a seed. A negative one, which other programs take as random, gets a hint."""
    if NEGATIVE_INTEGER.fullmatch(text.strip()):
        raise argparse.ArgumentTypeError(
            f"must be from 0 to {MAX_SEED}, got {text}: leave it out for a random one"
        )
    return make_number_parser(int, 0, MAX_SEED)(text)


def parse_model_name(text: str) -> str:
    """Return the name of a model. A web address gets a hint at the name."""
    if (address := _parse_address(text)) is not None:
        raise argparse.ArgumentTypeError(_explain_model_address(text, *address))
    return text


def parse_preview_vae(text: str) -> bool | str:
    """Return the name of a VAE, or True if there is none."""
    return parse_model_name(text) if text else True


def names_vae(word: str) -> bool:
    """Return whether a word is the name of a VAE, not a prompt.

    A prompt of several words never is one, unless it is the name of such a file or folder.
    """
    path = os.path.expanduser(word)
    if os.path.isdir(path):
        return any(os.path.isfile(os.path.join(path, name)) for name in VAE_FILES)
    if os.path.isfile(path) or (word.lower().endswith(WEIGHT_SUFFIXES) and " " not in word):
        return word.lower().endswith(WEIGHT_SUFFIXES)
    return word in TINY_VAES or REPOSITORY.fullmatch(word) is not None


def parse_mask(text: str) -> str:
    """Return the file name of a mask, or `TRANSPARENCY`.

    Whether it is a picture is checked when it is read.
    """
    if text == TRANSPARENCY:
        return text
    _refuse_address(text, "mask")
    return text if os.path.lexists(text) else os.path.expanduser(text)


def parse_lora(text: str) -> tuple[str, float]:
    """Return the name and the scale of `NAME` or `NAME:SCALE`. The scale may be negative.

    The name is of a file or folder that exists, or may be of one on the Hub.
    """
    if (address := _parse_address(text)) is not None:
        raise argparse.ArgumentTypeError(_explain_lora_address(text, *address))
    name, colon, scale = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        name, scale = text, "1"
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return str(Path(path)), parse_lora_scale(scale)
    if os.path.exists(path) or parse_hub_name(name) is None:
        return str(_parse_file(name, "LoRA")), parse_lora_scale(scale)
    return name, parse_lora_scale(scale)


def parse_embedding(text: str) -> tuple[str, Path]:
    """Return the name and the file of `NAME=FILE`."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE, got {text!r}")
    return name, _parse_file(file, "embedding")


def _parse_file(text: str, what: str) -> Path:
    """Return the path of a file that exists and is not too large.

    The methods of `Path` cannot be used: they raise for long names and for `~nobody`.
    """
    _refuse_address(text, what)
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        raise argparse.ArgumentTypeError(f"no such {what} file: {text}")
    if (n_bytes := os.path.getsize(path)) > MAX_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text} has {format_bytes(n_bytes)}; the most for a {what} file is "
            f"{format_bytes(MAX_BYTES)}"
        )
    return Path(path)


def _refuse_address(text: str, what: str) -> None:
    """Raise an error that says what to give in place of a web address of a file."""
    if _parse_address(text) is not None:
        raise argparse.ArgumentTypeError(_ask_for_file(text, f"the {what}"))


def _parse_address(text: str) -> tuple[str, list[str]] | None:
    """Return the host and the parts of the path of a web address; None for other text."""
    found = ADDRESS.fullmatch(text.strip())
    if found is None:
        return None
    host = found["host"].lower()
    is_known_host = host in (*HUB_HOSTS, *OTHER_HOSTS)
    if found["scheme"] is None and (not is_known_host or os.path.exists(text)):
        return None
    return host, [unquote(part) for part in (found["path"] or "").split("/") if part]


def _explain_model_address(text: str, host: str, parts: list[str]) -> str:
    """Return a message that says what to give in place of the web address of a model."""
    if host not in HUB_HOSTS or len(parts) < 2 or parts[0] in NO_MODEL_PATHS:
        return _ask_for_file(text, "the model")
    is_of_a_file = len(parts) > 2 and parts[2] in ("blob", "resolve", "raw")
    if is_of_a_file and parts[-1].endswith(WEIGHT_SUFFIXES):
        return _ask_for_file(text, "the model")
    # The address of another file, such as a config, means the model that it belongs to.
    has_revision = len(parts) > 3 and (is_of_a_file or parts[2] in ("tree", "commit"))
    revision = parts[3] if has_revision else "main"
    name = "/".join(parts[:2])
    if revision == "main":
        return f"{abbreviate(text)} is a web address: give {name}"
    return f"{abbreviate(text)} is a web address: give {name}@{revision}"


def _explain_lora_address(text: str, host: str, parts: list[str]) -> str:
    """Return a message that says what to give in place of the web address of a LoRA."""
    if host not in HUB_HOSTS or len(parts) < 2 or parts[0] in NO_MODEL_PATHS:
        return _ask_for_file(text, "the LoRA")
    is_of_a_file = len(parts) > 4 and parts[2] in ("blob", "resolve", "raw")
    revision = parts[3] if len(parts) > 3 else MAIN
    path = "/".join(parts[4:]) if is_of_a_file else ""
    return (
        f"{abbreviate(text)} is a web address: give {HubName('/'.join(parts[:2]), path, revision)}"
    )


def _ask_for_file(text: str, what: str) -> str:
    """Return a message that asks to download a file."""
    return (
        f"{abbreviate(text)} is a web address: download {what} as a .safetensors file, and give "
        "its path"
    )
