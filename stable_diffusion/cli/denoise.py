"""Denoise the batches of a run, in one pass or in two."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from .. import overflow
from ..denoising import Denoising
from ..hires import count_steps, start_second_pass
from ..model_io.weights import flatten_parameters
from ..step_memory import count_fitting
from ..utils.size import Size
from .controls import make_controls
from .decode import choose_tiled
from .job import Batch, CompleteJob
from .output.preview import Preview
from .plan import MAX_AT_ONCE
from .run import Run
from .terminal.progress import BatchWork


class StartedBatch(NamedTuple):
    """A batch whose text and picture are encoded, and its latents."""

    batch: Batch
    latents: Denoising


def count_weight_bytes(run: Run) -> int:
    """Return how many bytes the weights of the UNet and the control networks take."""
    networks = run.sd.unet, *(control.network for control in run.sd.controls)
    return sum(
        weight.nbytes for network in networks for weight in flatten_parameters(network).values()
    )


def count_pictures(run: Run, job: CompleteJob, size: Size, weight_bytes: int) -> int:
    """Return how many pictures of a size fit into the memory, beside the UNet's weights."""
    sd = run.sd
    factor = sd.config.autoencoder.factor
    latent_size = -(-size.height // factor), -(-size.width // factor)  # as padded
    has_guidance = sd.config.needs_second_text(job.cfg, job.image_cfg)
    n_controls = len(run.settings.controls)
    return count_fitting(
        sd.config.unet, latent_size, has_guidance, sd.dtype, weight_bytes, n_controls
    )


def measure_work(run: Run, started: StartedBatch) -> BatchWork:
    """Return how much work a batch is, in steps of the first pass."""
    jobs, latents = started.batch.jobs, started.latents
    n_steps, second = len(latents), jobs[0].second_pass
    if second is not None:
        n_second = count_steps(latents, second.strength, second.num_steps)
        n_steps += n_second * _weigh_step(jobs[0], second.size)
    return BatchWork(len(jobs), n_steps, is_enlarged=run.upscaler is not None)


def denoise_batch(
    run: Run, started: StartedBatch, others: Sequence[StartedBatch], preview: Preview | None
) -> mx.array:
    """Return the last latents of a batch, of the second pass if there is one.

    Args:
        others: the batches that are denoised later.
    """
    latents, jobs = started.latents, started.batch.jobs
    second_pass = jobs[0].second_pass
    waiting = [each.latents for each in others]
    denoise = partial(
        overflow.denoise_checked, run.sd, others=waiting, adapter_files=run.adapter_files
    )
    everything = range(len(jobs))
    x_0 = denoise(latents, partial(_run_steps, run, pictures=everything, preview=preview))
    if second_pass is None:
        return x_0
    size, scale, strength, num_steps, upscale = second_pass
    start = partial(
        start_second_pass,
        *(run.sd, latents, x_0, scale, strength, num_steps, run.upscalers.get(upscale, upscale)),
        tiled=choose_tiled(run),
        controls=make_controls(run.settings.controls, run.controls, size),
    )
    work = _weigh_step(jobs[0], size)
    finished = []
    for pictures in _split_second_pass(run, jobs, size):
        second = overflow.start_checked(
            run.sd,
            partial(start, pictures=pictures),
            waiting,
            adapter_files=run.adapter_files,
        )
        run_steps = partial(_run_steps, run, pictures=pictures, preview=preview, work=work)
        finished.append(denoise(second, run_steps))
        del second
    run.keep_upscalers(job for each in others for job in each.batch.jobs)
    return mx.concatenate(finished)


def _split_second_pass(run: Run, jobs: Sequence[CompleteJob], size: Size) -> list[range]:
    """Return which pictures of a batch are made together in the second pass."""
    n_at_once = run.settings.batch_size
    if n_at_once is None:
        fitting = count_pictures(run, jobs[0], size, count_weight_bytes(run))
        n_at_once = min(max(fitting, 1), MAX_AT_ONCE)
    n = len(jobs)
    return [range(start, min(start + n_at_once, n)) for start in range(0, n, n_at_once)]


def _weigh_step(job: CompleteJob, size: Size) -> int:
    """Return how much work a step of the second pass is, in steps of the first: by the pixels."""
    return max(round(size.width * size.height / (job.width * job.height)), 1)


def _run_steps(
    run: Run, latents: Denoising, pictures: range, preview: Preview | None, work: int | None = None
) -> mx.array:
    """Run the steps of some pictures of a batch, show previews, and return the last latents.

    Args:
        work: of a step of the second pass; None in the first one.
    """
    steps = run.progress.run_steps(latents, len(pictures), first=pictures.start, work=work)
    for number, step in enumerate(steps, 1):
        if not step.is_finite:
            break  # later steps would not be finite either
        if preview is not None:
            preview.show(number, len(latents), latents.estimate)
    return step.x_t
