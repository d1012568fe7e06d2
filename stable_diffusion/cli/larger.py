"""Pictures that are larger than they are drawn at first: a second pass, and upscalers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..config.autoencoder_tiny import require_encoder
from ..config.model import ModelConfig
from ..hires import FILTERS, STRENGTH, UPSCALE, compute_size, make_last_steps
from ..images.reading import MAX_FILE_PIXELS
from ..model_io.upscaler_file import UpscalerFile, open_upscaler
from ..rrdbnet import RRDBNet
from ..sampler.sampler import Sampler
from ..utils.size import Size
from .settings import PictureOptions, Settings


class SecondPass(NamedTuple):
    """The second pass of a picture; see `hires.start_second_pass`."""

    size: Size  # in pixels
    scale: float
    strength: float
    num_steps: int | None
    upscale: str  # a filter, or an upscaler's file


def complete_second_pass(
    options: PictureOptions, config: ModelConfig, size: Size, sampler: Sampler
) -> dict[str, Any]:
    """Return the options of a second pass with defaults, also together; nothing without one.

    Args:
        size: of the first pass.

    Raises:
        ValueError: if the model or the sampler cannot do it.
    """
    if options.hires is None:
        return {}
    strength = STRENGTH if options.hires_strength is None else options.hires_strength
    upscale = UPSCALE if options.hires_upscale is None else options.hires_upscale
    if options.hires_steps is not None:
        if sampler.timesteps is not None:
            raise ValueError(
                f"--hires-steps {options.hires_steps} and timesteps, given or the model's own: "
                "leave it out, as --hires-strength says how many of these are run"
            )
        try:
            make_last_steps(sampler, strength, options.hires_steps)
        except ValueError as error:
            raise ValueError(f"--hires-steps: {error}") from None
    if upscale != "latent":
        require_encoder(config.autoencoder)
    try:
        second_size = compute_size(size, options.hires, config.autoencoder.factor)
    except ValueError as error:
        raise ValueError(f"--hires: {error}") from None
    second = SecondPass(second_size, options.hires, strength, options.hires_steps, upscale)
    return {"hires_strength": strength, "hires_upscale": upscale, "second_pass": second}


def load_upscalers(
    settings: Settings, second_passes: Iterable[SecondPass | None]
) -> dict[str, RRDBNet]:
    """Return the networks that enlarge pictures, by the names of their files.

    Each file is read once, however many pictures need it.

    Raises:
        OSError, ValueError: if a file cannot be read or holds something else.
    """
    names = {second.upscale for second in second_passes if second is not None}.difference(FILTERS)
    if settings.upscale is not None:
        names.add(str(settings.upscale))
    return {name: open_upscaler(name, Path(name)).load() for name in sorted(names)}


def open_upscale(settings: Settings) -> UpscalerFile | None:
    """Return the upscaler that `--upscale` names, if there is one.

    Raises:
        OSError, ValueError: if the file cannot be read or holds something else.
    """
    file = settings.upscale
    return None if file is None else open_upscaler(str(file), file)


def enlarge_size(size: Size, upscaler: UpscalerFile | None) -> Size:
    """Return the size of a finished picture after an upscaler, if there is one.

    Raises:
        ValueError: if it has too many pixels.
    """
    if upscaler is None:
        return size
    enlarged = Size(*(side * upscaler.scale for side in size))
    if enlarged.width * enlarged.height > MAX_FILE_PIXELS:  # this program could not read it
        raise ValueError(
            f"--upscale makes {enlarged.width}x{enlarged.height} of {size.width}x{size.height}, "
            f"more than {MAX_FILE_PIXELS // 10**6} million pixels: make smaller pictures"
        )
    return enlarged
