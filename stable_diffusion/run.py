"""What the scripts do: load → embed the text → denoise → decode → save.

The library is lazy; here things are evaluated, phase by phase, and what a phase was the last to
need is dropped before the next begins.
"""

import argparse
import secrets
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from . import finite, memory
from .config import ModelConfig
from .hub import STEMS, announcements
from .image import to_uint8
from .jobs import Batch, UsageError, batches, jobs_of
from .model_io import Source
from .output import Output
from .pipeline import Denoising, StableDiffusion, load_model_config, open_model, pipeline_class
from .sampler import Sampler

WRONG_USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit statuses; 130 as a shell has it for Ctrl-C

# What errors of MLX mean, by a part of them.
MLX_ERRORS = {
    "[read]": "a weight file changed while it was read: get it again",
    "malloc": "there is too little memory: try -q, --low-memory, fewer pictures or smaller ones",
}

# Calls one of the library's generators.
Start = Callable[[StableDiffusion, argparse.Namespace, Batch], Denoising]


def main(parse: Callable[[], argparse.Namespace], start: Start) -> int:
    """Make the pictures that the arguments ask for; `start` begins a batch of them.

    Returns the exit status; see `exit_status`.
    """
    with _warnings_as_lines():
        return exit_status(lambda: generate(parse(), start))


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a program; known errors become one line on standard error."""
    try:
        work()
    except UsageError as error:
        return _fail(error, WRONG_USAGE)
    except (ValueError, OSError) as error:
        return _fail(error, FAILED)
    except RuntimeError as error:
        explained = [why for part, why in MLX_ERRORS.items() if part in str(error)]
        if not explained:
            raise
        return _fail(explained[0], FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return 0


def generate(args: argparse.Namespace, start: Start) -> None:
    """Run all phases and write the output.

    The text of all batches comes first, so that the text encoders can go. Each batch is written
    before the next is denoised.

    Raises:
        UsageError: an argument does not suit the model.
        OSError, ValueError: what the library raises, or results that are not finite.
    """
    source = open_model(args.model, vae=args.vae, prediction_type=args.prediction_type)
    float16 = _use_float16(args)
    for line in announcements(source, STEMS, float16):
        print(line)
    config = load_model_config(source)
    seed_is_drawn = args.seed is None
    if seed_is_drawn:
        args.seed = secrets.randbits(32)
    jobs = [job.suited_to(config) for job in jobs_of(args)]
    if seed_is_drawn:
        print(f"Seed: {args.seed}")
    output = Output(args)

    memory.limit_cache()
    sd = _load(source, config, args, float16)
    started: deque[tuple[Batch, Denoising]] = deque()
    with _peak_memory("text and image encoding", args.verbose):
        for batch in batches(jobs, len(jobs)):
            started.append((batch, _start(sd, args, batch, start, [d for _, d in started])))
        sd.free_text_encoders()
    while started:
        batch, latents = started.popleft()
        with _peak_memory("denoising", args.verbose):
            others = [other for _, other in started]
            x_0 = finite.denoised(sd, latents, _denoise, others, _added(args))
            del latents, others
            if not started:
                del sd.unet
        with _peak_memory("decoding", args.verbose):
            images = _decode(sd, x_0, args)
        for job, image in zip(batch.jobs, images, strict=True):
            output.add(job, image)
    output.finish()


def _load(
    source: Source, config: ModelConfig, args: argparse.Namespace, float16: bool
) -> StableDiffusion:
    """The model with all that is asked to be added to it."""
    sd = pipeline_class(config)(source, float16, args.sampler, schedule=args.schedule)
    if args.quantize:
        sd.quantize()
    for file, scale in args.lora:
        sd.load_lora(file, scale)
    for name, file in args.embedding:
        sd.load_embedding(name, file)
    if args.preload_models:
        with _peak_memory("loading", args.verbose):
            sd.ensure_models_are_loaded()
    return sd


def _start(
    sd: StableDiffusion,
    args: argparse.Namespace,
    batch: Batch,
    start: Start,
    others: list[Denoising],
) -> Denoising:
    """A batch, with its text and its picture encoded; `others` have begun before."""
    first = batch.jobs[0]
    sd.sampler = Sampler.for_model(sd.diffusion_config, first.sampler, first.schedule)
    return finite.started(sd, lambda: start(sd, args, batch), others, _added(args))


def _added(args: argparse.Namespace) -> list[Path]:
    """The files of LoRAs and learned words."""
    return [*(file for file, _ in args.lora), *(file for _, file in args.embedding)]


def _denoise(latents: Denoising) -> mx.array:
    """The last latents, [B, h, w, C]."""
    for x_t in tqdm(latents, desc="Denoising", unit="step", total=len(latents)):
        mx.eval(x_t)
    return x_t


def _use_float16(args: argparse.Namespace) -> bool:
    """What was asked for; else half precision wherever the device computes in it."""
    if args.float16 is not None:
        return args.float16
    if mx.default_device().type == mx.gpu:
        return True
    print("Computing in float32, as a CPU is fastest (--float16 stores the weights in half).")
    return False


def _decode(sd: StableDiffusion, x_0: mx.array, args: argparse.Namespace) -> np.ndarray:
    """Pictures, uint8 [B, H, W, 3], decoded a few at a time."""
    spares_memory = memory.is_short() if args.low_memory is None else args.low_memory
    tiled = True if args.tiled or spares_memory else None  # None: by size
    images = []
    starts = range(0, len(x_0), args.decoding_batch_size)
    for i in tqdm(starts, desc="Decoding", unit="batch"):
        batch = sd.decode(x_0[i : i + args.decoding_batch_size], tiled)
        finite.require_finite([batch], "pictures", sd, ["vae"])
        images.append(to_uint8(np.array(batch)))
        for image in images[-1]:
            finite.warn_of_blank(image)
    return np.concatenate(images)


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
