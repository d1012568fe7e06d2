"""The arguments of the scripts, and the checks of them that need no model."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from .diffusion_config import PREDICTION_TYPES, SAMPLERS, SCHEDULES, require_schedule
from .image import check_output, load_image
from .models import MODELS

_N = TypeVar("_N", int, float)


def txt2image_parser() -> argparse.ArgumentParser:
    """What `txt2image.py` takes."""
    parser = _parser("Make pictures of a text.")
    parser.add_argument("prompt", help="what to draw")
    _add_common(parser)
    return parser


def image2image_parser() -> argparse.ArgumentParser:
    """What `image2image.py` takes."""
    parser = _parser("Make pictures of a text that start from a picture.")
    parser.add_argument("image", help="the picture to start from, in any format Pillow opens")
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument(
        "--strength",
        type=_number(float, 0, 1),
        default=0.9,
        help="how far to go from the picture, 0 to 1 (default: %(default)s)",
    )
    _add_common(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse, check, and read the picture to start from, so that `args.image` is [H, W, 3].

    Wrong usage ends the program with status 2, before any model is loaded.
    """
    args = parser.parse_args(argv)
    if args.n_images % args.n_rows != 0:
        parser.error(f"--n_rows {args.n_rows} does not divide --n_images {args.n_images}")
    if (args.width is None) != (args.height is None):
        parser.error("--width and --height go together")
    if args.preload_models and args.low_memory:
        parser.error("--preload_models and --low_memory are opposites: leave one out")
    try:
        if args.sampler is not None:
            require_schedule(args.sampler, args.schedule)
        check_output(args.output)
        if "image" in args:
            args.image = _read_image(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args


def _read_image(args: argparse.Namespace) -> np.ndarray:
    """The picture, [H, W, 3] in [-1, 1], at a size that the networks take."""
    size = None if args.width is None else (args.width, args.height)
    image, (width, height) = load_image(args.image, size)
    new_height, new_width, _ = image.shape
    if (new_width, new_height) != (width, height):
        print(f"Resized {args.image} from {width}x{height} to {new_width}x{new_height}")
    return image


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, allow_abbrev=False)


def _add_common(parser: argparse.ArgumentParser) -> None:
    def add(name: str, *short: str, **options) -> None:
        """Add `--like_this`, which `--like-this` means too."""
        hyphened = "--" + name[2:].replace("_", "-")
        parser.add_argument(*dict.fromkeys([*short, name, hyphened]), **options)

    positive = _number(int, 1)
    add(
        "--model",
        default="sdxl",
        help=f"one of {', '.join(MODELS)}; a folder in diffusers' layout; a .safetensors file in "
        "the original one; or a Hugging Face repository, with @revision if wanted "
        "(default: %(default)s)",
    )
    add("--vae", help="a model, folder, repository or file to take the VAE from")
    add(
        "--prediction_type",
        choices=PREDICTION_TYPES,
        help="what the UNet predicts, for a file that does not say (default: by model)",
    )
    add("--n_images", type=positive, default=4, help="how many (default: %(default)s)")
    add("--n_rows", type=positive, default=1, help="rows of the grid (default: %(default)s)")
    add("--steps", type=positive, help="steps of denoising (default: by model)")
    add(
        "--cfg",
        type=_number(float, 0),
        help="guidance: how closely to follow the prompt; at most 1 means none (default: by model)",
    )
    add(
        "--guidance_rescale",
        type=_number(float, 0, 1),
        default=0.0,
        help="how much of the contrast that guidance adds is taken back (default: none, 0)",
    )
    add("--negative_prompt", default="", help="what to steer away from; needs guidance")
    add("--long_prompt", action="store_true", help="read prompts of more than 77 tokens to the end")
    add(
        "--prompt_weights",
        action="store_true",
        help=r"let (this) weigh more, [this] less, (this:1.3) as it says; \( is a bracket",
    )
    add(
        "--clip_skip",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="layers to leave out at the end of the text encoders (default: %(default)s)",
    )
    add(
        "--embedding",
        type=_embedding,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="let NAME in prompts mean a textual inversion, a safetensors file; repeat for more",
    )
    add("--width", type=positive, help="of a picture, in pixels (default: by model or image)")
    add("--height", type=positive, help="of a picture, in pixels")
    add("--sampler", choices=SAMPLERS, help="how to step from noise to picture (default: by model)")
    add(
        "--schedule",
        choices=SCHEDULES,
        help="how timesteps are spaced; karras is for euler and dpm++2m (default: by model)",
    )
    add(
        "--seed",
        type=_number(int, 0, 2**63 - 2**20),
        help="of the first picture; the others have the ones that follow (default: drawn)",
    )
    add("--output", default="out.png", help="where to write the picture (default: %(default)s)")
    add(
        "--decoding_batch_size",
        type=positive,
        default=1,
        help="how many pictures to decode at once (default: %(default)s)",
    )
    add(
        "--low_memory",
        action="store_true",
        default=None,
        help="spare memory, not time (default: where there are less than 12 GB)",
    )
    add("--no_low_memory", dest="low_memory", action="store_false", help="spare time")
    add(
        "--tiled",
        action="store_true",
        help="decode in strips, which look the same (default: above 768x768 pixels)",
    )
    add(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA to add, a safetensors file, and how much of it (default: 1); repeat for more",
    )
    add("--quantize", "-q", action="store_true", help="4-bit text encoders, 8-bit UNet")
    add(
        "--float16",
        action="store_true",
        default=None,
        help="compute in half precision (default: on a GPU)",
    )
    add("--no_float16", dest="float16", action="store_false", help="compute in float32")
    add("--preload_models", action="store_true", help="read all weights before the first step")
    add("--verbose", "-v", action="store_true", help="report the peak memory of each phase")


def _lora(text: str) -> tuple[Path, float]:
    """An argument type: a file that is there, and a scale, which may be negative."""
    file, colon, scale = text.rpartition(":")
    if not colon or Path(text).is_file():
        file, scale = text, "1"
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"no such LoRA file: {file}")
    return Path(file), _number(float, -100, 100)(scale)


def _embedding(text: str) -> tuple[str, Path]:
    """An argument type: a name, and a file that is there."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE, got {text!r}")
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"no such embedding file: {file}")
    return name, Path(file)


def _number(kind: type[_N], low: _N, high: _N | None = None) -> Callable[[str], _N]:
    """An argument type: a finite number from `low` to `high`."""
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    what = "an integer" if kind is int else "a number"

    def parse_number(text: str) -> _N:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not math.isfinite(value) or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
        return value

    return parse_number
