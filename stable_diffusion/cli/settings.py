"""What a run asks for, as `cli.arguments` reads it. Nothing of it changes from there on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.size import Size


@dataclass(frozen=True, eq=False)
class StartPicture:
    """The picture to start from.

    Attributes:
        file: as the user names it.
        pixels: float32 [height, width, 3] in [-1, 1], at the size that is drawn.
        own_size: of the picture in the file; None if the user says which size to bring it to.
        fit: how it was brought to that size, one of `images.arrays.FITS`; None if not asked.
    """

    file: str
    pixels: np.ndarray
    own_size: Size | None
    fit: str | None


@dataclass(frozen=True)
class Request:
    """A prompt with its options: of the command line, or of a line of a prompts file.

    What is None is decided later: by the model, or, for the seed, by `cli.plan`.

    Attributes:
        n_images: how many pictures, whose seeds follow each other.
        file: the name of the picture in the folder of the output, if it has one of its own.
        where: where it is asked for (the file and the line), as errors start.
    """

    prompt: str
    negative_prompt: str = ""
    n_images: int = 1
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance_rescale: float = 0.0
    sampler: str | None = None
    schedule: str | None = None
    long_prompt: bool = False
    prompt_weights: bool = False
    clip_skip: int = 0
    strength: float | None = None
    file: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Settings:
    """A command line, checked. The names are those of the options."""

    requests: tuple[Request, ...]
    start: StartPicture | None = None

    model: str = "sdxl"
    vae: str | None = None
    prediction_type: str | None = None
    lora: tuple[tuple[Path, float], ...] = ()  # files and scales
    embedding: tuple[tuple[str, Path], ...] = ()  # names and files

    quantize: bool = False
    float16: bool | None = None  # None: by the device
    batch_size: int | None = None
    decoding_batch_size: int = 1
    tiled: bool = False
    low_memory: bool | None = None
    preload_models: bool = False

    output: str = "out.png"
    grid: str | None = None
    n_rows: int = 1
    force: bool = False
    metadata: bool = True
    prompts_file: str | None = None
    from_image: str | None = None

    preview: int | None = None
    preview_vae: bool = False
    verbose: bool = False
