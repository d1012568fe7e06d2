"""A second pass: pictures are made, enlarged, and denoised again in part at the larger size.

Models draw things twice in pictures that are much larger than those of their training. In two
passes the first one decides what is where, and the second adds details. AUTOMATIC1111's web UI
calls it "Hires. fix".
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from .check_arguments import check_integer, check_number, describe
from .check_pictures import check_latents
from .control import Control, check_controls
from .denoising import Denoising
from .generation import Generation
from .image_start import ImageStart
from .images.arrays import MAX_PIXELS, Fit, to_uint8
from .images.pixels import resize
from .pipeline import Origin, StableDiffusion, start_steps
from .rrdbnet import RRDBNet, enlarge
from .sampler.noise import NoiseStream, draw_latents
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule
from .utils.size import Size
from .vae_strips import encode

Upscale = str | RRDBNet  # one of `FILTERS`, or a network

MIN_SCALE, MAX_SCALE = 1.0, 4.0
SCALE, STRENGTH, UPSCALE = 2.0, 0.7, "latent"  # the defaults are those of the web UI
FILTERS = ("latent", "lanczos")
DECIMALS = 6  # of a side: 800 × 1.15 is 920, not 919.9999999999999


def start_second_pass(
    sd: StableDiffusion,
    first: Denoising,
    x_0: mx.array,
    scale: float = SCALE,
    strength: float = STRENGTH,
    num_steps: int | None = None,
    upscale: Upscale = UPSCALE,
    *,
    pictures: range | None = None,
    tiled: bool | None = None,
    controls: Sequence[Control] | None = None,
) -> Denoising:
    """Return the steps of a second pass over finished pictures, at a larger size.

    The enlarged pictures get noise, which continues the streams of the first pass, and are denoised
    from there as picture to picture is (SDEdit, arXiv:2108.01073), with the same texts and options.
    The text encoders are not needed any more. Pictures are decoded, enlarged and encoded now. For
    example:

    >>> import mlx.core as mx
    >>> from stable_diffusion import StableDiffusion
    >>> from stable_diffusion.hires import start_second_pass
    >>> sd = StableDiffusion("tiny")
    >>> first = sd.generate_latents("a red circle", num_steps=5, seed=1)
    >>> for x_t in first:
    ...     mx.eval(x_t)
    >>> second = start_second_pass(sd, first, x_t, scale=1.5)
    >>> for x_t in second:
    ...     mx.eval(x_t)
    >>> sd.decode(x_t).shape
    (1, 96, 96, 3)

    Args:
        sd: the pipeline that `first` is of.
        first: what `generate_latents` returned, all of whose steps are taken.
        x_0: its last latents, [B, h, w, C].
        scale: how many times larger each side becomes, above 1 and up to 4; sides are rounded down
            to whole latents.
        strength: how much of the schedule is run, above 0 and up to 1.
        num_steps: how many steps are run: the last of a schedule of int(num_steps / strength). If
            None, int(steps * strength) of those of the first pass, at least one.
        upscale: what enlarges: "latent", bilinear interpolation of the latents; "lanczos", Lanczos'
            filter on the decoded pictures; or a network on these, as
            `model_io.upscaler_file.UpscalerFile.load` returns it.
        pictures: which of the pictures; all of them if None.
        tiled: decode in strips, as in `StableDiffusion.decode`.
        controls: pictures that steer this pass, such as edges that are drawn at its size; those of
            the first pass, stretched to this size, if None.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if an argument is out of its range, or there cannot be a second pass.
    """
    origin = _choose_controls(_find_origin(first), controls, sd)
    x_0 = check_latents(x_0, sd.config.autoencoder.latent_channels)
    if x_0.shape != first.inputs[0].shape:
        raise ValueError(
            f"x_0 must be the last latents of first, {list(first.inputs[0].shape)}, "
            f"got {list(x_0.shape)}"
        )
    n_images = len(x_0)
    pictures = _check_pictures(pictures, n_images)
    _check_upscale(upscale)
    factor = sd.config.autoencoder.factor
    height, width = (side * factor for side in x_0.shape[1:3])
    size = compute_size(Size(width, height), check_scale(scale), factor)
    schedule = cut_schedule(origin.generation, check_strength(strength), num_steps)

    x = x_0[pictures.start : pictures.stop]
    if upscale == "latent":
        x = enlarge_latents(x, Size(size.width // factor, size.height // factor))
    else:
        x = mx.concatenate([_enlarge_decoded(sd, each, size, upscale, tiled) for each in x])
    streams = continue_streams(origin, x_0.shape[1:], pictures)
    noise = mx.array(draw_latents(streams, x.shape[1:]))
    second = _select(origin, pictures, n_images, schedule, streams)
    return start_steps(sd, ImageStart(schedule.steps[0].start.mix(x, noise), []), second)


def compute_size(size: Size, scale: float, factor: int) -> Size:
    """Return the size of a second pass; its sides are multiples of `factor`, rounded down.

    Raises:
        ValueError: if it is too large, or not larger than the first size.
    """
    width, height = (int(round(side * scale, DECIMALS)) // factor * factor for side in size)
    larger = f"{size.width}x{size.height} times {scale:g} is {width}x{height}"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{larger}, more than {MAX_PIXELS} pixels")
    if (width, height) == size:
        raise ValueError(f"{larger}, as sides are multiples of {factor}: that is not larger")
    return Size(width, height)


def count_steps(first: Denoising, strength: float, num_steps: int | None) -> int:
    """Return how many steps a second pass has, which are calls of the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second pass itself warns
        return len(cut_schedule(_find_origin(first).generation, strength, num_steps))


def cut_schedule(generation: Generation, strength: float, num_steps: int | None) -> Schedule:
    """Return the steps of a second pass; see `start_second_pass`.

    Raises:
        ValueError: if the sampler has no schedule with so many steps.
    """
    if num_steps is None:
        return generation.cut_schedule(strength)
    num_steps = check_integer("num_steps", num_steps, low=1)
    return make_last_steps(generation.sampler, strength, num_steps)


def make_last_steps(sampler: Sampler, strength: float, num_steps: int) -> Schedule:
    """Return the last steps of a schedule that is as much longer as `strength` is below 1.

    Raises:
        ValueError: if the sampler has no schedule with so many steps.
    """
    if sampler.timesteps is not None:
        raise ValueError("num_steps and timesteps: leave one out, as timesteps are the steps")
    total = int(num_steps / strength)
    try:
        return sampler.schedule(total).last(num_steps)
    except ValueError as error:
        raise ValueError(
            f"{num_steps} steps at strength {strength:g} are the last of {total}: {error}"
        ) from None


def check_scale(value: Any) -> float:
    """Return the argument `scale`.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is out of its range.
    """
    scale = check_number("scale", value, MIN_SCALE, MAX_SCALE)
    if scale == MIN_SCALE:
        raise ValueError("scale must be above 1, got 1")
    return scale


def check_strength(value: Any) -> float:
    """Return the argument `strength`; see `check_scale`."""
    strength = check_number("strength", value, 0, 1)
    if strength == 0:
        raise ValueError("strength must be above 0, got 0: it would run no step")
    return strength


def enlarge_latents(x: mx.array, size: Size) -> mx.array:
    """Return latents [B, h, w, C] in another size, in latents, by bilinear interpolation.

    It does not average where it reduces, and the corners of the outer pixels stay where they are:
    PyTorch's `interpolate(x, size, mode="bilinear")`.
    """
    height, width = x.shape[1:3]
    rows, columns = _make_bilinear(height, size.height), _make_bilinear(width, size.width)
    return mx.einsum("ih,jw,bhwc->bijc", mx.array(rows), mx.array(columns), x.astype(mx.float32))


def _make_bilinear(n_old: int, n_new: int) -> np.ndarray:
    """Return the matrix [n_new, n_old], float32, that resizes a side by linear interpolation."""
    places = ((np.arange(n_new) + 0.5) * (n_old / n_new) - 0.5).clip(0, n_old - 1)
    before = np.floor(places).astype(int)
    after = (before + 1).clip(max=n_old - 1)
    matrix = np.zeros((n_new, n_old))
    np.add.at(matrix, (np.arange(n_new), before), 1 - (places - before))
    np.add.at(matrix, (np.arange(n_new), after), places - before)
    return matrix.astype(np.float32)


def enlarge_picture(picture: np.ndarray, size: Size, upscale: Upscale) -> np.ndarray:
    """Return a picture, uint8 [H, W, 3], in a larger size.

    A network enlarges as many times as it was made to; Lanczos' filter brings the result to `size`.
    """
    if isinstance(upscale, RRDBNet):
        picture = enlarge(upscale, picture)
    return resize(picture, Fit(size))


def continue_streams(origin: Origin, shape: Sequence[int], pictures: range) -> list[NoiseStream]:
    """Return the streams of noise of some pictures as they are after the last step of a call.

    Args:
        shape: (h, w, C) of the latents of a picture.
    """
    generation = origin.generation
    # As they are before the first step.
    streams = copy.deepcopy(generation.streams[pictures.start : pictures.stop])
    for step in origin.schedule.steps:
        if generation.sampler.needs_noise and step.adds_noise:
            draw_latents(streams, shape)
    return streams


def _find_origin(first: Any) -> Origin:
    """Return what a first pass was made from.

    Raises:
        TypeError: if it is not a `Denoising`.
        ValueError: if there cannot be a second pass.
    """
    if not isinstance(first, Denoising):
        raise TypeError(f"first must be what generate_latents returned, got {describe(first)}")
    if first.origin is None:
        raise ValueError("first must be what generate_latents returned: not of a part of a picture")
    return first.origin


def _choose_controls(
    origin: Origin, controls: Sequence[Control] | None, sd: StableDiffusion
) -> Origin:
    """Return an origin with the argument `controls` in place of its own, unless that is None."""
    if controls is None:
        return origin
    checked = check_controls(controls, sd.controls)
    return origin._replace(generation=replace(origin.generation, controls=checked))


def _check_upscale(value: Any) -> None:
    """Check the argument `upscale`; see `start_second_pass`."""
    wanted = f"upscale must be one of {', '.join(FILTERS)}, or an RRDBNet"
    if not isinstance(value, str | RRDBNet):
        raise TypeError(f"{wanted}, got {describe(value)}")
    if isinstance(value, str) and value not in FILTERS:
        raise ValueError(f"{wanted}, got {value!r}")


def _check_pictures(value: Any, n_images: int) -> range:
    """Return the argument `pictures`; see `start_second_pass`."""
    pictures = range(n_images) if value is None else value
    if not isinstance(pictures, range):
        raise TypeError(f"pictures must be a range or None, got {describe(pictures)}")
    if pictures.step != 1 or not 0 <= pictures.start < pictures.stop <= n_images:
        raise ValueError(f"pictures must be a part of range({n_images}), got {pictures}")
    return pictures


def _enlarge_decoded(
    sd: StableDiffusion, x: mx.array, size: Size, upscale: Upscale, tiled: bool | None
) -> mx.array:
    """Return the most likely latents [1, h, w, C] of a picture after it is decoded and enlarged.

    They are NaN if the picture is not finite, as if a VAE in half precision overflows: bytes cannot
    say it.
    """
    decoded = np.array(sd.decode(x[None], tiled))[0]
    if not np.isfinite(decoded).all():
        factor = sd.config.autoencoder.factor
        return mx.full((1, size.height // factor, size.width // factor, x.shape[-1]), mx.nan)
    picture = enlarge_picture(to_uint8(decoded), size, upscale)
    mean, _ = encode(sd.autoencoder, mx.array(picture[None].astype(np.float32) / 127.5 - 1), tiled)
    mx.eval(mean)
    return mean


def _select(
    origin: Origin,
    pictures: range,
    n_images: int,
    schedule: Schedule,
    streams: list[NoiseStream],
) -> Origin:
    """Return the origin of steps for some of the pictures of a call."""
    part = slice(pictures.start, pictures.stop)
    generation, _, embeddings, pooled = origin
    negative_texts = generation.negative_texts

    def select(x: mx.array) -> mx.array:  # [B or 2B, …]: the rows of the negative texts are second
        return mx.concatenate([x[i:][part] for i in range(0, len(x), n_images)])

    generation = replace(
        generation,
        texts=generation.texts[part],
        negative_texts=None if negative_texts is None else negative_texts[part],
        streams=streams,
    )
    return Origin(
        generation, schedule, select(embeddings), None if pooled is None else select(pooled)
    )
