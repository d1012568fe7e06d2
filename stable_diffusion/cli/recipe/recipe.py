"""The recipe of a picture: what is needed to make it again, and its JSON."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self

from ...config.strict_config import Config
from ...utils.strict_json import parse_json
from ...utils.wording import abbreviate

PROGRAM = "Stable Diffusion for MLX"
SCHEMA = 1  # version of the JSON; it grows if older programs cannot read the new form
MAX_CHARACTERS = 1_000_000  # of a recipe in a file; a longer one may be an attack


@dataclass(frozen=True)
class Recipe(Config):
    """How a picture or a grid was made. The names are those of the options; None is unknown."""

    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None  # as `--model` takes it
    revision: str | None = None  # the commit, of a model on the Hub
    vae: str | None = None
    unet: str | None = None
    prediction_type: str | None = None
    lora: tuple[str, ...] = ()  # NAME:SCALE, as `--lora` takes it
    lora_sha256: tuple[str, ...] = ()  # of the files, in the same order
    embedding: tuple[str, ...] = ()  # NAME=FILE
    embedding_sha256: tuple[str, ...] = ()
    seed: int | None = None  # of this picture; of the first picture of a grid
    n_images: int | None = None
    n_rows: int | None = None
    width: int | None = None  # pixels, of a picture
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance_rescale: float | None = None
    cfg_range: tuple[float, ...] = ()  # start and end; () for all steps
    sampler: str | None = None
    schedule: str | None = None
    timesteps: tuple[int, ...] = ()  # in place of steps and a schedule
    eta: float | None = None
    reuse: int | None = None  # None for 1
    clip_skip: int | None = None
    long_prompt: bool | None = None
    prompt_weights: bool | None = None
    quantize: bool | None = None
    unet_bits: int | None = None  # None if not given, as in older recipes; the same for the next
    text_encoder_bits: int | None = None
    float16: bool | None = None
    vae_float16: bool | None = None  # True or None
    strength: float | None = None  # this and the next four: if it starts from a picture
    fit: str | None = None
    image: str | None = None  # the name of its file, without the folder
    image_sha256: str | None = None
    control: tuple[str, ...] = ()  # MODEL[@TYPE]=IMAGE:SCALE, as `--control` takes it
    control_sha256: tuple[str, ...] = ()  # of the pictures, in the same order
    control_range: tuple[str, ...] = ()  # START-END, as `--control-range` takes it
    control_canny: str | None = None  # LOW,HIGH
    image_cfg: float | None = None  # in place of strength, of models that edit a picture
    mask: str | None = None  # this and the next five: if a part is repainted
    mask_sha256: str | None = None
    invert_mask: bool | None = None  # True or None
    mask_blur: int | None = None  # pixels; None for 0
    mask_crop: int | None = None  # pixels; None if the whole picture is drawn
    outpaint: tuple[int, ...] = ()  # pixels at the left, top, right and bottom
    hires: float | None = None  # this and the next four: if there is a second pass
    hires_strength: float | None = None
    hires_steps: int | None = None  # None for that part of the steps
    hires_upscale: str | None = None  # a filter, or an upscaler's file
    hires_upscale_sha256: str | None = None
    upscale: str | None = None  # the file of an upscaler
    upscale_sha256: str | None = None
    version: str | None = None  # of this program

    IGNORED = frozenset({"schema", "program"})
    # Fields that are not options, or not as they are.
    NOT_OPTIONS: ClassVar[frozenset[str]] = frozenset(
        {
            *("revision", "lora_sha256", "embedding_sha256", "image", "image_sha256"),
            *("mask_sha256", "control_sha256", "hires_upscale_sha256", "upscale_sha256", "version"),
        }
    )

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that make the picture again; a model on the Hub has its commit."""
        known = {name: value for name, value in self._known.items() if name not in self.NOT_OPTIONS}
        if self.model is not None and self.revision is not None:
            known["model"] = f"{self.model}@{self.revision}"
        return known

    @property
    def starts_from_a_picture(self) -> bool:
        """Return whether the picture was made by `image2image.py`."""
        return self.strength is not None or self.image_cfg is not None

    def to_json(self) -> str:
        """Return the recipe as JSON in ASCII, which every file format keeps as it is."""
        return json.dumps({"schema": SCHEMA, "program": PROGRAM, **self._known})

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Return the recipe that `to_json` wrote.

        Args:
            source: the name of the picture, for error messages.

        Raises:
            ValueError: if the text is not a recipe, or damaged, or from a newer program.
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
        """Return the fields that have a value, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}


def sha256(file: str | os.PathLike[str]) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal digits.

    The file is read whole, once unless it changes. Callers check that it is not too large.
    """
    stat = os.stat(file)
    return _read_sha256(os.path.abspath(file), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _read_sha256(file: str, *_: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
