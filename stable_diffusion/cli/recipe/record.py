"""What is written into pictures: the recipe of each, and of a grid."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...config.known_models import MODELS
from ...images.text_chunks import PARAMETERS, RECIPE, read_texts
from ...model_io.model import Model
from ...version import __version__
from ..job import Job
from .recipe import Recipe, sha256
from .webui_text import write_parameters

Texts = dict[str, str]  # by keyword


class Record:
    """Writes down how the pictures of a call are made.

    Args:
        args: the command line, with what is computed in half precision decided.
        opened: the model.
    """

    def __init__(self, args: argparse.Namespace, opened: Model):
        self._is_on = not args.no_metadata
        if self._is_on:
            self._common = _common(args, opened)

    def of(self, job: Job, **more: Any) -> Texts:
        """What goes into the file of a picture."""
        if not self._is_on:
            return {}
        own = {field.name: getattr(job, field.name, None) for field in fields(Recipe)}
        recipe = Recipe(**own | {"n_images": 1, "n_rows": 1} | self._common | more)
        return {PARAMETERS: write_parameters(recipe), RECIPE: recipe.to_json()}

    def of_grid(self, jobs: Sequence[Job], n_rows: int) -> Texts:
        """What goes into a grid of these pictures: nothing where they are not of one recipe."""
        first = jobs[0]
        alike = (
            replace(first, seed=first.seed + i, index=first.index + i) for i in range(len(jobs))
        )
        if list(alike) != list(jobs):
            return {}
        return self.of(first, n_images=len(jobs), n_rows=n_rows)


class Asked:
    """What a call asks for, before its model is opened; to compare with pictures that are there.

    Whether it is the same commit of a model on the Hub is not known then, and so not asked.
    """

    def __init__(self, args: argparse.Namespace):
        self._common = _chosen(args)
        del self._common["image"]  # a file of another name may be the same picture
        if args.float16 is not None:
            self._common["float16"] = args.float16
        self._models, self._vaes = _names(args.model), _names(args.vae)

    def is_other(self, file: Path, job: Job) -> bool:
        """Whether a picture says that it is not what this job, as it was asked for, would make."""
        try:
            text = read_texts(file).get(RECIPE)
            recipe = None if text is None else Recipe.from_json(text, str(file))
        except (ValueError, OSError):
            return False  # not known
        if recipe is None:
            return False
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(Job)}
        own = {name: getattr(job, name) for name in names if getattr(job, name) is not None}
        return (
            not _names(recipe.model) & self._models
            or not _names(recipe.vae) & self._vaes
            or any(getattr(recipe, name) != value for name, value in (own | self._common).items())
        )


def _names(model: str | None) -> set[str | None]:
    """What a model may be written down as, its commit left out."""
    if model is None:
        return {None}
    repos = MODELS[model].repos if model in MODELS else ()
    name = os.path.normpath(_without_home(model))  # m, ./m and m/ are one folder
    return {name, name.partition("@")[0], *repos}


def _common(args: argparse.Namespace, opened: Model) -> dict[str, Any]:
    """What all pictures of the call have in common."""
    model, revision = opened.source.commit or (_without_home(args.model), None)
    common = _chosen(args) | {
        "model": model,
        "revision": revision,
        "float16": args.float16,
        "version": __version__,
    }
    if args.vae is not None:
        at = opened.source_of("vae").commit
        common["vae"] = _without_home(args.vae) if at is None else "@".join(at)
    return common


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line alone says of all pictures."""
    start = args.image_file if "image" in args else None
    return {
        "prediction_type": args.prediction_type,
        "lora": tuple(f"{_without_home(file)}:{scale}" for file, scale in args.lora),
        "lora_sha256": tuple(sha256(file) for file, _ in args.lora),
        "embedding": tuple(f"{name}={_without_home(file)}" for name, file in args.embedding),
        "embedding_sha256": tuple(sha256(file) for _, file in args.embedding),
        "quantize": args.quantize,
        "fit": None if start is None else args.fit or "stretch",
        "image": None if start is None else Path(start).name,
        "image_sha256": None if start is None else sha256(start),
    }


def _without_home(path: str | Path) -> str:
    """A name or path, with the user's own folder, which has their name, written `~`."""
    home = os.path.expanduser("~")  # `Path.home` raises where a user has none, as in containers
    path = str(path)
    return str(Path("~", Path(path).relative_to(home))) if Path(path).is_relative_to(home) else path
