"""Make the pictures of a run: load → embed the text → denoise → decode → save.

The library is lazy: it computes nothing before it is asked to. Here arrays are evaluated phase by
phase, and what the later phases do not need is freed.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from .. import overflow
from ..denoising import Denoising
from ..rrdbnet import enlarge
from ..utils.atomic_files import remove_abandoned
from ..utils.size import Size
from .controls import make_controls
from .decode import decode_all, decode_pictures
from .denoise import StartedBatch, count_pictures, count_weight_bytes, denoise_batch, measure_work
from .job import Batch, CompleteJob
from .output.continuation import explain_continuation
from .output.picture_writer import PictureWriter
from .output.preview import Preview, choose_decoder
from .plan import Plan, make_batches, make_plan
from .ranks import RankError, Ranks
from .room import warn_of_memory
from .run import Run, prepare_run
from .settings import Settings
from .terminal.console import say
from .terminal.progress import Progress

# Errors after which the finished pictures are written, and a command that makes the rest is named.
ENDINGS = (KeyboardInterrupt, RuntimeError, MemoryError, overflow.FaultyResultError, RankError)
TEXT_ENCODERS = ("text_encoder", "text_encoder_1", "text_encoder_2")


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
    run = prepare_run(settings, plan, progress)
    if writer is not None:
        writer.record = run.record

    weight_bytes = count_weight_bytes(run)

    def count_at_once(job: CompleteJob) -> int:
        # The ranks, whose memory may differ, come here with the same jobs in the same order.
        n_fitting = count_pictures(run, job, Size(job.width, job.height), weight_bytes)
        return plan.count_at_once(ranks.share_smallest(n_fitting))

    batches = make_batches(run.jobs, count_at_once, ranks.size)
    own_batches = batches[ranks.rank :: ranks.size]
    if own_batches:
        progress.forecast = warn_of_memory(run, own_batches).peak
    run.preload()
    started = _start_batches(run, own_batches)
    preview = None if plan.names is None else _prepare_preview(run, plan.names.preview)
    if started:
        with progress.measure("reading the UNet"):
            run.read_networks(["unet"])
            run.read_controls()
    with progress.show_batches([measure_work(run, each) for each in started]):
        for i in range(0, len(batches), ranks.size):
            made = ranks.gather(_make_next_batch(run, started, preview))
            if writer is not None:
                _write_batches(writer, batches[i : i + ranks.size], made)
    if writer is not None:
        writer.finish()
    if preview is not None:
        preview.remove()


def _start_batches(run: Run, batches: Sequence[Batch]) -> deque[StartedBatch]:
    """Encode the text and picture of these batches, and free the text encoders."""
    started: deque[StartedBatch] = deque()
    with run.progress.measure("text and image encoding"):
        run.read_networks(TEXT_ENCODERS)
        for batch in batches:
            latents = overflow.start_checked(
                run.sd,
                partial(_call_generator, run, batch),
                others=[each.latents for each in started],
                adapter_files=run.adapter_files,
                is_flat=run.starts_flat,
            )
            started.append(StartedBatch(batch, latents))
        run.sd.free_text_encoders()
        run.sd.free_tokenizers()
    return started


def _call_generator(run: Run, batch: Batch) -> Denoising:
    """Call the library's generator for a batch."""
    sd, start = run.sd, run.start
    controls = make_controls(
        run.settings.controls, run.controls, Size(batch.jobs[0].width, batch.jobs[0].height), start
    )
    options = batch.options | {"controls": controls}
    if start is None:
        size = batch.latent_size(sd.config.autoencoder.factor)
        return sd.generate_latents(latent_size=size, **options)
    return sd.generate_latents_from_image(
        start.pixels,
        strength=batch.strength,
        mask=start.mask,
        image_cfg_weight=batch.jobs[0].image_cfg,
        **options,
    )


def _prepare_preview(run: Run, path: Path) -> Preview | None:
    """Return the preview if it is asked for; read or fit what decodes it."""
    settings, sd = run.settings, run.sd
    if settings.preview is None:
        return None
    with run.progress.measure("preparing previews"):
        run.read_decoder()
        decode = choose_decoder(settings, sd, run.preview_vae, partial(decode_all, run))
    return Preview(
        path, settings.preview, settings.n_rows, lambda x: run.finish_pictures(decode(x))
    )


def _make_next_batch(
    run: Run, started: deque[StartedBatch], preview: Preview | None
) -> Iterator[np.ndarray]:
    """Yield the pictures of the next batch, uint8 [H, W, 3], if there is one."""
    if not started:
        return
    with run.progress.measure("denoising"):
        x_0 = denoise_batch(run, started.popleft(), started, preview)
        if not started:
            del run.sd.unet
            run.sd.unload_controls()
    with run.progress.measure("decoding"):
        run.read_decoder()
        for picture in decode_pictures(run, x_0):
            if run.start is not None:
                picture = run.start.finish(picture)
            if run.upscaler is not None:
                count = run.progress.count_enlarged
                picture = enlarge(run.upscaler, picture, on_progress=count)
            yield picture
            run.progress.count_decoded()


def _write_batches(
    writer: PictureWriter, batches: Sequence[Batch], made: Sequence[Iterable[np.ndarray]]
) -> None:
    """Write the pictures that each rank made of its batch; the last batches may be fewer."""
    for batch, pictures in zip(batches, made, strict=False):
        for job, picture in zip(batch.jobs, pictures, strict=True):
            writer.add(job, picture)
