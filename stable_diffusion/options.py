"""The options of both scripts, in the groups that `--help` shows.

A function a group: it is handed an `add` that takes what argparse's `add_argument` takes. A new
option is one call in its group's function, and a row of the README's tables, which a test holds to
what is said here.
"""

import argparse
from collections.abc import Callable
from functools import partial

from .diffusion_config import PREDICTION_TYPES, SAMPLERS, SCHEDULES
from .models import MODELS
from .values import embedding, lora, number, one_of

Add = Callable[..., None]

POSITIVE = number(int, 1)
MOST_SEED = 2**63 - 2**20  # pictures count up from it


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


def prompt(add: Add) -> None:
    add("prompt", help="what to draw")
    add(
        "--negative_prompt",
        default="",
        by_default="none",
        metavar="TEXT",
        help="what to steer away from; needs guidance",
    )
    add("--long-prompt", action="store_true", help="read prompts of more than 77 tokens to the end")
    add(
        "--prompt-weights",
        action="store_true",
        help=r"let (this) weigh more, [this] less, (this:1.3) as it says; \( is a bracket",
    )
    add(
        "--clip-skip",
        type=number(int, 0),
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
    add("--n_images", type=POSITIVE, default=4, metavar="N", help="how many")
    add(
        "--width",
        type=POSITIVE,
        by_default="by model or image",
        metavar="PIXELS",
        help="of a picture, a multiple of 8",
    )
    add(
        "--height",
        type=POSITIVE,
        by_default="by model or image",
        metavar="PIXELS",
        help="of a picture, a multiple of 8",
    )
    add(
        "--seed",
        type=number(int, 0, MOST_SEED),
        by_default="drawn, and printed",
        metavar="N",
        help="of the first picture; the others have the ones that follow",
    )


def sampling(add: Add) -> None:
    add(
        "--steps",
        type=POSITIVE,
        by_default="by model",
        metavar="N",
        help="steps of denoising",
    )
    add(
        "--cfg",
        type=number(float, 0),
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
    add(
        "--model",
        default="sdxl",
        help=f"one of {', '.join(MODELS)}; a folder in diffusers' layout; a .safetensors file in "
        "the original one; or a Hugging Face repository, with @revision if wanted",
    )
    add(
        "--vae",
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
    add("--quantize", "-q", action="store_true", help="4-bit text encoders, 8-bit UNet")
    add(
        "--float16",
        action="store_true",
        default=None,
        by_default="on a GPU",
        help="half precision; the VAE computes in float32 always",
    )
    add("--no-float16", action="store_false", dest="float16", by_default=None, help="float32")
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
    add(
        "--no-low-memory",
        action="store_false",
        dest="low_memory",
        by_default=None,
        help="spare time, not memory",
    )
    add("--preload-models", action="store_true", help="read all weights before the first step")


def output(add: Add) -> None:
    add(
        "--output",
        default="out.png",
        metavar="FILE",
        help="where to write: .png, .jpg, .webp, .bmp or .tif",
    )
    add("--n_rows", type=POSITIVE, default=1, metavar="N", help="rows of the grid")


def reports(add: Add) -> None:
    add("--verbose", "-v", action="store_true", help="report the peak memory of each phase")
    add("--help", "-h", action="help", by_default=None, help="show this and stop")


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


def add_options(parser: argparse.ArgumentParser, groups: dict[str, Callable[[Add], None]]) -> None:
    """Give the parser these groups of options, by title."""
    for title, add_group in groups.items():
        add_group(partial(_add, parser.add_argument_group(title)))


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
