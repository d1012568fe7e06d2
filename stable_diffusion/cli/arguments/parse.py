"""The command lines of the scripts, and the checks of them that need no model."""

import argparse
import os
from dataclasses import fields
from pathlib import Path

import numpy as np

from ...images.arrays import MAX_PIXELS, MULTIPLE
from ...images.reading import load_image, read_size
from ...sampler.noise import MAX_SEED
from ...sampler.sampler import require_schedule
from ...utils.size import Size
from ...utils.wording import abbreviate, describe_error
from ..settings import Request, Settings, StartPicture
from ..terminal.console import say
from .argument_parser import Parser
from .from_image import with_recipe
from .options import GROUPS, START, add_options, types
from .other_names import explain_option
from .prompts_file import STANDARD_INPUT, read_requests

TXT2IMAGE_EXAMPLES = """\
examples:
  the model that is in this package, in a few seconds:
    python txt2image.py --model tiny --seed 1 "a red circle on blue"
  four pictures in two rows, of a model that is downloaded first:
    python txt2image.py --n_images 4 --n_rows 2 "An astronaut riding on Mars"
  a model of your own, another size, and what to leave out:
    python txt2image.py --model ./my-model --width 640 --height 448 \\
      --negative_prompt "people" "A lighthouse at dusk"
  fewer steps with a sampler of the second order:
    python txt2image.py --model sd-1-5 --sampler dpm++2m --schedule karras \\
      --steps 20 "A painting of a vase"
  where memory is short; and how much was needed:
    python txt2image.py -q --low-memory -v "A painting of a vase"
  a file for each picture, of a prompt a line; started again, it goes on:
    python txt2image.py --prompts-file prompts.txt --output pictures/
  a picture of this program again, with another seed:
    python txt2image.py --from-image lighthouse.png --seed 2 --output again.png
  what models there are:
    python txt2image.py --list-models
"""
IMAGE2IMAGE_EXAMPLES = """\
examples:
  some way from a picture:
    python image2image.py --strength 0.5 house.png "A house in the snow"
  further, with a model of your own, at the size of the picture that is made:
    python image2image.py --model ./my-model --strength 0.8 \\
      --width 640 --height 448 --seed 1 house.png "A house in the snow"
  four attempts, in two rows:
    python image2image.py --n_images 4 --n_rows 2 house.png "A castle"
"""
MORE = """
Underscores and hyphens in options mean the same. README.md, beside this
script, says more: the models, what memory and time they take, samplers,
prompts, LoRA, and what to do about errors.
"""


def txt2image_parser() -> argparse.ArgumentParser:
    """What `txt2image.py` takes."""
    elsewhere = {f"--{name}": "image2image.py" for name in types(START.values())}
    parser = Parser(
        "[prompt]",
        "Make pictures of a text.",
        TXT2IMAGE_EXAMPLES + MORE,
        elsewhere=elsewhere,
        explain=explain_option,
    )
    add_options(parser, GROUPS)
    return parser


def image2image_parser() -> argparse.ArgumentParser:
    """What `image2image.py` takes."""
    description = "Make pictures of a text that start from a picture."
    examples = IMAGE2IMAGE_EXAMPLES + MORE
    parser = Parser("image [prompt]", description, examples, explain=explain_option)
    add_options(parser, START | GROUPS)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> Settings:
    """Parse and check a command line, and read the picture to start from.

    Wrong usage ends the program with status 2, before any model is loaded.
    """
    args = _parsed(parser, argv)
    if args.from_image is not None:
        args = _with_recipe(parser, args, argv)
    if args.prompt is None and args.prompts_file is None:
        parser.error("a prompt is required, or --prompts-file, or --from-image, which brings one")
    if args.prompt is not None and args.prompts_file is not None:
        parser.error(f"the prompt {abbreviate(args.prompt)!r} and --prompts-file: leave one out")
    if args.n_images is None:
        args.n_images = 4 if args.prompts_file is None else 1
    if args.output is None:
        args.output = _default_output(args.prompts_file)
    if args.prompts_file is None and args.n_images % args.n_rows != 0:
        parser.error(f"--n_rows {args.n_rows} does not divide --n_images {args.n_images}")
    if args.preload_models and args.low_memory:
        parser.error("--preload-models and --low-memory are opposites: leave one out")
    if args.preview_vae and args.preview is None:
        parser.error("--preview-vae is how previews are decoded: say with --preview N how often")
    try:
        requests = _requests(args)
        start = None
        if "image" in args:
            if args.fit is not None and args.width is None:
                raise ValueError("--fit needs --width and --height")
            start = _read_start(args)
    except (ValueError, OSError) as error:
        parser.error(describe_error(error))
    return _settings(args, requests, start)


def _settings(
    args: argparse.Namespace, requests: list[Request], start: StartPicture | None
) -> Settings:
    """Return the settings that the arguments give."""
    names = {field.name for field in fields(Settings)}
    values = {name: value for name, value in vars(args).items() if name in names}
    values |= {"lora": tuple(args.lora), "embedding": tuple(args.embedding)}
    return Settings(**values, requests=tuple(requests), start=start, metadata=not args.no_metadata)


def _parsed(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    namespace: argparse.Namespace | None = None,
) -> argparse.Namespace:
    """What argparse makes of the command line, and a prompt that it has left over.

    Having met a picture before options, it takes a prompt that may be left out for left out.
    """
    args, rest = parser.parse_known_args(argv, namespace)
    words = rest[1:] if rest[:1] == ["--"] else [word for word in rest if not word.startswith("-")]
    if args.prompt is None and len(words) == 1 and rest[-1:] == words:
        args.prompt = rest.pop()
    if rest not in ([], ["--"]):
        is_prompt = args.prompt is not None and not any(word.startswith("-") for word in rest)
        hint = ": put quotes around a prompt of several words" if is_prompt else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    for name in ("image", "from_image"):
        if getattr(args, name, None) is not None:
            setattr(args, name, _without_tilde(getattr(args, name)))
    return args


def _without_tilde(file: str) -> str:
    """Return the name of a file with the user's folder for a `~` that the shell has left in."""
    return file if os.path.lexists(file) else os.path.expanduser(file)


def _with_recipe(
    parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None
) -> argparse.Namespace:
    """The command line, with the recipe of a picture where it says nothing."""
    if args.prompts_file is not None:
        parser.error("--from-image and --prompts-file: leave one out")
    nothing = argparse.Namespace(**dict.fromkeys(vars(args)))  # not to be taken for given
    values = vars(_parsed(parser, argv, nothing))
    given = {name: value for name, value in values.items() if value is not None}
    try:
        args = with_recipe(args, given, types((START | GROUPS).values()))
    except (ValueError, OSError) as error:
        parser.error(describe_error(error))
    return args


def _requests(args: argparse.Namespace) -> list[Request]:
    """The command line, once for each prompt of a prompts file; checked.

    Raises:
        ValueError: an option, or a line of the file, is wrong.
        OSError: the file cannot be read.
    """
    names = {field.name for field in fields(Request)}
    values = {name: value for name, value in vars(args).items() if name in names}
    common = Request(**values | {"prompt": args.prompt or ""})  # a prompts file brings its own
    requests = [common]
    if args.prompts_file is not None:
        known = types((START | GROUPS).values())
        own = {"output", *names} & vars(args).keys()
        if "image" in args:
            own -= {"width", "height"}  # those of the picture
        types_of_lines = {name: known[name] for name in known if name in own}
        requests = read_requests(args.prompts_file, common, types_of_lines)
    for request in requests:
        if (request.width is None) != (request.height is None):
            raise ValueError(f"{request.where}--width and --height go together")
        if request.width is not None and request.width * request.height > MAX_PIXELS:
            raise ValueError(
                f"{request.where}--width {request.width} and --height {request.height} make more "
                f"than {MAX_PIXELS} pixels"
            )
        if request.seed is not None and request.seed + request.n_images - 1 > MAX_SEED:
            raise ValueError(
                f"{request.where}--seed {request.seed} is too large for {request.n_images} "
                f"picture{'s' * (request.n_images > 1)}, as seeds end at {MAX_SEED}: take a "
                "smaller one" + (", or --n_images 1" * (request.n_images > 1 and not request.where))
            )
        if request.sampler is not None:
            try:
                require_schedule(request.sampler, request.schedule)
            except ValueError as error:
                raise ValueError(f"{request.where}{error}") from None
    return requests


def _default_output(prompts_file: str | None) -> str:
    """A grid; of a prompts file a folder, that has its name."""
    if prompts_file is None:
        return "out.png"
    return ("out" if prompts_file == STANDARD_INPUT else Path(prompts_file).stem) + "/"


def _read_start(args: argparse.Namespace) -> StartPicture:
    """Read the picture to start from, at a size that the networks take.

    One that is too large for any model is not read, and black in place of it; when the model's own
    size is known, `jobs.check_start_size` refuses it.
    """
    size = None if args.width is None else Size(args.width, args.height)
    own_size = None
    fit = args.fit or "stretch"
    if size is None:
        own_size = width, height = Size(*read_size(args.image))
        if width * height > MAX_PIXELS and min(width, height) >= MULTIPLE:
            shape = (*(side - side % MULTIPLE for side in (height, width)), 3)
            black = np.broadcast_to(np.float32(-1), shape)  # takes no memory
            return StartPicture(args.image, black, own_size, fit)
    image, (width, height) = load_image(args.image, size, fit=fit)
    new_height, new_width, _ = image.shape
    if (new_width, new_height) != (width, height):
        say(f"Resized {args.image} from {width}x{height} to {new_width}x{new_height}")
    return StartPicture(args.image, image, own_size, fit)
