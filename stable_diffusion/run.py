"""What the scripts do: load → embed the text → denoise → decode → save.

The library is lazy; here things are evaluated, phase by phase, and what a phase was the last to
need is dropped before the next begins.
"""

import argparse
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from . import memory
from .config import ModelConfig
from .image import make_grid, save_image, to_uint8
from .pipeline import Denoising, StableDiffusion, load_model_config, open_model, pipeline_class
from .sampler import Sampler

WRONG_USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit statuses; 130 as a shell has it for Ctrl-C


class UsageError(ValueError):
    """An argument that does not suit the model."""


def main(args: argparse.Namespace, start: Callable[[StableDiffusion], Denoising]) -> int:
    """Make the pictures that `args` ask for; `start` calls the library's generator.

    Returns the exit status; see `exit_status`.
    """
    with _warnings_as_lines():
        return exit_status(lambda: generate(args, start))


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a program; known errors become one line on standard error."""
    try:
        work()
    except UsageError as error:
        return _fail(error, WRONG_USAGE)
    except (ValueError, OSError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return 0


def generate(args: argparse.Namespace, start: Callable[[StableDiffusion], Denoising]) -> None:
    """Run all phases and write the output.

    Raises:
        UsageError: an argument does not suit the model.
        OSError, ValueError: what the library raises, or results that are not finite.
    """
    source = open_model(args.model, vae=args.vae, prediction_type=args.prediction_type)
    config = load_model_config(source)
    _check_against_model(args, config)
    if args.seed is None:
        args.seed = secrets.randbits(32)
        print(f"Seed: {args.seed}")

    memory.limit_cache()
    spares_memory = memory.is_short() if args.low_memory is None else args.low_memory
    tiled = True if args.tiled or spares_memory else None  # None: by size

    sd = pipeline_class(config)(source, _use_float16(args), args.sampler, schedule=args.schedule)
    if args.quantize:
        sd.quantize()
    for file, scale in args.lora:
        sd.load_lora(file, scale)
    for name, file in args.embedding:
        sd.load_embedding(name, file)
    if args.preload_models:
        with _peak_memory("loading", args.verbose):
            sd.ensure_models_are_loaded()

    with _peak_memory("text and image encoding", args.verbose):
        latents = start(sd)
        for array in latents.inputs:  # the picture's encoder and the text's at different times
            mx.eval(array)
        sd.free_text_encoders()
    with _peak_memory("denoising", args.verbose):
        for x_t in tqdm(latents, desc="Denoising", unit="step", total=len(latents)):
            mx.eval(x_t)
        del sd.unet, latents
        _require_finite(x_t, "latents", args)
    with _peak_memory("decoding", args.verbose):
        images = _decode(sd, x_t, tiled, args)

    save_image(args.output, make_grid(images, args.n_rows))
    print(f"Wrote {args.output}")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that both of the library's generators take."""
    return {
        "n_images": args.n_images,
        "num_steps": args.steps,
        "cfg_weight": args.cfg,
        "negative_text": args.negative_prompt,
        "seed": args.seed,
        "guidance_rescale": args.guidance_rescale,
        "long_prompt": args.long_prompt,
        "prompt_weights": args.prompt_weights,
        "clip_skip": args.clip_skip,
    }


def latent_size(sd: StableDiffusion, args: argparse.Namespace) -> tuple[int, int] | None:
    """Height and width in latents; None for the model's own."""
    if args.width is None:
        return None
    factor = sd.config.autoencoder.factor
    return args.height // factor, args.width // factor


def _check_against_model(args: argparse.Namespace, config: ModelConfig) -> None:
    """What could not be checked before the model's configs were known."""
    factor = config.autoencoder.factor
    for option in ("width", "height"):
        pixels = getattr(args, option)
        if pixels is not None and pixels % factor:
            raise UsageError(f"--{option} must be a multiple of {factor}, got {pixels}")
    most = config.most_clip_skip
    if args.clip_skip > most:
        raise UsageError(
            f"--clip_skip must be from 0 to {most} for this model, got {args.clip_skip}"
        )
    try:
        sampler = Sampler.for_model(config.diffusion, args.sampler, args.schedule)
        defaults = config.defaults_with(sampler.name)
        sampler.schedule(defaults.steps if args.steps is None else args.steps)
    except ValueError as error:
        raise UsageError(error) from None


def _use_float16(args: argparse.Namespace) -> bool:
    """What was asked for; else half precision wherever the device computes in it."""
    if args.float16 is not None:
        return args.float16
    if mx.default_device().type == mx.gpu:
        return True
    print("Computing in float32, as a CPU is fastest (--float16 stores the weights in half).")
    return False


def _decode(
    sd: StableDiffusion, x_0: mx.array, tiled: bool | None, args: argparse.Namespace
) -> np.ndarray:
    """Pictures, uint8 [B, H, W, 3], decoded a few at a time."""
    images = []
    starts = range(0, len(x_0), args.decoding_batch_size)
    for i in tqdm(starts, desc="Decoding", unit="batch"):
        batch = sd.decode(x_0[i : i + args.decoding_batch_size], tiled)
        mx.eval(batch)
        _require_finite(batch, "pictures", args)
        images.append(to_uint8(np.array(batch)))
    return np.concatenate(images)


def _require_finite(x: mx.array, what: str, args: argparse.Namespace) -> None:
    """No black picture is written for a model that overflowed."""
    if not mx.isfinite(x).all().item():
        hint = "the weights may be damaged" if args.float16 is False else "try --no-float16"
        raise ValueError(f"the {what} are not finite numbers: {hint}")


@contextmanager
def _peak_memory(phase: str, verbose: bool) -> Iterator[None]:
    mx.reset_peak_memory()
    yield
    mx.clear_cache()  # the next phase's buffers are of other sizes
    if verbose:
        print(f"Peak memory, {phase}: {mx.get_peak_memory() / 1e9:.3f} GB")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show this package's warnings without the place in the code that they come from."""

    def show(message: Warning | str, *_: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _fail(error: object, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
