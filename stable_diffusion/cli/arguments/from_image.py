"""`--from-image`: options of the recipe in a picture, unless the command line gives them."""

import argparse
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...adapters.find_lora_file import find_lora_file
from ...config.known_models import find_spec
from ...images.reading import require_file
from ...images.text_chunks import PARAMETERS, RECIPE, read_texts
from ...model_io.hub_file import ResolvedFile
from ...utils.wording import abbreviate, join_names, quote_argument
from ..recipe.recipe import Recipe, sha256
from ..recipe.webui_text import read_parameters
from ..terminal.console import say
from .control_values import parse_control
from .option import Option, Script
from .options import all_options
from .value_types import parse_embedding, parse_lora, parse_upscaler

# If the command line gives the first option, the recipe's values of the others are not used.
DEPENDENT_OPTIONS = {
    "model": ("prediction_type",),
    "sampler": ("schedule", "timesteps", "eta"),
    "steps": ("timesteps",),
    "schedule": ("timesteps",),
    "timesteps": ("steps", "schedule", "hires_steps"),
    "hires_steps": ("timesteps",),
    "n_images": ("n_rows",),
    "quantize": ("unet_bits", "text_encoder_bits"),
    "strength": ("image_cfg",),
    "image_cfg": ("strength",),
    "control": ("control_range", "control_canny"),
    "mask": ("invert_mask",),
    "fit": ("mask_crop",),
    "mask_crop": ("fit", "width", "height"),
}


def read_options(file: str, script: Script, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the recipe in a picture has for options that are not given.

    Args:
        file: the picture.
        script: the script that runs.
        given: the values that the command line gives, by the keys of the options.

    Raises:
        ValueError: if there is no recipe, or it is damaged, or for the other script.
        OSError: if the file cannot be read.
    """
    recipe = read_recipe(file)
    if recipe.starts_from_a_picture and script != "image2image.py":
        start = "" if recipe.image is None else f", {abbreviate(recipe.image)}"
        picture = quote_argument(recipe.image or "", "PICTURE")
        raise ValueError(
            f"{file} was made from a picture{start}: run image2image.py {picture} "
            f"--from-image {quote_argument(file, 'FILE')}"
        )
    found = recipe.options
    if script == "image2image.py" and "mask" not in given:
        _require_mask(file, found)
    replaced = {*given, *(key for name in given for key in DEPENDENT_OPTIONS.get(name, ()))}
    spec = find_spec(str(given["model"])) if "model" in given else None
    if spec is not None:  # what only the model of the recipe may take
        replaced.add("strength" if spec.task == "editing" else "image_cfg")
    _warn_of_missing_options(file, script, found.keys() - replaced)
    options = [
        option
        for option in all_options(script)
        if option.in_recipe and option.key in found and option.key not in replaced
    ]
    if "model" not in given and "model" not in found:
        raise ValueError(f"{file} does not say which model made it: give --model")
    values = {option.key: _check(file, option, found[option.key]) for option in options}
    _warn_of_changed_files(file, recipe, given)
    return values


def _warn_of_missing_options(file: str, script: Script, found: Collection[str]) -> None:
    """Warn about options of a recipe that the script does not have.

    Args:
        found: the keys of the options.
    """
    own = {option.key for option in all_options(script)}
    absent = {
        option.key: option.name
        for option in all_options()
        if option.key in found and option.key not in own
    }
    if absent:
        names = join_names(list(absent.values()))
        warnings.warn(
            f"{file} was made with {names}, which {script} does not have: left out", stacklevel=3
        )


def _require_mask(file: str, found: Mapping[str, Any]) -> None:
    """Raise ValueError if a recipe has options of a mask, but does not name the mask.

    The text that AUTOMATIC1111's web UI writes never does.
    """
    if "mask" in found or "outpaint" in found:
        return
    if any(name in found for name in ("invert_mask", "mask_blur", "mask_crop")):
        raise ValueError(f"{file} was made with a mask, which it does not name: add --mask FILE")


def read_recipe(file: str) -> Recipe:
    """Return the recipe in a picture of this program or of AUTOMATIC1111's web UI.

    Warn about the parts of a web UI's recipe that this program cannot use.

    Raises:
        ValueError: if there is no recipe, or it is damaged.
        OSError: if the file cannot be read.
    """
    texts = read_texts(file)
    if RECIPE in texts:
        return Recipe.from_json(texts[RECIPE], file)
    if PARAMETERS not in texts:
        raise ValueError(
            f"{file} has no recipe in it: it was made by another program, or with --no-metadata, "
            "or a program that changed the file removed it"
        )
    try:
        recipe, model_name, not_understood = read_parameters(texts[PARAMETERS])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if model_name is not None:
        warnings.warn(f"{file} was made with the model {abbreviate(model_name)}", stacklevel=2)
    if not_understood:
        warnings.warn(
            f"{file}: not understood: {abbreviate('; '.join(not_understood))}", stacklevel=2
        )
    return recipe


def _check(file: str, option: Option, value: Any) -> Any:
    """Return a value of the recipe after the checks that the command line makes."""
    parse = option.text_parser
    try:
        if option.kind == "numbers":
            return parse(",".join(map(str, value)))
        if isinstance(value, tuple):
            return [parse(text) for text in value]
        return value if option.kind == "switch" else parse(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{file}: the recipe's {option.key}: {abbreviate(error)}") from None


def _warn_of_changed_files(file: str, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Warn if a file that is used has changed since the picture was made with it."""
    checksums: dict[Path | ResolvedFile, str] = {}
    if "lora" not in given:
        for text, checksum in zip(recipe.lora, recipe.lora_sha256, strict=False):
            checksums[find_lora_file(parse_lora(text)[0], say)] = checksum
    if "embedding" not in given:
        for text, checksum in zip(recipe.embedding, recipe.embedding_sha256, strict=False):
            checksums[parse_embedding(text)[1]] = checksum
    if "control" not in given:
        for text, checksum in zip(recipe.control, recipe.control_sha256, strict=False):
            picture = Path(os.path.expanduser(parse_control(text).file))
            if picture.is_file():  # otherwise reading it says what is wrong
                checksums[picture] = checksum
    if recipe.image_sha256 is not None and "image" in given and Path(given["image"]).is_file():
        require_file(given["image"])
        checksums[Path(given["image"])] = recipe.image_sha256
    if recipe.mask_sha256 is not None and recipe.mask is not None and "mask" not in given:
        mask = Path(os.path.expanduser(recipe.mask))
        if mask.is_file():
            require_file(mask)
            checksums[mask] = recipe.mask_sha256
    upscalers = {
        "upscale": (recipe.upscale, recipe.upscale_sha256),
        "hires_upscale": (recipe.hires_upscale, recipe.hires_upscale_sha256),
    }
    for name, (upscaler, upscaler_checksum) in upscalers.items():
        if name not in given and upscaler is not None and upscaler_checksum is not None:
            checksums[parse_upscaler(upscaler)] = upscaler_checksum
    for used, checksum in checksums.items():
        if sha256(used) != checksum:
            warnings.warn(f"{used} has changed since {file} was made with it", stacklevel=3)
