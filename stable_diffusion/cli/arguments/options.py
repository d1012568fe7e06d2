"""The options of both scripts, in the groups that `--help` shows.

A function a group: it is handed an `add` that takes what argparse's `add_argument` takes. A new
option is one call in its group's function, and a row of the README's tables, which a test holds to
what is said here.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ...config.diffusion import PREDICTION_TYPES
from ...config.known_models import MODELS
from ...images.arrays import FITS
from ...sampler.sampler import SAMPLERS, SCHEDULES
from . import list_models
from .argument_parser import Show
from .value_types import embedding, lora, model_name, number, one_of, seed

Add = Callable[..., None]

MAX_COUNT = 100_000  # of anything that is counted: far beyond what makes sense
POSITIVE = number(int, 1, MAX_COUNT)
PIXELS = number(int, 1, 2**14)  # a side; UNets run out of any memory before
MAX_GUIDANCE = 1000  # more than some 30 makes no picture any more


def start(add: Add) -> None:
    """Of `image2image.py` alone."""
    add("image", help="the picture to start from, in any format Pillow opens")
    add(
        "--strength",
        type=number(float, 0, 1),
        default=0.9,
        metavar="X",
        help="how far to go from the picture, 0 to 1",
    )
    add(
        "--fit",
        choices=FITS,
        by_default="stretch",
        help="how to bring the picture to --width and --height: crop what does not fit, pad with "
        "its border's colours, or stretch it",
    )


def prompt(add: Add) -> None:
    """What to draw, and how the text is read."""
    add("prompt", nargs="?", help="what to draw")
    add(
        "--prompts-file",
        by_default="none",
        metavar="FILE",
        help="in place of the prompt: one a line, or JSON, in lines or an array, with options for "
        "each; - is the standard input. Pictures that exist are not made again",
    )
    add(
        "--from-image",
        by_default="none",
        metavar="FILE",
        help="make a picture of this program again: prompt and options are those in the file, but "
        "for what is given here",
    )
    add(
        "--negative_prompt",
        default="",
        by_default="none",
        metavar="TEXT",
        help="what to steer away from; needs guidance",
    )
    add("--long-prompt", action="store_true", help="read prompts of more than 77 tokens to the end")
    _add_opposite(add, "long_prompt", "cut prompts at 77 tokens")
    add(
        "--prompt-weights",
        action="store_true",
        help=r"let (this) weigh more, [this] less, (this:1.3) as it says; \( is a bracket",
    )
    _add_opposite(add, "prompt_weights", "read brackets as they stand")
    add(
        "--clip-skip",
        type=number(int, 0, MAX_COUNT),
        default=0,
        metavar="N",
        help="layers to leave out at the end of the text encoders",
    )
    add(
        "--embedding",
        type=embedding,
        action="append",
        default=[],
        by_default="none",
        metavar="NAME=FILE",
        help="let NAME in prompts mean a textual inversion, a safetensors file; repeat for more",
    )


def pictures(add: Add) -> None:
    """How many, how large, from which noise."""
    add(
        "--n_images",
        type=POSITIVE,
        by_default="4; of a prompts file, 1 of each",
        metavar="N",
        help="how many",
    )
    add(
        "--width",
        type=PIXELS,
        by_default="by model or image",
        metavar="PIXELS",
        help="of a picture, a multiple of 8",
    )
    add(
        "--height",
        type=PIXELS,
        by_default="by model or image",
        metavar="PIXELS",
        help="of a picture, a multiple of 8",
    )
    add(
        "--seed",
        type=seed,
        by_default="drawn, and printed; of a prompts file, made of the prompts",
        metavar="N",
        help="of the first picture; the others have the ones that follow",
    )


def sampling(add: Add) -> None:
    """How noise becomes a picture."""
    add(
        "--steps",
        type=POSITIVE,
        by_default="by model",
        metavar="N",
        help="steps of denoising",
    )
    add(
        "--cfg",
        type=number(float, 0, MAX_GUIDANCE),
        by_default="by model",
        metavar="X",
        help="guidance: how closely to follow the prompt; at most 1 means none",
    )
    add(
        "--guidance-rescale",
        type=number(float, 0, 1),
        default=0.0,
        by_default="0",
        metavar="X",
        help="how much of the contrast that guidance adds is taken back, 0 to 1",
    )
    add(
        "--sampler",
        choices=SAMPLERS,
        by_default="by model",
        help="how to step from noise to picture",
    )
    add(
        "--schedule",
        choices=SCHEDULES,
        by_default="by model",
        help="how timesteps are spaced; karras is for euler and dpm++2m",
    )


def model(add: Add) -> None:
    """Which weights."""
    add(
        "--model",
        type=model_name,
        default="sdxl",
        help=f"one of {', '.join(MODELS)}; a folder in diffusers' layout; a .safetensors file in "
        "the original one; or a Hugging Face repository, with @revision if wanted",
    )
    add(
        "--vae",
        type=model_name,
        by_default="by model",
        help="a model, folder, repository or file to take the VAE from",
    )
    add(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        by_default="by model",
        help="what the UNet predicts, for a file that does not say",
    )
    add(
        "--lora",
        type=lora,
        action="append",
        default=[],
        by_default="none",
        metavar="FILE[:SCALE]",
        help="a LoRA to add, a safetensors file, and how much of it (1 if left out); repeat for "
        "more",
    )


def memory(add: Add) -> None:
    """What to spare, memory or time."""
    add("--quantize", "-q", action="store_true", help="4-bit text encoders, 8-bit UNet")
    _add_opposite(add, "quantize", "weights as they are")
    add(
        "--float16",
        action="store_true",
        default=None,
        by_default="on a GPU",
        help="half precision; the VAE computes in float32 always",
    )
    _add_opposite(add, "float16", "float32")
    add(
        "--batch-size",
        type=POSITIVE,
        by_default="all of a grid, else by memory",
        metavar="N",
        help="pictures that are denoised at once",
    )
    add(
        "--decoding_batch_size",
        type=POSITIVE,
        default=1,
        metavar="N",
        help="pictures that are decoded at once",
    )
    add(
        "--tiled",
        action="store_true",
        by_default="above 768x768",
        help="decode in strips, which look the same",
    )
    add(
        "--low-memory",
        action="store_true",
        default=None,
        by_default="below 12 GB",
        help="spare memory, not time",
    )
    _add_opposite(add, "low_memory", "spare time, not memory")
    add("--preload-models", action="store_true", help="read all weights before the first step")


def output(add: Add) -> None:
    """Which files are written, and what is in them."""
    add(
        "--output",
        by_default="out.png; of prompts.txt, prompts/",
        metavar="FILE",
        help="where to write: .png, .jpg, .webp, .bmp or .tif. One name is a grid of all pictures; "
        "a folder/, or a name with {index}, {seed} or {model} in it, is a file for each",
    )
    add("--grid", by_default="none", metavar="FILE", help="a grid beside the files for each")
    add("--force", action="store_true", help="overwrite also files for each picture")
    add("--no-metadata", action="store_true", help="leave out of the files how they were made")
    add("--n_rows", type=POSITIVE, default=1, metavar="N", help="rows of the grid")


def reports(add: Add) -> None:
    """What the program shows and tells."""
    add(
        "--preview",
        type=POSITIVE,
        by_default="none",
        metavar="N",
        help="every N steps write a rough look at the pictures in the making to NAME.preview.png "
        "beside them, until they are there; keeps the VAE's decoder in memory",
    )
    add(
        "--preview-vae",
        action="store_true",
        help="let the whole VAE decode the previews, in the time and memory that pictures take",
    )
    add("--verbose", "-v", action="store_true", help="report the peak memory of each phase")
    add(
        "--list-models",
        action=Show,
        show=list_models.models,
        by_default=None,
        help="say which models are known, which are on this machine, and how large they are",
    )
    add(
        "--version",
        action=Show,
        show=list_models.version,
        by_default=None,
        help="say the versions of this program and of MLX, and the device",
    )
    add("--help", "-h", action="help", by_default=None, help="say all this")


START = {"picture to start from": start}
GROUPS: dict[str, Callable[[Add], None]] = {
    "prompt": prompt,
    "pictures": pictures,
    "sampling": sampling,
    "model": model,
    "memory and speed": memory,
    "output": output,
    "reports": reports,
}


def _add_opposite(add: Add, of: str, help: str) -> None:
    """Add `--no-…` for a switch, which may be on in a recipe, or by default."""
    name = f"--no-{of.replace('_', '-')}"
    add(name, action="store_false", dest=of, default=None, by_default=None, help=help)


def add_options(parser: argparse.ArgumentParser, groups: dict[str, Callable[[Add], None]]) -> None:
    """Give the parser these groups of options, by title."""
    for title, add_group in groups.items():
        add_group(partial(_add, parser.add_argument_group(title)))


def types(groups: Iterable[Callable[[Add], None]]) -> dict[str, Callable[[str], Any]]:
    """What turns text into the values of these groups' options, by name; `bool` for switches.

    Of an option that may be repeated: into each of its values.
    """
    found = {}

    def add(name: str, *_: str, action: str | None = None, **settings) -> None:
        kind = one_of(settings["choices"]) if "choices" in settings else settings.get("type", str)
        by_action = {None: kind, "append": kind, "store_true": bool}
        if action in by_action:
            found[name.removeprefix("--").replace("-", "_")] = by_action[action]

    for add_group in groups:
        add_group(add)
    return found


def _add(
    group: argparse._ArgumentGroup,
    name: str,
    *short: str,
    help: str,
    by_default: str | None = "%(default)s",
    **settings,
) -> None:
    """Add an argument, and say in its help what holds where it is left out.

    `--like_this` and `--like-this` mean the same; help shows the one given. `by_default` is for
    where the default does not say it in words; None for the opposite of another option.
    """
    if not name.startswith("-"):
        group.add_argument(name, help=help, **settings)
        return
    if settings.get("action") == "store_true" and by_default == "%(default)s":
        by_default = "off"
    if "choices" in settings:
        choices = settings.pop("choices")
        settings |= {"type": one_of(choices), "metavar": f"{{{','.join(choices)}}}"}
    spellings = (name, "--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_"))
    said = "" if by_default is None else f" (default: {by_default})"
    group.add_argument(*short, *dict.fromkeys(spellings), help=help + said, **settings)
