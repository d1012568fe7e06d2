"""What is written into pictures: the recipe of each, and of a grid."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .hub import Source
from .jobs import Job
from .metadata import PARAMETERS, RECIPE, read_texts
from .parameters import write_parameters
from .recipe import Recipe, sha256
from .version import __version__

Texts = dict[str, str]  # by keyword


class Record:
    """Writes down how the pictures of a call are made.

    Args:
        args: the command line, with what is computed in half precision decided.
        source: the model.
    """

    def __init__(self, args: argparse.Namespace, source: Source):
        self._is_on = not args.no_metadata
        if self._is_on:
            self._common = _common(args, source)

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


def is_made_otherwise(file: Path, job: Job) -> bool:
    """Whether a picture says that it is not what this job, as it was asked for, would make."""
    try:
        text = read_texts(file).get(RECIPE)
        recipe = None if text is None else Recipe.from_json(text, str(file))
    except (ValueError, OSError):
        return False  # not known
    names = {field.name for field in fields(Recipe)} & {field.name for field in fields(Job)}
    asked = {name: getattr(job, name) for name in names if getattr(job, name) is not None}
    return recipe is not None and any(getattr(recipe, name) != asked[name] for name in asked)


def _common(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What all pictures of the call have in common."""
    model, revision = source.commit or (_without_home(args.model), None)
    common = {
        "model": model,
        "revision": revision,
        "prediction_type": args.prediction_type,
        "lora": tuple(f"{_without_home(file)}:{scale}" for file, scale in args.lora),
        "lora_sha256": tuple(sha256(file) for file, _ in args.lora),
        "embedding": tuple(f"{name}={_without_home(file)}" for name, file in args.embedding),
        "embedding_sha256": tuple(sha256(file) for _, file in args.embedding),
        "quantize": args.quantize,
        "float16": args.float16,
        "version": __version__,
    }
    if args.vae is not None:
        at = None if source.vae is None else source.vae.commit
        common["vae"] = _without_home(args.vae) if at is None else "@".join(at)
    if "image" in args:
        common["fit"] = args.fit or "stretch"
        common["image"] = Path(args.image_file).name
        common["image_sha256"] = sha256(args.image_file)
    return common


def _without_home(path: str | Path) -> str:
    """A name or path, with the user's own folder, which has their name, written `~`."""
    home = os.path.expanduser("~")  # `Path.home` raises where a user has none, as in containers
    path = str(path)
    return str(Path("~", Path(path).relative_to(home))) if Path(path).is_relative_to(home) else path
