"""Make the pictures of a run: load → embed the text → denoise → decode → save.

The library is lazy: it computes nothing before it is asked to. Here arrays are evaluated phase by
phase, and what the later phases do not need is freed.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .. import overflow
from ..denoising import Denoising
from ..device import backend, cpu_kernels, memory
from ..images.arrays import to_uint8
from ..model_io.loaders import open_model
from ..model_io.model import Model, describe_downloads
from ..model_io.weight_files import STEMS
from ..model_io.weights import flatten_parameters
from ..pipeline import StableDiffusion, pipeline_class
from ..step_memory import count_fitting
from ..utils.atomic_files import remove_abandoned
from ..vae_strips import Vae
from .few_step import adopt_few_step
from .job import Batch, CompleteJob
from .output.continuation import explain_continuation
from .output.picture_writer import PictureWriter
from .output.preview import Preview, choose_decoder, load_preview_vae
from .plan import Plan, make_batches, make_plan
from .ranks import RankError, Ranks
from .recipe.record import Record
from .settings import Settings
from .terminal.console import say
from .terminal.progress import BatchWork, Progress

NETWORKS = {  # attributes of a pipeline, in the order in which they are needed
    "text_encoder": "text encoder",
    "text_encoder_1": "first text encoder",
    "text_encoder_2": "second text encoder",
    "unet": "UNet",
    "autoencoder": "VAE",
}
# Errors after which the finished pictures are written, and a command that makes the rest is named.
ENDINGS = (KeyboardInterrupt, RuntimeError, MemoryError, overflow.FaultyResultError, RankError)
TEXT_ENCODERS = ("text_encoder", "text_encoder_1", "text_encoder_2")


@dataclass(frozen=True)
class Run:
    """What the phases of a run need.

    Attributes:
        settings: the command line.
        progress: shows how far the run is.
        jobs: the pictures to make.
        sd: the model, with the LoRAs and textual inversions of the settings.
        record: what the files say of how their pictures were made.
        preview_vae: the VAE that the settings name for previews, if they name one.
    """

    settings: Settings
    progress: Progress
    jobs: Sequence[CompleteJob]
    sd: StableDiffusion
    record: Record
    preview_vae: Vae | None = None

    @property
    def starts_flat(self) -> bool:
        """Return whether there is a picture to start from, and it has one colour."""
        start = self.settings.start
        return start is not None and bool((start.pixels == start.pixels[0, 0]).all())

    @property
    def adapter_files(self) -> list[Path]:
        """Return the files of LoRAs and textual inversions."""
        loras = [Path(file) for file, _ in self.settings.lora]
        return loras + [file for _, file in self.settings.embedding]

    def read_networks(self, names: Iterable[str]) -> None:
        """Read the weights of those networks that the model has."""
        for name in names:
            if hasattr(self.sd, name):
                self.progress.read_network(NETWORKS[name], getattr(self.sd, name))

    def read_decoder(self) -> None:
        """Read the weights of the VAE's decoder."""
        self.progress.read_network("VAE's decoder", self.sd.autoencoder.decoder)


class StartedBatch(NamedTuple):
    """A batch whose text and picture are encoded, and its latents."""

    batch: Batch
    latents: Denoising


def generate(settings: Settings, ranks: Ranks) -> None:
    """Make the pictures that the settings ask for, and write their files.

    Raises:
        UsageError: if an argument does not suit the model, or the files that exist.
        OSError, ValueError: if the library raises one, or if a result is not finite, or constant.
        RankError: if another rank failed.
    """
    plan = make_plan(settings, ranks)
    writer = None
    if plan.names is not None:
        remove_abandoned([*plan.names.all_files, plan.names.preview])
        writer = PictureWriter(plan.names, settings.n_rows)
    if not plan.jobs:
        if writer is not None:
            writer.finish()
        return

    with _keep_finished(settings, plan, writer):
        progress = Progress(settings.verbose)
        _make_pictures(settings, plan, writer, ranks, progress)
        say(progress.summarize(len(plan.jobs)))


@contextmanager
def _keep_finished(settings: Settings, plan: Plan, writer: PictureWriter | None) -> Iterator[None]:
    """Keep the finished pictures if the block fails, and say how to make the rest.

    What is said becomes the argument of an interruption, and a note of an error of memory or of the
    GPU.
    """
    try:
        yield
    except ENDINGS as error:
        if writer is not None and plan.names is not None:
            with suppress(ValueError, OSError):  # the error is what matters
                writer.finish()
            n_finished = writer.n_finished
            explanation = explain_continuation(settings, plan.names, plan.jobs, n_finished)
            if isinstance(error, KeyboardInterrupt):
                error.args = (explanation,)
            elif n_finished:
                error.add_note(explanation)
        raise


def _make_pictures(
    settings: Settings,
    plan: Plan,
    writer: PictureWriter | None,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Make and write the pictures of a plan, together with the other ranks.

    The text of all batches is embedded first, so that the text encoders can be freed. Then each
    batch is denoised, decoded and written before the next one is denoised.
    """
    run = _prepare_run(settings, plan, progress)
    if writer is not None:
        writer.record = run.record

    weight_bytes = sum(weight.nbytes for weight in flatten_parameters(run.sd.unet).values())

    def count_at_once(job: CompleteJob) -> int:
        # The ranks, whose memory may differ, come here with the same jobs in the same order.
        return plan.count_at_once(ranks.share_smallest(_count_fitting(run.sd, job, weight_bytes)))

    batches = make_batches(run.jobs, count_at_once, ranks.size)
    started = _start_batches(run, batches[ranks.rank :: ranks.size])
    preview = None if plan.names is None else _prepare_preview(run, plan.names.preview)
    if started:
        with progress.measure("reading the UNet"):
            run.read_networks(["unet"])
    work = [BatchWork(len(each.batch.jobs), len(each.latents)) for each in started]
    with progress.show_batches(work):
        for i in range(0, len(batches), ranks.size):
            made = ranks.gather(_make_next_batch(run, started, preview))
            if writer is not None:
                _write_batches(writer, batches[i : i + ranks.size], made)
    if writer is not None:
        writer.finish()
    if preview is not None:
        preview.remove()


def _prepare_run(settings: Settings, plan: Plan, progress: Progress) -> Run:
    """Open the model, check that everything suits it, and load it; weights are read later."""
    options = {name: getattr(settings, name) for name in ("vae", "unet", "prediction_type")}
    model = open_model(settings.model, **options, on_message=say)
    float16 = _choose_precision(settings)
    for line in describe_downloads(model, STEMS, float16):
        say(line)
    jobs = plan.complete_jobs(settings, adopt_few_step(settings, model))
    preview_vae = load_preview_vae(settings, model, float16)
    memory.limit_cache()
    if cpu_kernels.needs_compiling():
        say("Compiling the kernels for this processor, once …")
    sd = _load(settings, model, float16)
    record = Record(settings, model, float16)
    run = Run(settings, progress, jobs, sd, record, preview_vae)
    if settings.preload_models:
        with progress.measure("loading"):
            run.read_networks(NETWORKS)
    return run


def _choose_precision(settings: Settings) -> bool:
    """Return whether to use half precision: as the user says, or if there is a GPU."""
    if settings.float16 is not None:
        return settings.float16
    if backend.is_gpu():
        return True
    say("Computing in float32, which is fastest on a CPU (--float16 stores the weights in half).")
    return False


def _load(settings: Settings, model: Model, float16: bool) -> StableDiffusion:
    """Return the model with the LoRAs and textual inversions of the settings."""
    sd = pipeline_class(model.config)(model, float16, vae_float16=settings.vae_float16)
    if settings.quantize:
        sd.quantize()
    for name, file in settings.embedding:  # before the words in LoRA files, which may be the same
        sd.load_embedding(name, file)
    for lora, scale in settings.lora:
        sd.load_lora(lora, scale, merged=settings.merge_loras)
    return sd


def _count_fitting(sd: StableDiffusion, job: CompleteJob, weight_bytes: int) -> int:
    """Return how many pictures like this one fit into the memory, beside the UNet's weights."""
    factor = sd.config.autoencoder.factor
    latent_size = job.height // factor, job.width // factor
    return count_fitting(sd.config.unet, latent_size, job.cfg > 1, sd.dtype, weight_bytes)


def _start_batches(run: Run, batches: Sequence[Batch]) -> deque[StartedBatch]:
    """Encode the text and picture of these batches, and free the text encoders."""
    started: deque[StartedBatch] = deque()
    with run.progress.measure("text and image encoding"):
        run.read_networks(TEXT_ENCODERS)
        for batch in batches:
            latents = overflow.start_checked(
                run.sd,
                partial(_call_generator, run.sd, run.settings, batch),
                others=[each.latents for each in started],
                adapter_files=run.adapter_files,
                is_flat=run.starts_flat,
            )
            started.append(StartedBatch(batch, latents))
        run.sd.free_text_encoders()
    return started


def _call_generator(sd: StableDiffusion, settings: Settings, batch: Batch) -> Denoising:
    """Call the library's generator for a batch."""
    if settings.start is None or batch.strength is None:  # they are given together
        size = batch.latent_size(sd.config.autoencoder.factor)
        return sd.generate_latents(latent_size=size, **batch.options)
    pixels, strength = settings.start.pixels, batch.strength
    return sd.generate_latents_from_image(pixels, strength=strength, **batch.options)


def _prepare_preview(run: Run, path: Path) -> Preview | None:
    """Return the preview if it is asked for; read or fit what decodes it."""
    settings, sd = run.settings, run.sd
    if settings.preview is None:
        return None
    with run.progress.measure("preparing previews"):
        run.read_decoder()
        decode = choose_decoder(settings, sd, run.preview_vae, partial(_decode_all, run))
    return Preview(path, settings.preview, settings.n_rows, decode)


def _make_next_batch(
    run: Run, started: deque[StartedBatch], preview: Preview | None
) -> Iterator[np.ndarray]:
    """Yield the pictures of the next batch, uint8 [H, W, 3], if there is one."""
    if not started:
        return
    batch, latents = started.popleft()
    with run.progress.measure("denoising"):
        x_0 = overflow.denoise_checked(
            run.sd,
            latents,
            lambda latents: _run_steps(run, latents, len(batch.jobs), preview),
            others=[each.latents for each in started],
            adapter_files=run.adapter_files,
        )
        del latents
        if not started:
            del run.sd.unet
    with run.progress.measure("decoding"):
        run.read_decoder()
        for picture in _decode(run, x_0):
            yield picture
            run.progress.count_decoded()


def _run_steps(run: Run, latents: Denoising, n_pictures: int, preview: Preview | None) -> mx.array:
    """Run the steps of a batch, show previews of it, and return the last latents."""
    for number, step in enumerate(run.progress.run_steps(latents, n_pictures), 1):
        if not step.is_finite:
            break  # later steps would not be finite either
        if preview is not None:
            preview.show(number, len(latents), latents.estimate)
    return step.x_t


def _decode(run: Run, x_0: mx.array) -> Iterator[np.ndarray]:
    """Yield the pictures of latents, uint8 [H, W, 3], decoded a few at a time."""
    settings = run.settings
    spares_memory = settings.low_memory
    if spares_memory is None:
        spares_memory = memory.is_memory_short()
    tiled = True if settings.tiled or spares_memory else None  # None: if the picture is large
    is_flat = run.starts_flat
    for i in range(0, len(x_0), settings.decoding_batch_size):
        part = x_0[i : i + settings.decoding_batch_size]
        decoded = overflow.decode_checked(run.sd, part, tiled, is_flat=is_flat)
        for picture in to_uint8(np.array(decoded)):
            if not is_flat:
                overflow.warn_of_blank(picture)
            yield picture


def _decode_all(run: Run, x_0: mx.array) -> np.ndarray:
    """Return the pictures of latents, uint8 [B, H, W, 3]."""
    return np.stack(list(_decode(run, x_0)))


def _write_batches(
    writer: PictureWriter, batches: Sequence[Batch], made: Sequence[Iterable[np.ndarray]]
) -> None:
    """Write the pictures that each rank made of its batch; the last batches may be fewer."""
    for batch, pictures in zip(batches, made, strict=False):
        for job, picture in zip(batch.jobs, pictures, strict=True):
            writer.add(job, picture)
