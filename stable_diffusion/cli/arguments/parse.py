"""Parse the command lines of the scripts, and check everything that needs no model."""

import argparse
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...utils.wording import describe_error
from ..model_task import GivenPictures, check_known_model
from ..settings import Request, Settings, StartPicture
from .argument_parser import Parser
from .combinations import check_combinations, check_request
from .control_pictures import read_controls
from .few_step_model import split_model
from .from_image import read_options
from .option import Option, Script
from .options import GROUPS, all_options
from .other_names import explain_option
from .prompts_file import STANDARD_INPUT, read_requests
from .start_picture import read_start

N_IMAGES = 4  # the default of --n_images, without a prompts file

TXT2IMAGE_EXAMPLES = """\
examples:
  with the model in this package, in a few seconds:
    python txt2image.py --model tiny --seed 1 "a red circle on blue"
  four pictures in two rows, with a model that is downloaded first:
    python txt2image.py --n_images 4 --n_rows 2 "An astronaut riding on Mars"
  with a model of your own, in another size, and without something:
    python txt2image.py --model ./my-model --width 640 --height 448 \\
      --negative_prompt "people" "A lighthouse at dusk"
  fewer steps, with a sampler of second order:
    python txt2image.py --model sd-1-5 --sampler dpm++2m --schedule karras \\
      --steps 20 "A painting of a vase"
  with little memory; and show how much was used:
    python txt2image.py -q --low-memory -v "A painting of a vase"
  a file for each line of prompts; run it again to continue:
    python txt2image.py --prompts-file prompts.txt --output pictures/
  a picture of this program again, with another seed:
    python txt2image.py --from-image lighthouse.png --seed 2 --output again.png
  list the models:
    python txt2image.py --list-models
"""
IMAGE2IMAGE_EXAMPLES = """\
examples:
  a change of a picture:
    python image2image.py --strength 0.5 house.png "A house in the snow"
  a larger change, with a model of your own, in another size:
    python image2image.py --model ./my-model --strength 0.8 \\
      --width 640 --height 448 --seed 1 house.png "A house in the snow"
  four attempts, in two rows:
    python image2image.py --n_images 4 --n_rows 2 house.png "A castle"
"""
MORE = """
Underscores and hyphens in options mean the same. README.md and the folder
docs of the repository say more about models, memory and time, samplers,
prompts, LoRA and errors.
"""

Values = dict[str, Any]  # of options, by their key


def txt2image_parser() -> Parser:
    """Return the parser of `txt2image.py`."""
    parser = Parser(
        "[prompt]",
        "Make pictures of a text.",
        TXT2IMAGE_EXAMPLES + MORE,
        other_options=_list_other_options("txt2image.py", "image2image.py"),
        explain=explain_option,
    )
    parser.add_options(_select_groups("txt2image.py"))
    return parser


def image2image_parser() -> Parser:
    """Return the parser of `image2image.py`."""
    description = "Make pictures of a text that start from a picture."
    examples = IMAGE2IMAGE_EXAMPLES + MORE
    parser = Parser(
        "image [prompt]",
        description,
        examples,
        other_options=_list_other_options("image2image.py", "txt2image.py"),
        explain=explain_option,
    )
    parser.add_options(_select_groups("image2image.py"))
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> Settings:
    """Parse and check a command line, and read the picture to start from and the prompts file.

    Wrong usage ends the program with status 2, before any model is loaded.

    Args:
        parser: `txt2image_parser()` or `image2image_parser()`.
        argv: the words after the name of the script; those of this process if None.
    """
    given = _parse_words(parser, argv)
    try:
        values = _add_recipe_and_defaults(given)
        check_combinations(values)
        requests = _make_requests(values)
        for request in requests:
            check_request(request)
        check_known_model(values["model"], values["unet"], requests, _find_pictures(values))
        values = split_model(values, requests)
        start = read_start(values) if "image" in values else None
        controls = read_controls(values)
    except (ValueError, OSError) as error:
        parser.error(describe_error(error))
    return _make_settings(values | {"controls": controls}, requests, start)


def _list_other_options(script: Script, other: Script) -> dict[str, Script]:
    """Return the spellings of options that a script does not have, with the script that does."""
    return {
        name: other
        for option in all_options(other)
        for name in option.spellings
        if script not in option.scripts and not option.is_positional
    }


def _select_groups(script: Script) -> dict[str, list[Option]]:
    """Return the groups of the options that a script has."""
    groups = {
        title: [option for option in options if script in option.scripts]
        for title, options in GROUPS.items()
    }
    return {title: options for title, options in groups.items() if options}


def _parse_words(parser: argparse.ArgumentParser, argv: list[str] | None) -> Values:
    """Return the values that the command line gives.

    If options stand between the picture and the prompt, argparse does not take the prompt, because
    it may be left out: then it is among the words that are left over.
    """
    namespace, rest = parser.parse_known_args(argv)
    given: Values = vars(namespace)
    words = rest[1:] if rest[:1] == ["--"] else [word for word in rest if not word.startswith("-")]
    if "prompt" not in given and len(words) == 1 and rest[-1:] == words:
        given["prompt"] = rest.pop()
    if rest not in ([], ["--"]):
        is_prompt = "prompt" in given and not any(word.startswith("-") for word in rest)
        hint = ": put quotes around a prompt of several words" if is_prompt else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    for name in ("image", "from_image"):
        if name in given:
            given[name] = _expand_home(given[name])
    return given


def _expand_home(file: str) -> str:
    """Return a file name with the home folder in place of a `~` that the shell did not expand."""
    return file if os.path.lexists(file) else os.path.expanduser(file)


def _add_recipe_and_defaults(given: Values) -> Values:
    """Return the values of all options of the script.

    Values that are not given come from the recipe in a picture (`--from-image`), or are defaults.

    Raises:
        ValueError: if the picture has no recipe that can be used here.
        OSError: if the picture cannot be read.
    """
    script = _find_script(given)
    options = [option for option in all_options(script) if option.has_value]
    values = {option.key: option.default for option in options}
    if "from_image" in given:
        if "prompts_file" in given:
            raise ValueError("--from-image and --prompts-file: leave one out")
        values |= read_options(given["from_image"], script, given)
    values |= given
    if values["n_images"] is None:
        values["n_images"] = N_IMAGES if values["prompts_file"] is None else 1
    if values["output"] is None:
        values["output"] = _choose_output(values["prompts_file"])
    return values


def _find_script(values: Values) -> Script:
    """Return the script that runs: only one of them has a picture to start from, and needs it."""
    return "image2image.py" if "image" in values else "txt2image.py"


def _choose_output(prompts_file: str | None) -> str:
    """Return the default of `--output`: a grid; with a prompts file, a folder of its name."""
    if prompts_file is None:
        return "out.png"
    return ("out" if prompts_file == STANDARD_INPUT else Path(prompts_file).stem) + "/"


def _make_requests(values: Values) -> list[Request]:
    """Return the request of the command line, or those of the prompts file.

    Raises:
        ValueError: if a line of the file is wrong.
        OSError: if the file cannot be read.
    """
    # With a prompts file, this request has the values that its lines do not give.
    prompt = values["prompt"] or ""
    request = Request(**_select(values, _field_names(Request)) | {"prompt": prompt})
    if values["prompts_file"] is None:
        return [request]
    script = _find_script(values)
    options = {option.key: option for option in all_options() if script in option.line_scripts}
    return read_requests(values["prompts_file"], request, options)


def _find_pictures(values: Values) -> GivenPictures:
    """Return whether there is a picture to start from, a mask, and a picture for a network."""
    has_mask = any(values.get(name) is not None for name in ("mask", "outpaint"))
    return GivenPictures("image" in values, has_mask, has_control=bool(values.get("control")))


def _make_settings(values: Values, requests: list[Request], start: StartPicture | None) -> Settings:
    """Return the settings that the values of the options mean."""
    return Settings(
        **_select(values, _field_names(Settings))
        | {
            "requests": tuple(requests),
            "start": start,
            "lora": tuple(values["lora"]),
            "embedding": tuple(values["embedding"]),
            "metadata": not values["no_metadata"],
        }
    )


def _select(values: Values, names: Iterable[str]) -> Values:
    return {name: values[name] for name in names if name in values}


def _field_names(kind: type[Request] | type[Settings]) -> list[str]:
    return [field.name for field in fields(kind)]
