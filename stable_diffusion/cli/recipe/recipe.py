"""How a picture was made: all that is needed to make it again, and its JSON."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from ...config.strict_config import Config
from ...utils.strict_json import parse_json
from ...utils.wording import abbreviate

SCHEMA = 1  # of the JSON; it grows when older programs could not read it any more
MAX_CHARACTERS = 1_000_000  # of a recipe in a file; beyond, it is a joke or an attack


@dataclass(frozen=True)
class Recipe(Config):
    """One picture, or a grid. The names are those of the options; None is what is not known."""

    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None  # as `--model` takes it
    revision: str | None = None  # the commit, of a model on the Hub
    vae: str | None = None
    prediction_type: str | None = None
    lora: tuple[str, ...] = ()  # FILE:SCALE, as `--lora` takes it
    lora_sha256: tuple[str, ...] = ()  # of the files, in the same order
    embedding: tuple[str, ...] = ()  # NAME=FILE
    embedding_sha256: tuple[str, ...] = ()
    seed: int | None = None  # of this very picture; of a grid, the first one's
    n_images: int | None = None
    n_rows: int | None = None
    width: int | None = None  # pixels, of a picture
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance_rescale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    clip_skip: int | None = None
    long_prompt: bool | None = None
    prompt_weights: bool | None = None
    quantize: bool | None = None
    float16: bool | None = None
    strength: float | None = None  # this and the next three: of one that starts from a picture
    fit: str | None = None
    image: str | None = None  # the name of its file, without the folder
    image_sha256: str | None = None
    version: str | None = None  # of this program

    IGNORED = frozenset({"schema", "program"})
    # What no option takes as it is.
    NOT_OPTIONS: ClassVar[frozenset[str]] = frozenset(
        {"revision", "lora_sha256", "embedding_sha256", "image", "image_sha256", "version"}
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options that make the picture again, by name; a model on the Hub at its commit."""
        known = {name: value for name, value in self._known.items() if name not in self.NOT_OPTIONS}
        if self.model is not None and self.revision is not None:
            known["model"] = f"{self.model}@{self.revision}"
        return known

    @property
    def starts_from_a_picture(self) -> bool:
        """Whether it is one of `image2image.py`."""
        return self.strength is not None

    def to_json(self) -> str:
        """ASCII, so that it stays what it is wherever it is written; see `from_json`."""
        return json.dumps({"schema": SCHEMA, "program": "Stable Diffusion for MLX", **self._known})

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """The recipe that `to_json` wrote; `source` names the picture in errors.

        Raises:
            ValueError: it is none, damaged, or of a newer program.
        """
        try:
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"{len(text)} characters are too many")
            found = parse_json(text)
            schema = found.get("schema") if isinstance(found, dict) else None
            if type(schema) is not int or schema < 1:
                raise ValueError("it does not say its schema")
            if schema > SCHEMA:
                raise ValueError(f"it has schema {schema}, of a newer program: update this one")
            return cls.from_dict(found, "it")
        except ValueError as error:
            raise ValueError(f"{source}: the recipe is damaged: {abbreviate(error)}") from None

    @property
    def _known(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}


def sha256(file: str | Path) -> str:
    """Of the content of a file, in hexadecimal digits; read once, unless it changes.

    It reads all of it: how large files may be is for those to check who take them.
    """
    found = os.stat(file)
    return _sha256(os.path.abspath(file), found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _sha256(file: str, *_: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
