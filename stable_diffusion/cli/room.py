"""Forecast the memory of a run before its weights are read, and say so if it is too much."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import forecast
from ..autoencoder_tiny import AutoencoderTiny
from ..clip import CLIPTextModel
from ..device import backend, free_memory, memory
from ..forecast import Course, Forecast
from ..pipeline import StableDiffusion
from ..quantize import UNET_BITS, quantize_text_encoder, quantize_unet
from ..step_memory import count_step_bytes
from ..unet import UNetModel
from ..utils.size import Size
from ..vae_strips import Vae
from .decode import choose_tiled
from .denoise import count_pictures, count_weight_bytes
from .job import Batch, CompleteJob
from .run import Run
from .start import Start

FEWER_BITS = 4
SMALLER = "smaller pictures (--width and --height)"


@dataclass(frozen=True)
class Choices:
    """What a user may change to save memory.

    Attributes:
        quantized_bytes: of the UNet with the control networks, and of the text encoders, if the run
            quantizes them, see `count_quantized_bytes`; None to leave them as they are.
        is_single: whether each picture is denoised and decoded alone.
        in_strips: whether pictures are decoded in strips; None if only large ones are.
    """

    quantized_bytes: tuple[int, int] | None = None
    is_single: bool = False
    in_strips: bool | None = None


def warn_of_memory(run: Run, batches: Sequence[Batch]) -> Forecast:
    """Return the forecast of a run, and warn if it does not fit into the free memory.

    Args:
        batches: those that this process makes.
    """
    base = free_memory.read_resident_memory()
    choices = Choices(in_strips=choose_tiled(run))
    expected = forecast_run(run, batches, choices, base)
    free = free_memory.read_free_memory() + base
    if expected.peak > free:
        advice = find_advice(run, batches, choices, base, free)
        warnings.warn(
            f"this needs about {expected.peak / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free: "
            f"try {advice}",
            stacklevel=2,
        )
    return expected


def find_advice(run: Run, batches: Sequence[Batch], choices: Choices, base: int, free: int) -> str:
    """Return the fewest options that make a run fit into the free memory.

    If none do, they are those that save most, and smaller pictures.

    Args:
        choices: those of the settings.
        base, free: bytes of the process before weights are read, and bytes that it may have.
    """
    least, best = forecast_run(run, batches, choices, base).peak, ""
    for options, each in _list_savings(run, batches, choices):
        peak = forecast_run(run, batches, each, base).peak
        if peak <= free:
            return options
        if peak < least:
            least, best = peak, options
    return f"{best}, and {SMALLER}" if best else SMALLER


def _list_savings(
    run: Run, batches: Sequence[Batch], choices: Choices
) -> list[tuple[str, Choices]]:
    """Return options, and what they choose: each alone, then all combinations.

    Of as many options, those come first that change the pictures least.
    """
    kinds: list[list[tuple[str, dict[str, Any]]]] = [[], [], []]
    if max(_count_rows(run, batch)[0] for batch in batches) > 1:
        kinds[0].append(("--batch-size 1", {"is_single": True}))
    for option, unet_bits in _list_bits(run):
        counted = count_quantized_bytes(run.sd, unet_bits, run.settings.text_encoder_bits)
        kinds[1].append((option, {"quantized_bytes": counted}))
    if not choices.in_strips and not run.settings.preload_models:
        kinds[2].append(("--low-memory", {"in_strips": True}))
    savings = []
    for combination in product(*([None, *each] for each in reversed(kinds))):
        chosen = [each for each in reversed(combination) if each is not None]
        changes = {name: value for _, changed in chosen for name, value in changed.items()}
        savings.append(([option for option, _ in chosen], replace(choices, **changes)))
    savings.sort(key=lambda saving: len(saving[0]))
    return [(" ".join(options), each) for options, each in savings if options]


def _list_bits(run: Run) -> Iterator[tuple[str, int | None]]:
    """Yield the options that quantize to fewer bits than the settings, and the UNet's bits."""
    if run.sd.config.unet.quantization is not None:
        return  # it stays as it is, also with -q
    if not run.settings.quantize:
        yield "-q", None
    for bits in (UNET_BITS, FEWER_BITS):
        if run.settings.unet_bits is None or bits < run.settings.unet_bits:
            yield f"-q --unet-bits {bits}", bits


def forecast_run(run: Run, batches: Sequence[Batch], choices: Choices, base: int) -> Forecast:
    """Return the memory that a run needs.

    Args:
        base: bytes of the process before weights are read.
    """
    sd, vae = run.sd, run.sd.autoencoder
    text = [getattr(sd, attribute) for attribute, _ in sd._TEXT_ENCODERS]
    networks = [sd.unet, *(control.network for control in sd.controls)]
    text_bytes, unet_bytes = forecast.count_bytes(text), forecast.count_bytes(networks)
    widest = forecast.count_widest(networks)
    merged_bytes = forecast.count_merged(networks, choices.quantized_bytes is not None)
    if choices.quantized_bytes is not None:
        unet_bytes, text_bytes = choices.quantized_bytes
    weights = {
        "text": text_bytes,
        "unet": unet_bytes + merged_bytes,
        "decoder": forecast.count_bytes([vae.decoder]),
        "encoder": forecast.count_bytes([vae.encoder]) if "encoder" in vae else 0,
        "preview": 0 if run.preview_vae is None else forecast.count_bytes([run.preview_vae]),
        "upscalers": forecast.count_bytes(run.upscalers.values()),
    }
    layers = {
        "encoding": 0 if run.start is None else _count_start_bytes(run, run.start),
        "denoising": max(_count_denoising_bytes(run, each, choices, widest) for each in batches),
        "decoding": max(_count_finishing_bytes(run, each, choices) for each in batches),
    }
    course = Course(
        starts_from_picture=run.start is not None,
        enlarges_pictures=any(_enlarges_pictures(batch.jobs[0]) for batch in batches),
        has_preview=run.settings.preview is not None,
        has_several_batches=len(batches) > 1,
        is_preloaded=run.settings.preload_models,
    )
    return forecast.make_forecast(base, weights, layers, course)


def count_quantized_bytes(
    sd: StableDiffusion, unet_bits: int | None = None, text_encoder_bits: int | None = None
) -> tuple[int, int]:
    """Return the bytes of UNet and control networks, and of text encoders, if they were quantized.

    They are counted in new networks, whose weights are never computed.
    """
    unets: list[nn.Module] = [UNetModel(sd.config.unet)]
    for control in sd.controls:
        make_network: Any = type(control.network)
        unets.append(make_network(control.network.config))
    text_encoders = [CLIPTextModel(config) for config in sd.config.text_encoders]
    for network in (*unets, *text_encoders):
        network.set_dtype(mx.float16 if sd.float16 else mx.float32)
    for network in unets:
        quantize_unet(network, unet_bits)
    for network in text_encoders:
        quantize_text_encoder(network, text_encoder_bits)
    return forecast.count_bytes(unets), forecast.count_bytes(text_encoders)


def _count_rows(run: Run, batch: Batch, is_single: bool = False) -> tuple[int, int]:
    """Return how many pictures of a batch are denoised at once, and the rows of each."""
    job, config = batch.jobs[0], run.sd.config
    n_rows = 1
    if config.needs_second_text(job.cfg, job.image_cfg) and not config.unet.embeds_guidance:
        n_rows = 3 if config.unet.task == "editing" else 2
    return 1 if is_single else len(batch.jobs), n_rows


def _count_step_bytes(run: Run, batch: Batch, choices: Choices) -> int:
    """Return how many bytes the layers take in a step of a batch, in the larger of its passes."""
    job, sd = batch.jobs[0], run.sd
    factor = sd.config.autoencoder.factor
    n_pictures, n_rows = _count_rows(run, batch, choices.is_single)
    passes = [(Size(job.width, job.height), n_pictures)]
    if job.second_pass is not None:
        size = job.second_pass.size
        fitting = count_pictures(run, job, size, count_weight_bytes(run))
        n_second = run.settings.batch_size or max(fitting, 1)
        passes.append((size, min(n_pictures, n_second)))
    return max(
        count_step_bytes(
            sd.config.unet,
            (-(-size.height // factor), -(-size.width // factor)),
            n * n_rows,
            sd.dtype,
            len(run.settings.controls),
        )
        for size, n in passes
    )


def _enlarges_pictures(job: CompleteJob) -> bool:
    """Return whether a second pass enlarges decoded pictures, not latents."""
    return job.second_pass is not None and job.second_pass.upscale != "latent"


def _count_start_bytes(run: Run, start: Start) -> int:
    """Return how many bytes the VAE's layers take while the picture to start from is encoded."""
    height, width, _ = start.pixels.shape
    return _count_encoding_bytes(run.sd.autoencoder, Size(width, height), None)


def _count_denoising_bytes(run: Run, batch: Batch, choices: Choices, widest: int) -> int:
    """Return how many bytes layers take until the latents of a batch are finished.

    Pictures are decoded one by one for previews, and for a second pass that enlarges them.

    Args:
        widest: see `forecast.count_widest`.
    """
    job, vae, settings = batch.jobs[0], run.sd.autoencoder, run.settings
    sizes = [_count_step_bytes(run, batch, choices) + widest]
    if settings.preview is not None:
        if run.preview_vae is not None:
            sizes.append(_count_decoding_bytes(run.preview_vae, job.size, None))
        elif isinstance(vae, AutoencoderTiny) or settings.preview_vae:
            in_strips = None if isinstance(vae, AutoencoderTiny) else choices.in_strips
            sizes.append(_count_decoding_bytes(vae, job.size, in_strips))
    if job.second_pass is not None and _enlarges_pictures(job):
        first = Size(job.width, job.height)
        sizes.append(_count_decoding_bytes(vae, first, choices.in_strips))
        sizes.append(_count_encoding_bytes(vae, job.size, choices.in_strips))
        sizes.append(_count_upscaler_bytes(run, job.second_pass.upscale, first))
    return max(sizes)


def _count_finishing_bytes(run: Run, batch: Batch, choices: Choices) -> int:
    """Return how many bytes layers take while pictures of a batch are decoded, and enlarged."""
    size = batch.jobs[0].size
    n_pictures = 1 if choices.is_single else run.settings.decoding_batch_size
    n_pictures = min(n_pictures, len(batch.jobs))
    decoding = _count_decoding_bytes(run.sd.autoencoder, size, choices.in_strips, n_pictures)
    return max(decoding, _count_upscaler_bytes(run, str(run.settings.upscale), size))


def _count_upscaler_bytes(run: Run, name: str, size: Size) -> int:
    """Return how many bytes the layers of an upscaler take; 0 if there is none of this name."""
    network = run.upscalers.get(name)
    return 0 if network is None else forecast.count_upscaler_bytes(network, math.prod(size))


def _count_decoding_bytes(vae: Vae, size: Size, in_strips: bool | None, n_pictures: int = 1) -> int:
    """Return how many bytes the VAE's layers take while pictures of a size are decoded together."""
    itemsize = vae.dtype.size
    if in_strips is None:
        n_counted = math.prod(size) * (n_pictures if backend.is_gpu() else 1)
        in_strips = n_counted > memory.choose_whole_pixels(itemsize)
    n_pixels = math.prod(size) if in_strips else math.prod(size) * n_pictures
    n_channels = forecast.find_decoder_channels(vae.config)
    return forecast.count_vae_bytes(n_pixels, n_channels, itemsize, in_strips)


def _count_encoding_bytes(vae: Vae, size: Size, in_strips: bool | None) -> int:
    """Return how many bytes the VAE's layers take while a picture of a size is encoded."""
    itemsize = vae.dtype.size
    if in_strips is None:
        in_strips = math.prod(size) > 2 * memory.choose_whole_pixels(itemsize)  # as `encode` does
    n_channels = forecast.find_encoder_channels(vae.config)
    return forecast.count_vae_bytes(math.prod(size), n_channels, itemsize, in_strips)
