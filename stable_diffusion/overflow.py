"""Results that are not finite, or constant: computed again, or refused with the reason.

Numbers that are not finite come from half precision, which is given up, or from weights, which are
named. A constant, most of all zero, is what a GPU leaves that ran out of memory: it is computed
once more. Nothing is searched before something has gone wrong: a phase that goes well costs one
look at its result.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from .denoising import Denoising
from .model_io.loaders import damaged_weights
from .model_io.safetensors_file import not_finite
from .pipeline import StableDiffusion
from .utils.wording import join_names

NOT_FINITE, CONSTANT = "not finite numbers", "constant"  # what can be wrong with a result
EMBEDDINGS = "embeddings of text and picture"


def is_finite(*arrays: mx.array) -> bool:
    """Return whether all numbers are; evaluates them, one array after another."""
    return all(mx.isfinite(array).all().item() for array in arrays)


def is_constant(x: mx.array) -> mx.array:
    """Return for each item of [B, …, C] whether it is constant, to the bit: booleans [B].

    It is if all its places (pixels, tokens) have the same C numbers; an item of one place, if all
    these numbers are equal.
    """
    places = x.reshape(len(x), -1, x.shape[-1])  # [B, N, C]
    if places.shape[1] == 1:
        places = places.reshape(len(x), -1, 1)
    n = places.shape[1]
    return (places == places[:, :1]).all(axis=(1, 2)) if n > 1 else mx.zeros(len(x), mx.bool_)


def started(
    sd: StableDiffusion,
    start: Callable[[], Denoising],
    others: Iterable[Denoising] = (),
    added: Sequence[Path] = (),
    *,
    is_flat: bool = False,
) -> Denoising:
    """Return what `start` begins, with its inputs evaluated; begun once more if they are suspect.

    In float32 if that was half precision.

    Args:
        others: have begun before, and follow into float32.
        added: the files of LoRAs and learned words.
        is_flat: the picture to start from is of one colour, and may be so when it is encoded.

    Raises:
        ValueError: if the inputs are not finite, or constant; the message names weights that are
            not finite.
    """
    latents = start()
    # The picture's encoder and the text's work at different times.
    fault = _find_fault(is_finite(*latents.inputs), lambda: _has_constant(sd, latents, is_flat))
    if fault is not None and (sd.float16 or fault is CONSTANT):
        _prepare_again(sd, "text embeddings", fault, others)
        latents = start()
    components = (*_text_encoders(sd), "vae")
    require_finite(latents.inputs, EMBEDDINGS, sd, components, added)
    if _has_constant(sd, latents, is_flat):
        raise ValueError(_say_constant(EMBEDDINGS))
    return latents


def denoised(
    sd: StableDiffusion,
    latents: Denoising,
    run: Callable[[Denoising], mx.array],
    others: Iterable[Denoising] = (),
    added: Sequence[Path] = (),
) -> mx.array:
    """Return the last of `latents`, [B, h, w, C], which `run` evaluates; if suspect, once more.

    That is, too, if the UNet's last prediction is constant, which leaves noise. Latents that are
    constant from the start may stay so. Args and errors: as of `started`.
    """

    def has_constant(x_0: mx.array) -> bool:
        found = is_constant(x_0) & ~is_constant(latents.inputs[0])
        if latents.prediction is not None:
            found = found | is_constant(latents.prediction)
        return found.any().item()

    x_0 = run(latents)
    fault = _find_fault(is_finite(x_0), lambda: has_constant(x_0))
    if fault is not None and (sd.float16 or fault is CONSTANT):
        _prepare_again(sd, "latents", fault, others)
        latents.restart()
        x_0 = run(latents)
    require_finite([x_0], "latents", sd, ("unet", *_text_encoders(sd)), added)
    if has_constant(x_0):
        raise ValueError(_say_constant("latents"))
    return x_0


def decoded(
    sd: StableDiffusion, x_0: mx.array, tiled: bool | None, *, is_flat: bool = False
) -> mx.array:
    """Return the pictures [B, H, W, 3] in [0, 1] of latents; decoded in strips if suspect.

    A picture that is white, or black, because it was cut off at 1, or 0, is not.

    Args:
        tiled: as of `StableDiffusion.decode`.
        is_flat: the picture to start from is of one colour, and what comes of it may be so.

    Raises:
        ValueError: if they are not finite, or constant before they were cut off; the message
            names weights that are not finite.
    """
    pictures = sd.decode(x_0, tiled)
    require_finite([pictures], "pictures", sd, ["vae"])
    if is_flat or not is_constant(pictures).any().item():
        return pictures
    mx.clear_cache()
    whole = sd.decode_unclipped(x_0, tiled=True)
    require_finite([whole], "pictures", sd, ["vae"])
    if is_constant(whole).any().item():
        raise ValueError(_say_constant("pictures"))
    return mx.clip(whole, 0, 1)


def require_finite(
    arrays: Sequence[mx.array],
    what: str,
    sd: StableDiffusion,
    components: Iterable[str],
    added: Sequence[Path] = (),
) -> None:
    """Refuse results that are not finite, with the names of weights that may be why.

    Raises:
        ValueError: so it is.
    """
    if is_finite(*arrays):
        return
    damaged = damaged_weights(sd.model, components, sd.float16)
    damaged += [f"{file}: {key}" for file in added for key in not_finite(file, mx.float32)]
    if damaged:
        raise ValueError(
            f"the {what} are not finite numbers, for these weights are not: {join_names(damaged)}; "
            "get the file again"
        )
    raise ValueError(
        f"the {what} are not finite numbers, though all weights are: the model overflows; try "
        "another --sampler, a smaller --cfg, or less of --lora"
    )


def warn_of_blank(image: np.ndarray) -> None:
    """Say so where a picture, uint8 [H, W, 3], is of one colour all over."""
    if (image == image[0, 0]).all():
        colour = "black" if not image.any() else "of one colour"
        warnings.warn(f"a picture is {colour} all over: the model may be damaged", stacklevel=2)


def _text_encoders(sd: StableDiffusion) -> tuple[str, ...]:
    return ("text_encoder", "text_encoder_2")[: len(sd.config.text_encoders)]


def _has_constant(sd: StableDiffusion, latents: Denoising, is_flat: bool) -> bool:
    """Return whether latents, or what a text encoder made of a text, are constant."""
    has_zeros = sd.config.pipeline.force_zeros_for_empty_prompt
    n_images = len(latents.inputs[0])
    for x in latents.inputs:
        if x.ndim == 4:
            if not is_flat and is_constant(x).any().item():
                return True
            continue
        widths = [each.hidden_size for each in sd.config.text_encoders] if x.ndim == 3 else []
        for part in mx.split(x, np.cumsum(widths)[:-1].tolist(), axis=-1) if widths else [x]:
            found = is_constant(part)
            if has_zeros:  # in place of an empty text to steer away from
                is_zero = (part == 0).all(axis=tuple(range(1, part.ndim)))
                found = found & ~(is_zero & (mx.arange(len(part)) >= n_images))
            if found.any().item():
                return True
    return False


def _find_fault(is_finite: bool, has_constant: Callable[[], bool]) -> str | None:
    """Return what is wrong with a result; nothing has been seen of it if that is None."""
    if not is_finite:
        return NOT_FINITE
    return CONSTANT if has_constant() else None


def _say_constant(what: str) -> str:
    return (
        f"the {what} are constant, when computed again, too: the memory may not be enough: try "
        "smaller pictures, --low-memory or -q; if that does not help, the model may be damaged"
    )


def _prepare_again(sd: StableDiffusion, what: str, fault: str, begun: Iterable[Denoising]) -> None:
    """Say that something is computed again; in float32 if that was half precision."""
    mx.clear_cache()
    if not sd.float16:
        warnings.warn(f"the {what} are {fault}: once more", stacklevel=3)
        return
    warnings.warn(
        f"the {what} are {fault} in half precision: once more in float32 "
        "(--no-float16 saves the detour)",
        stacklevel=3,
    )
    sd.use_float32()
    for latents in begun:
        latents.restart()
