"""The settings of a run, as `cli.arguments` reads them. They do not change afterwards."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..images.masks import NO_MARGINS, Margins
from ..utils.size import Size

TRANSPARENCY = "alpha"  # as a mask: the transparency of the picture itself; ./alpha is a file


@dataclass(frozen=True, eq=False)
class Repainting:
    """Which part of a picture is repainted.

    Attributes:
        mask: uint8 [height, width], in the size of the result: 255 is repainted, 0 is kept, and
            values between them, which a blur makes, mix both.
        file: the mask's file, as the user gave it; `alpha` for the transparency of the picture;
            None if the picture is only extended.
        is_inverted: whether the mask was inverted.
        blur: its radius in pixels.
        crop: None to draw the whole picture; else only the part around the mask is drawn, with as
            many pixels at each side of the mask.
        margins: how many pixels were added at the left, top, right and bottom.
    """

    mask: np.ndarray
    file: str | None = None
    is_inverted: bool = False
    blur: int = 0
    crop: int | None = None
    margins: Margins = NO_MARGINS


@dataclass(frozen=True, eq=False)
class StartPicture:
    """The picture to start from.

    Attributes:
        file: its name, as the user gave it.
        pixels: float32 [height, width, 3] in [-1, 1], in the size that is drawn. If a part is
            repainted: uint8, in the size of the result.
        own_size: the size of the picture in the file, with the pixels that are added; None if the
            user gave another size.
        fit: how it was resized, one of `images.arrays.FITS`.
        repainting: the part that is repainted; None for the whole picture.
    """

    file: str
    pixels: np.ndarray
    own_size: Size | None = None
    fit: str = "stretch"
    repainting: Repainting | None = None

    @property
    def size(self) -> Size:
        """Return the size of the pixels."""
        height, width, _ = self.pixels.shape
        return Size(width, height)

    @property
    def is_padded(self) -> bool:
        """Return whether the picture is padded until the networks take it: any size will do."""
        return self.repainting is not None and self.repainting.crop is None

    @property
    def is_cropped(self) -> bool:
        """Return whether only a part is drawn, in a size of its own."""
        return self.repainting is not None and self.repainting.crop is not None


@dataclass(frozen=True, eq=False)
class ControlPicture:
    """A picture that steers what is drawn, and the control network that reads it.

    Attributes:
        model: the network, as the user named it.
        type: what the picture shows, for a union of ControlNets; None if the user does not say it.
        file: the name of the picture, as the user gave it.
        pixels: float32 [height, width, 3] in [0, 1], in its own size.
        scale: how much it steers.
        start, end: the part of the steps in which it does, from 0 to 1.
        canny: the lower and the higher threshold to draw its edges with; None if it is a control
            picture already.
    """

    model: str
    type: str | None
    file: str
    pixels: np.ndarray
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    canny: tuple[int, int] | None = None


@dataclass(frozen=True)
class PictureOptions:
    """What may differ from picture to picture of a run, except the seed.

    A value that is None is chosen later by the model.

    Attributes:
        width, height: in pixels, of the picture; of the part that is drawn, if only a part of the
            picture to start from is drawn. Both are None, or neither.
        cfg: the guidance.
        cfg_range: the start and the end of the steps with guidance, in shares of all steps; () if
            all of them have it.
        timesteps: in place of steps and a schedule.
        reuse: the whole UNet is computed in every so many steps.
        strength: how far to go from the picture to start from, 0 to 1; None without one, and for
            models that edit a picture.
        image_cfg: the guidance by the picture, of these models.
        hires: how many times larger each side becomes for a second pass; None without one, and then
            the next three are None.
        hires_strength: how much of the schedule the second pass runs, above 0 and up to 1.
        hires_steps: how many steps it runs; None for that part of the steps.
        hires_upscale: what enlarges the picture for it: `latent`, `lanczos`, or an upscaler's file.
        file: the file name of the picture inside the output folder, if the line gives one.
        where: the file and the line, with which error messages start.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance_rescale: float = 0.0
    cfg_range: tuple[float, ...] = ()
    sampler: str | None = None
    schedule: str | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None
    reuse: int = 1
    long_prompt: bool = False
    prompt_weights: bool = False
    clip_skip: int = 0
    strength: float | None = None
    image_cfg: float | None = None
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscale: str | None = None
    file: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Request(PictureOptions):
    """A prompt with its options, from the command line or a line of a prompts file.

    Attributes:
        n_images: the number of pictures; their seeds are consecutive.
        seed: the seed of the first picture; None is chosen later by `cli.plan`.
    """

    n_images: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class Settings:
    """A checked command line. The names are those of the options."""

    requests: tuple[Request, ...]
    start: StartPicture | None = None
    controls: tuple[ControlPicture, ...] = ()

    model: str = "sdxl"
    model_name: str = ""  # what the user called it, if it is a few-step model; else as `model`
    vae: str | None = None
    unet: str | None = None
    prediction_type: str | None = None
    # Files, or their names on the Hub before `main` has found them, and scales.
    lora: tuple[tuple[str | os.PathLike[str], float], ...] = ()
    merge_loras: bool = False
    embedding: tuple[tuple[str, Path], ...] = ()  # names and files

    upscale: Path | None = None

    quantize: bool = False
    unet_bits: int | None = None  # None if not given; the same for the next
    text_encoder_bits: int | None = None
    float16: bool | None = None  # None: depends on the device
    vae_float16: bool = False
    batch_size: int | None = None
    decoding_batch_size: int = 1
    tiled: bool = False
    low_memory: bool | None = None  # None: depends on the memory of the machine
    preload_models: bool = False

    output: str = "out.png"
    grid: str | None = None
    n_rows: int = 1
    force: bool = False
    metadata: bool = True
    prompts_file: str | None = None
    from_image: str | None = None

    preview: int | None = None
    preview_vae: bool | str = False  # True: the VAE of the pictures; else the name of another
    verbose: bool = False
