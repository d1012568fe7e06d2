"""Results that are no finite numbers: half precision is given up, or the guilty weights are named.

Nothing is searched before something has gone wrong: a phase that goes well costs one look at its
result.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from .denoising import Denoising
from .model_io import damaged_weights
from .pipeline import StableDiffusion
from .weights import listed, not_finite


def is_finite(*arrays: mx.array) -> bool:
    """Whether all numbers are; evaluates them, one array after another."""
    return all(mx.isfinite(array).all().item() for array in arrays)


def started(
    sd: StableDiffusion,
    start: Callable[[], Denoising],
    others: Iterable[Denoising] = (),
    added: Sequence[Path] = (),
) -> Denoising:
    """What `start` begins, with its inputs evaluated; begun again in float32 if they overflow.

    Args:
        others: have begun before, and follow into float32.
        added: the files of LoRAs and learned words.

    Raises:
        ValueError: the inputs are not finite; the message names weights that are not.
    """
    latents = start()
    # The picture's encoder and the text's work at different times.
    if not is_finite(*latents.inputs) and sd.float16:
        _give_up_half_precision(sd, "text embeddings", others)
        latents = start()
    components = (*_text_encoders(sd), "vae")
    require_finite(latents.inputs, "embeddings of text and picture", sd, components, added)
    return latents


def denoised(
    sd: StableDiffusion,
    latents: Denoising,
    run: Callable[[Denoising], mx.array],
    others: Iterable[Denoising] = (),
    added: Sequence[Path] = (),
) -> mx.array:
    """The last of `latents`, [B, h, w, C], which `run` evaluates; again in float32 if need be.

    Args and errors: as of `started`.
    """
    x_0 = run(latents)
    if not is_finite(x_0) and sd.float16:
        _give_up_half_precision(sd, "latents", (latents, *others))
        x_0 = run(latents)
    require_finite([x_0], "latents", sd, ("unet", *_text_encoders(sd)), added)
    return x_0


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
    damaged = damaged_weights(sd.source, components, sd.float16)
    damaged += [f"{file}: {key}" for file in added for key in not_finite(file, mx.float32)]
    if damaged:
        raise ValueError(
            f"the {what} are not finite numbers, for these weights are not: {listed(damaged)}; "
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


def _give_up_half_precision(sd: StableDiffusion, what: str, begun: Iterable[Denoising]) -> None:
    warnings.warn(
        f"the {what} are not finite numbers in half precision: once more in float32 "
        "(--no-float16 saves the detour)",
        stacklevel=3,
    )
    sd.use_float32()
    for latents in begun:
        latents.restart()
