"""Check options that exclude or need each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...hires import FILTERS
from ...images.arrays import MAX_PIXELS
from ...model_io.upscaler_file import open_upscaler
from ...sampler.noise import MAX_SEED
from ...sampler.sampler import require_eta, require_schedule, require_timesteps
from ...utils.wording import abbreviate
from ..settings import Request


def check_combinations(values: Mapping[str, Any]) -> None:
    """Raise ValueError if options are given that exclude or need each other."""
    prompt, prompts_file = values["prompt"], values["prompts_file"]
    n_images, n_rows = values["n_images"], values["n_rows"]
    if prompt is None and prompts_file is None:
        raise ValueError("a prompt is required, or --prompts-file, or --from-image")
    if prompt is not None and prompts_file is not None:
        raise ValueError(f"the prompt {abbreviate(prompt)!r} and --prompts-file: leave one out")
    if prompts_file is None and n_images % n_rows != 0:
        raise ValueError(f"--n_rows {n_rows} does not divide --n_images {n_images}")
    if "image" in values:
        _check_mask_options(values)
    if values["preload_models"] and values["low_memory"]:
        raise ValueError("--preload-models and --low-memory are opposites: leave one out")
    if values["preview_vae"] and values["preview"] is None:
        raise ValueError("--preview-vae needs --preview N, which says how often to write previews")
    for name in ("unet_bits", "text_encoder_bits"):
        if values[name] is not None and not values["quantize"]:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} {values[name]} needs -q, which quantizes the model")
    if values["upscale"] is not None:
        _check_upscaler(values["upscale"])


def _check_mask_options(values: Mapping[str, Any]) -> None:
    """Raise ValueError if options about masks have no mask, or exclude other options."""
    if values["mask"] is None:
        alone = {
            "--invert-mask": values["invert_mask"],
            "--mask-blur": values["mask_blur"] > 0 and values["outpaint"] is None,
            "--mask-crop": values["mask_crop"] is not None and values["outpaint"] is None,
        }
        for name, is_given in alone.items():
            if is_given:
                needed = "--mask" if name == "--invert-mask" else "--mask or --outpaint"
                raise ValueError(f"{name} needs {needed}")
    if values["mask_crop"] is not None and values["fit"] is not None:
        raise ValueError(
            "--fit and --mask-crop: leave one out, as the picture keeps its size if only a part "
            "is drawn"
        )


def check_request(request: Request) -> None:
    """Raise ValueError if the size, the seed or the sampler of a request is wrong."""
    width, height = request.width, request.height
    if width is None or height is None:
        if width is not None or height is not None:
            raise ValueError(f"{request.where}--width and --height go together")
    elif width * height > MAX_PIXELS:
        raise ValueError(
            f"{request.where}--width {width} and --height {height} make more than {MAX_PIXELS} "
            "pixels"
        )
    if request.seed is not None and request.seed + request.n_images - 1 > MAX_SEED:
        n = request.n_images
        pictures = "1 picture" if n == 1 else f"{n} pictures"
        or_one = "" if n == 1 or request.where else ", or --n_images 1"
        raise ValueError(
            f"{request.where}--seed {request.seed} is too large for {pictures}, as seeds end at "
            f"{MAX_SEED}: take a smaller one{or_one}"
        )
    _check_sampling(request)
    _check_second_pass(request)


def _check_second_pass(request: Request) -> None:
    """Raise ValueError if the options of a request about a second pass do not fit together.

    Raises:
        OSError: if the file of an upscaler cannot be read.
    """
    where, upscale = request.where, request.hires_upscale
    if request.hires is None:
        options = {
            "--hires-strength": request.hires_strength,
            "--hires-steps": request.hires_steps,
            "--hires-upscale": upscale,
        }
        for name, value in options.items():
            if value is not None:
                raise ValueError(f"{where}{name} {value} needs --hires SCALE")
        return
    if request.timesteps is not None and request.hires_steps is not None:
        raise ValueError(
            f"{where}--timesteps and --hires-steps {request.hires_steps}: leave one out, as "
            "--hires-strength says how many of the timesteps are run again"
        )
    if request.width is not None and request.height is not None:
        n_pixels = request.width * request.height * request.hires**2
        if n_pixels > MAX_PIXELS:
            raise ValueError(
                f"{where}--hires {request.hires:g} of {request.width}x{request.height} makes more "
                f"than {MAX_PIXELS} pixels"
            )
    if upscale is not None and upscale not in FILTERS:
        try:
            _check_upscaler(Path(upscale))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None


def _check_upscaler(file: Path) -> None:
    """Check that a file has all weights of an upscaler; none of them is read.

    Raises:
        OSError, ValueError: if it has not.
    """
    open_upscaler(str(file), file).load()


def _check_sampling(request: Request) -> None:
    """Raise ValueError if the options of a request about its steps exclude each other."""
    if request.timesteps is not None:
        others = {"--steps": request.steps, "--schedule": request.schedule}
        for name, value in others.items():
            if value is not None:
                raise ValueError(
                    f"{request.where}--timesteps and {name} {value}: leave one out, as timesteps "
                    "say both how many steps there are and how they are spaced"
                )
    if request.sampler is not None:
        try:
            require_schedule(request.sampler, request.schedule)
            if request.timesteps is not None:
                require_timesteps(request.sampler)
            if request.eta is not None:
                require_eta(request.sampler)
        except ValueError as error:
            raise ValueError(f"{request.where}{error}") from None
