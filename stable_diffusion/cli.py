"""The command lines of the scripts, and the checks of them that need no model."""

import argparse

import numpy as np

from .diffusion_config import require_schedule
from .image import check_output, load_image
from .options import GROUPS, START, add_options


def txt2image_parser() -> argparse.ArgumentParser:
    """What `txt2image.py` takes."""
    parser = _Parser("prompt", "Make pictures of a text.")
    add_options(parser, GROUPS)
    return parser


def image2image_parser() -> argparse.ArgumentParser:
    """What `image2image.py` takes."""
    parser = _Parser("image prompt", "Make pictures of a text that start from a picture.")
    add_options(parser, START | GROUPS)
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


class _Parser(argparse.ArgumentParser):
    """A parser whose help fits the screen: short usage, one spelling of each option."""

    def __init__(self, positionals: str, description: str):
        super().__init__(
            usage=f"%(prog)s [options] {positionals}",
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,  # it is in a group of its own
        )


class _Formatter(argparse.HelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The names of an option in one spelling, and its value once."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        name = action.option_strings[len(short)]  # what follows are its other spellings
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        return ", ".join([*short, name]) + value
