"""What the scripts do: load → embed the text → denoise → decode → save.

The library is lazy; here things are evaluated, phase by phase, and what a phase was the last to
need is dropped before the next begins.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import overflow
from ..config.model import ModelConfig
from ..denoising import Denoising
from ..device import cpu_kernels, memory
from ..images.arrays import to_uint8
from ..latent_preview import LinearDecoder
from ..model_io.hub import announcements
from ..model_io.loaders import load_model_config, open_model
from ..model_io.sources import Source
from ..model_io.weight_files import STEMS
from ..pipeline import StableDiffusion, pipeline_class
from ..sampler.sampler import Sampler
from .job import Batch, check_start_size, warn_of_no_guidance, warn_of_prompts
from .output.preview import Preview
from .plan import Plan, batches, make_plan
from .ranks import Ranks
from .recipe.record import Record
from .terminal.console import say
from .terminal.progress import Progress

NETWORKS = {  # attributes of a model, in the order that they are needed in
    "text_encoder": "text encoder",
    "text_encoder_1": "first text encoder",
    "text_encoder_2": "second text encoder",
    "unet": "UNet",
    "autoencoder": "VAE",
}

# Calls one of the library's generators.
Start = Callable[[StableDiffusion, argparse.Namespace, Batch], Denoising]


def generate(args: argparse.Namespace, start: Start, ranks: Ranks) -> None:
    """Run all phases and write the output.

    The text of all batches comes first, so that the text encoders can go. Each batch is written
    before the next is denoised.

    Raises:
        UsageError: an argument does not suit the model, or the files that there are.
        OSError, ValueError: what the library raises, or results that are not finite, or
            constant.
        RankError: another rank failed.
    """
    plan = make_plan(args, ranks)
    if not plan.jobs:
        return

    with _continuable(plan):
        progress = Progress(args.verbose)
        _make_all(plan, args, start, ranks, progress)
        say(progress.summary(len(plan.jobs)))


def _make_all(
    plan: Plan, args: argparse.Namespace, start: Start, ranks: Ranks, progress: Progress
) -> None:
    """Make and write the pictures of a plan, with the other ranks."""
    source = open_model(args.model, vae=args.vae, prediction_type=args.prediction_type)
    args.float16 = _use_float16(args)
    for line in announcements(source, STEMS, args.float16):
        say(line)
    config = load_model_config(source)
    jobs = [job.suited_to(config) for job in plan.jobs]
    if plan.drawn_seed is not None:
        say(f"Seed: {plan.drawn_seed}")
    warn_of_no_guidance(jobs)
    warn_of_prompts(jobs)
    check_start_size(args, config)

    if plan.output is not None:
        plan.output.check_sizes(jobs)

    memory.limit_cache()
    if cpu_kernels.needs_compiling():
        say("Compiling the kernels for this processor, once …")
    sd = _load(source, config, args, progress)
    if plan.output is not None:
        plan.output.record = Record(args, source)
    shares = batches(jobs, plan.at_once, ranks.size)
    with progress.phase("text and image encoding"):
        _read(sd, progress, *(name for name in NETWORKS if name.startswith("text_encoder")))
        own = shares[ranks.rank :: ranks.size]
        started: deque[tuple[Batch, Denoising]] = deque()
        for batch in own:
            others = [latents for _, latents in started]
            started.append((batch, _start(sd, args, batch, start, others)))
        sd.free_text_encoders()
    preview = _preview(sd, plan, args, progress)
    if started:
        with progress.phase("reading the UNet"):
            _read(sd, progress, "unet")
    with progress.of([(len(batch.jobs), len(latents)) for batch, latents in started]):
        for i in range(0, len(shares), ranks.size):
            made = ranks.gather(_make(sd, started, args, progress, preview))
            if ranks.is_first:
                for batch, images in zip(shares[i : i + ranks.size], made, strict=False):
                    for job, image in zip(batch.jobs, images, strict=True):
                        plan.output.add(job, image)
    if ranks.is_first:
        plan.output.finish()
    if preview is not None:
        preview.remove()


def _make(
    sd: StableDiffusion,
    started: deque[tuple[Batch, Denoising]],
    args: argparse.Namespace,
    progress: Progress,
    preview: Preview | None,
) -> Iterator[np.ndarray]:
    """The pictures of the next batch, uint8 [H, W, 3]; none where there is none."""
    if not started:
        return
    batch, latents = started.popleft()

    def run(latents: Denoising) -> mx.array:
        for step, x_t in enumerate(progress.steps(latents, len(batch.jobs)), 1):
            if not overflow.is_finite(x_t):
                break  # nor will what follows be
            if preview is not None:
                preview.show(step, len(latents), latents.estimate)
        return x_t

    with progress.phase("denoising"):
        others = [other for _, other in started]
        x_0 = overflow.denoised(sd, latents, run, others, _added(args))
        del latents, others
        if not started:
            del sd.unet
    with progress.phase("decoding"):
        progress.read("VAE's decoder", sd.autoencoder.decoder)
        for image in _decode(sd, x_0, args):
            yield image
            progress.finished()


@contextmanager
def _continuable(plan: Plan) -> Iterator[None]:
    """Where it is interrupted, keep the pictures that are finished, and say how to go on."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if plan.output is not None:
            with suppress(ValueError, OSError):  # what would come is more telling
                plan.output.finish()
            interruption.args = (plan.output.how_to_continue(plan.jobs),)
        raise


def _load(
    source: Source, config: ModelConfig, args: argparse.Namespace, progress: Progress
) -> StableDiffusion:
    """The model with all that is asked to be added to it."""
    sd = pipeline_class(config)(source, args.float16, args.sampler, schedule=args.schedule)
    if args.quantize:
        sd.quantize()
    for file, scale in args.lora:
        sd.load_lora(file, scale)
    for name, file in args.embedding:
        sd.load_embedding(name, file)
    if args.preload_models:
        with progress.phase("loading"):
            _read(sd, progress, *NETWORKS)
    return sd


def _read(sd: StableDiffusion, progress: Progress, *names: str) -> None:
    """Read the weights of those networks that the model has."""
    for name in names:
        if hasattr(sd, name):
            progress.read(NETWORKS[name], getattr(sd, name))


def _preview(
    sd: StableDiffusion, plan: Plan, args: argparse.Namespace, progress: Progress
) -> Preview | None:
    """What shows the pictures in the making, where that is asked for; the first rank's only."""
    if args.preview is None or plan.output is None:
        return None

    def decode(x: mx.array) -> np.ndarray:
        return np.stack(list(_decode(sd, x, args)))

    with progress.phase("preparing previews"):
        progress.read("VAE's decoder", sd.autoencoder.decoder)
        if not args.preview_vae:
            config = sd.config.autoencoder
            decode = LinearDecoder(sd.decode, config.latent_channels, config.factor)
    return Preview(plan.output.preview, args.preview, args.n_rows, decode)


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
    return overflow.started(
        sd, lambda: start(sd, args, batch), others, _added(args), is_flat=_starts_flat(args)
    )


def _starts_flat(args: argparse.Namespace) -> bool:
    """Return whether the picture to start from is of one colour."""
    image = getattr(args, "image", None)
    return image is not None and bool((image == image[0, 0]).all())


def _added(args: argparse.Namespace) -> list[Path]:
    """The files of LoRAs and learned words."""
    return [*(file for file, _ in args.lora), *(file for _, file in args.embedding)]


def _use_float16(args: argparse.Namespace) -> bool:
    """What was asked for; else half precision wherever the device computes in it."""
    if args.float16 is not None:
        return args.float16
    if mx.default_device().type == mx.gpu:
        return True
    say("Computing in float32, as a CPU is fastest (--float16 stores the weights in half).")
    return False


def _decode(sd: StableDiffusion, x_0: mx.array, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Pictures, uint8 [H, W, 3], decoded a few at a time."""
    spares_memory = memory.is_memory_short() if args.low_memory is None else args.low_memory
    tiled = True if args.tiled or spares_memory else None  # None: by size
    is_flat = _starts_flat(args)
    for i in range(0, len(x_0), args.decoding_batch_size):
        batch = overflow.decoded(sd, x_0[i : i + args.decoding_batch_size], tiled, is_flat=is_flat)
        for image in to_uint8(np.array(batch)):
            if not is_flat:
                overflow.warn_of_blank(image)
            yield image
