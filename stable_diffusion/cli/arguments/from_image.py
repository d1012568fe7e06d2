"""`--from-image`: the recipe in a picture, in place of what a command line does not say."""

import argparse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...images.reading import require_file
from ...images.text_chunks import PARAMETERS, RECIPE, read_texts
from ...utils.wording import abbreviate, quote_argument
from ..recipe.recipe import Recipe, sha256
from ..recipe.webui_text import read_parameters
from .value_types import embedding, lora

Types = Mapping[str, Callable[[str], Any]]

# What the recipe says of one option goes where the user says something else of another.
GO_WITH = {"model": ("prediction_type",), "sampler": ("schedule",), "n_images": ("n_rows",)}


def with_recipe(
    args: argparse.Namespace, given: Mapping[str, Any], types: Types
) -> argparse.Namespace:
    """The command line, with the recipe in `args.from_image` where it says nothing.

    Args:
        args: all options, with their defaults.
        given: those that the user gave.
        types: what turns text into the value of an option, or raises
            `argparse.ArgumentTypeError`; `bool` for switches.

    Raises:
        ValueError: there is no recipe, it is damaged, or it is for the other script.
        OSError: the file cannot be read.
    """
    file = args.from_image
    recipe = read_recipe(file)
    if recipe.starts_from_a_picture and "image" not in args:
        start = "" if recipe.image is None else f", {abbreviate(recipe.image)}"
        picture = quote_argument(recipe.image or "", "PICTURE")
        raise ValueError(
            f"{file} was made from a picture{start}: run image2image.py {picture} "
            f"--from-image {quote_argument(file, 'FILE')}"
        )
    replaced = {other for name in given for other in GO_WITH.get(name, ())}
    wanted = {
        name: value
        for name, value in recipe.options.items()
        if name in args and name not in given and name not in replaced
    }
    if "model" not in wanted and "model" not in given:
        raise ValueError(f"{file} does not say which model made it: give --model")
    options = {name: _checked(file, name, value, types) for name, value in wanted.items()}
    _warn_of_changes(file, recipe, given, args)
    return argparse.Namespace(**vars(args) | options | given)


def read_recipe(file: str) -> Recipe:
    """The recipe in a picture, of this program or of AUTOMATIC1111's; warns of what is lost.

    Raises:
        ValueError: there is none, or it is damaged.
        OSError: the file cannot be read.
    """
    texts = read_texts(file)
    if RECIPE in texts:
        return Recipe.from_json(texts[RECIPE], file)
    if PARAMETERS not in texts:
        raise ValueError(
            f"{file} has no recipe in it: it was made by another program, or with --no-metadata, "
            "or what it went through took it out"
        )
    try:
        recipe, model_name, rest = read_parameters(texts[PARAMETERS])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if model_name is not None:
        warnings.warn(f"{file} was made with the model {abbreviate(model_name)}", stacklevel=2)
    if rest:
        warnings.warn(f"{file}: not understood: {abbreviate('; '.join(rest))}", stacklevel=2)
    return recipe


def _checked(file: str, name: str, value: Any, types: Types) -> Any:
    """The value of an option, by the checks that it has on the command line."""
    try:
        if isinstance(value, tuple):  # of an option that may be repeated
            return [types[name](text) for text in value]
        return value if types[name] is bool else types[name](str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{file}: the recipe's {name}: {abbreviate(error)}") from None


def _warn_of_changes(
    file: str, recipe: Recipe, given: Mapping[str, Any], args: argparse.Namespace
) -> None:
    """Say which files are not those that the picture was made with."""
    then = {}
    if "lora" not in given:
        then |= {lora(text)[0]: was for text, was in _pairs(recipe.lora, recipe.lora_sha256)}
    if "embedding" not in given:
        pairs = _pairs(recipe.embedding, recipe.embedding_sha256)
        then |= {embedding(text)[1]: was for text, was in pairs}
    if recipe.image_sha256 is not None and "image" in args and Path(args.image).is_file():
        require_file(args.image)
        then[Path(args.image)] = recipe.image_sha256
    for used, was in then.items():
        if sha256(used) != was:
            warnings.warn(f"{used} is not what {file} was made with", stacklevel=3)


def _pairs(texts: tuple[str, ...], sums: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(texts, sums, strict=False))
