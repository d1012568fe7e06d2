"""Make pictures, and notice results that are not finite, or constant.

Such a result is computed again. If that does not help, an error says why:

- Numbers that are not finite come from half precision that overflows, and then the model is loaded
  again in float32, or from damaged weights, which the error names.
- Constant results, usually zeros, come from a GPU that has too little memory.

`make_pictures` does all of this; the other functions do one phase each. As long as nothing goes
wrong, a phase costs one check of its result: the weights are not searched.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from .denoising import Denoising
from .faults import Fault, FaultyResultError, RecomputeWarning
from .model_io.loaders import find_damaged_weights
from .model_io.safetensors_file import find_not_finite
from .pipeline import StableDiffusion

EMBEDDINGS = "embeddings of text and picture"


def make_pictures(
    sd: StableDiffusion,
    start: Callable[[], Denoising],
    *,
    tiled: bool | None = None,
    adapter_files: Sequence[Path] = (),
    is_flat: bool = False,
) -> mx.array:
    """Make pictures, [B, H, W, 3] in [0, 1], and check the result of each phase.

    For example, in half precision, which some models overflow:

    >>> from stable_diffusion import StableDiffusion
    >>> from stable_diffusion.overflow import make_pictures
    >>> sd = StableDiffusion("tiny", float16=True)
    >>> pictures = make_pictures(sd, lambda: sd.generate_latents("a red circle", num_steps=5))
    >>> pictures.shape
    (1, 64, 64, 3)

    Args:
        sd: the model. If half precision overflows it computes in float32 from then on.
        start: calls one of the generators of `sd`. It is called again if the text has to be
            embedded again.
        tiled: as in `StableDiffusion.decode`.
        adapter_files: the files of LoRAs and textual inversions that `sd` has loaded, which are
            searched for weights that are not finite, too.
        is_flat: whether the picture to start from has one colour, so that results may have one.

    Warns:
        RecomputeWarning: if a result is computed again.

    Raises:
        FaultyResultError: if a result is not finite, or constant, even when computed again.
    """
    latents = start_checked(sd, start, adapter_files=adapter_files, is_flat=is_flat)
    x_0 = denoise_checked(sd, latents, adapter_files=adapter_files)
    return decode_checked(sd, x_0, tiled, is_flat=is_flat)


def start_checked(
    sd: StableDiffusion,
    start: Callable[[], Denoising],
    others: Iterable[Denoising] = (),
    *,
    adapter_files: Sequence[Path] = (),
    is_flat: bool = False,
) -> Denoising:
    """Return what `start` returns, with its inputs evaluated; start again if they are faulty.

    Args:
        sd, start, adapter_files, is_flat: as in `make_pictures`.
        others: batches that were started before and not denoised yet; they are restarted if the
            model is loaded again in float32.

    Raises:
        FaultyResultError: if the inputs are not finite, or constant, even when computed again.
    """
    latents = start()
    if sd.vae_float16:
        fault = _find_fault(
            _list_latents(latents), lambda: not is_flat and _has_constant_latents(latents)
        )
        if fault is not None:
            _use_float32_vae(sd, "latents of the picture to start from", fault)
            latents = start()
    # Evaluated one by one, so that the VAE and the text encoders are not in memory together.
    fault = _find_fault(latents.inputs, lambda: _has_constant_input(sd, latents, is_flat))
    if fault is not None and (sd.float16 or fault is Fault.CONSTANT):
        _prepare_again(sd, "text embeddings", fault, others)
        latents = start()
    _require_finite(
        latents.inputs, EMBEDDINGS, sd, (*sd.config.text_encoder_names, "vae"), adapter_files
    )
    if _has_constant_input(sd, latents, is_flat):
        raise FaultyResultError(EMBEDDINGS, Fault.CONSTANT)
    return latents


def evaluate_steps(latents: Denoising) -> mx.array:
    """Evaluate all steps, or those up to the first that is not finite; return the last latents."""
    for step in latents.evaluate():
        if not step.is_finite:
            break
    return step.x_t


def denoise_checked(
    sd: StableDiffusion,
    latents: Denoising,
    run: Callable[[Denoising], mx.array] = evaluate_steps,
    others: Iterable[Denoising] = (),
    *,
    adapter_files: Sequence[Path] = (),
) -> mx.array:
    """Return the last latents, x_0 [B, h, w, C]; run the steps again if they are faulty.

    They are also faulty if the last prediction of the UNet is constant: then noise is left. Latents
    that are constant at the start may be constant at the end.

    Args:
        sd, adapter_files: as in `make_pictures`.
        latents: what `start_checked` returned.
        run: evaluates the steps, and returns the last latents that it got.
        others: as in `start_checked`.

    Raises:
        FaultyResultError: if the latents are not finite, or constant, even when computed again.
    """

    def has_constant(x_0: mx.array) -> bool:
        found = is_constant(x_0) & ~is_constant(latents.inputs[0])
        if latents.prediction is not None:
            found = found | is_constant(latents.prediction)
        return bool(found.any().item())

    x_0 = run(latents)
    fault = _find_fault([x_0], lambda: has_constant(x_0))
    if fault is not None and (sd.float16 or fault is Fault.CONSTANT):
        _prepare_again(sd, "latents", fault, others)
        latents.restart()
        x_0 = run(latents)
    _require_finite([x_0], "latents", sd, ("unet", *sd.config.text_encoder_names), adapter_files)
    if has_constant(x_0):
        raise FaultyResultError("latents", Fault.CONSTANT)
    return x_0


def decode_checked(
    sd: StableDiffusion, x_0: mx.array, tiled: bool | None = None, *, is_flat: bool = False
) -> mx.array:
    """Return the pictures [B, H, W, 3] in [0, 1] of latents; decode in strips if they are faulty.

    A VAE in half precision is loaded again in float32 if that does not help. A picture that is all
    white or all black because it was clipped at 1 or 0 is not faulty.

    Args:
        sd, tiled, is_flat: as in `make_pictures`.
        x_0: what `denoise_checked` returned, or some of it.

    Raises:
        FaultyResultError: if pictures are not finite, or constant before they are clipped.
    """
    pictures, fault = _decode(sd, x_0, tiled, is_flat)
    if fault is not None and sd.vae_float16:
        _use_float32_vae(sd, "pictures", fault)
        pictures, fault = _decode(sd, x_0, tiled, is_flat)
    _require_finite([pictures], "pictures", sd, ["vae"])
    if fault is not None:
        raise FaultyResultError("pictures", fault)
    return pictures


def is_finite(*arrays: mx.array) -> bool:
    """Return whether all numbers are finite; evaluates the arrays, one after another."""
    return all(mx.isfinite(array).all().item() for array in arrays)


def is_constant(x: mx.array) -> mx.array:
    """Return for each item of [B, …, C] whether it is constant, to the bit: booleans [B].

    An item is constant if all its places (pixels, tokens) have the same C numbers. An item of one
    place is constant if all these numbers are equal.
    """
    places = x.reshape(len(x), -1, x.shape[-1])  # [B, N, C]
    if places.shape[1] == 1:
        places = places.reshape(len(x), -1, 1)
    n = places.shape[1]
    return (places == places[:, :1]).all(axis=(1, 2)) if n > 1 else mx.zeros(len(x), mx.bool_)


def warn_of_blank(image: np.ndarray) -> None:
    """Warn if all of a picture, uint8 [H, W, 3], has one colour."""
    if (image == image[0, 0]).all():
        colour = "black" if not image.any() else "of one colour"
        warnings.warn(f"a picture is {colour} all over: the model may be damaged", stacklevel=2)


def _find_fault(results: Sequence[mx.array], has_constant: Callable[[], bool]) -> Fault | None:
    """Return what is wrong with results; None if nothing is."""
    if not is_finite(*results):
        return Fault.NOT_FINITE
    return Fault.CONSTANT if has_constant() else None


def _has_constant_input(sd: StableDiffusion, latents: Denoising, is_flat: bool) -> bool:
    """Return whether latents, or the embeddings of a text by one text encoder, are constant."""
    if not is_flat and _has_constant_latents(latents):
        return True
    has_zeros = sd.config.pipeline.force_zeros_for_empty_prompt
    n_images = len(latents.inputs[0])
    for x in latents.inputs:
        if x.ndim == 4:  # latents
            continue
        widths = [each.hidden_size for each in sd.config.text_encoders] if x.ndim == 3 else []
        for part in mx.split(x, np.cumsum(widths)[:-1].tolist(), axis=-1) if widths else [x]:
            found = is_constant(part)
            if has_zeros:  # zeros in the second half stand for an empty negative prompt
                is_zero = (part == 0).all(axis=tuple(range(1, part.ndim)))
                found = found & ~(is_zero & (mx.arange(len(part)) >= n_images))
            if found.any().item():
                return True
    return False


def _list_latents(latents: Denoising) -> list[mx.array]:
    """Return the inputs that are latents: the first ones, and those of an encoded picture."""
    return [x for x in latents.inputs if x.ndim == 4]


def _has_constant_latents(latents: Denoising) -> bool:
    """Return whether an input that is latents is constant, and should not be."""
    flat = [id(x) for x in latents.flat_inputs]
    checked = (x for x in _list_latents(latents) if id(x) not in flat)
    return any(is_constant(x).any().item() for x in checked)


def _decode(
    sd: StableDiffusion, x_0: mx.array, tiled: bool | None, is_flat: bool
) -> tuple[mx.array, Fault | None]:
    """Return the pictures of latents, decoded in strips if they are constant, and their fault."""
    pictures = sd.decode(x_0, tiled)
    if not is_finite(pictures):
        return pictures, Fault.NOT_FINITE
    if is_flat or not is_constant(pictures).any().item():
        return pictures, None
    mx.clear_cache()
    unclipped = sd.decode_unclipped(x_0, tiled=True)
    fault = _find_fault([unclipped], lambda: bool(is_constant(unclipped).any().item()))
    return (unclipped if fault is Fault.NOT_FINITE else mx.clip(unclipped, 0, 1)), fault


def _require_finite(
    results: Sequence[mx.array],
    what: str,
    sd: StableDiffusion,
    components: Iterable[str],
    adapter_files: Sequence[Path] = (),
) -> None:
    """Check that results are finite.

    Args:
        components, adapter_files: where to search for damaged weights, for the error.

    Raises:
        FaultyResultError: if they are not finite.
    """
    if is_finite(*results):
        return
    damaged = find_damaged_weights(sd.model, components, sd.float16)
    damaged += [
        f"{file}: {key}" for file in adapter_files for key in find_not_finite(file, mx.float32)
    ]
    raise FaultyResultError(what, Fault.NOT_FINITE, damaged)


def _prepare_again(
    sd: StableDiffusion, what: str, fault: Fault, others: Iterable[Denoising]
) -> None:
    """Warn that a result is computed again, and load a model in half precision in float32."""
    mx.clear_cache()
    warnings.warn(RecomputeWarning(what, fault, gives_up_float16=sd.float16), stacklevel=3)
    if sd.float16:
        sd.use_float32()
        for latents in others:
            latents.restart()


def _use_float32_vae(sd: StableDiffusion, what: str, fault: Fault) -> None:
    """Warn that a result of the VAE is computed again, and load the VAE in float32."""
    mx.clear_cache()
    warnings.warn(RecomputeWarning(what, fault, gives_up_vae_float16=True), stacklevel=3)
    sd.use_float32_vae()
