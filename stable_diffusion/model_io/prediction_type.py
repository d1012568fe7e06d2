"""What the UNet of a single file predicts: the markers, metadata and weights that say it."""

import warnings
from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from ..config.networks import MAX_WIDTH
from .number_types import widen_floats
from .original_layout import SD_2, UNET_ROOT, Family
from .safetensors_file import Header, read_tensor

EPSILON, VELOCITY = "epsilon", "v_prediction"

# Empty tensors with which SDXL fine-tunes say that they predict the velocity, and that their noise
# schedule ends in pure noise.
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"

# Metadata that say it, the first of them counts: https://github.com/Stability-AI/ModelSpec, what
# ComfyUI writes, the kind of model in the first standard, and what the scripts of kohya write.
PREDICTIONS = {
    **dict.fromkeys(("epsilon", "eps"), EPSILON),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "velocity"), VELOCITY),
}
ARCHITECTURES = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": VELOCITY}
STATEMENTS = {
    "modelspec.prediction_type": PREDICTIONS,
    "modelspec.predict_key": PREDICTIONS,
    "modelspec.architecture": ARCHITECTURES,
    "ss_v_parameterization": {"true": VELOCITY},
}
ZERO_SNR_KEY = "ss_zero_terminal_snr"

# ComfyUI's rule for SD 2: in the published models that predict the velocity, the numbers of this
# bias vary more than in the others.
LATENT_CHANNELS = 4  # that the UNet takes if it takes only latents
TELLTALE = f"{UNET_ROOT}output_blocks.11.1.transformer_blocks.0.norm1.bias"
MIN_DEVIATION = 0.09


def find_prediction_type(header: Header, family: Family, in_channels: int) -> str:
    """Return what the UNet predicts, "epsilon" or "v_prediction", and warn if it is a guess.

    Args:
        in_channels: that the UNet takes.

    Raises:
        ValueError: if the metadata say that it predicts something else.
    """
    stated = find_stated_prediction(header)
    if stated is not None:
        return stated
    # Inpainting models of SD 2 predict the noise. The rule for the others does not hold for them.
    is_guessed = family is SD_2 and in_channels == LATENT_CHANNELS
    return _guess(header) if is_guessed else EPSILON


def find_stated_prediction(header: Header) -> str | None:
    """Return what a marker or the metadata say that the UNet predicts, or None if none does.

    Raises:
        ValueError: if the metadata say that it predicts neither noise nor velocity.
    """
    stated = _read_statements(header)
    if V_MARKER in header.shapes:
        _warn_of_contradictions(header.name, f"its tensor {V_MARKER}", VELOCITY, stated)
        return VELOCITY
    if not stated:
        return None
    key, prediction_type = next(iter(stated.items()))
    _warn_of_contradictions(header.name, key, prediction_type, stated)
    return prediction_type


def has_zero_snr(header: Header, prediction_type: str) -> bool:
    """Return whether the noise schedule of a model ends in pure noise.

    The marker counts only for a UNet that predicts the velocity, as in ComfyUI.
    """
    is_stated = header.metadata.get(ZERO_SNR_KEY, "").strip().lower() == "true"
    return is_stated or (prediction_type == VELOCITY and ZERO_SNR_MARKER in header.shapes)


def _read_statements(header: Header) -> dict[str, str]:
    """Return what the metadata say that the UNet predicts, by their keys.

    Raises:
        ValueError: if it is neither noise nor velocity.
    """
    stated = {}
    for key, meanings in STATEMENTS.items():
        value = header.metadata.get(key, "").strip().lower()
        if value in meanings:
            stated[key] = meanings[value]
        elif value and meanings is PREDICTIONS:
            raise ValueError(f"{header.name}: {key} = {value[:50]!r} is not supported")
    return stated


def _warn_of_contradictions(
    name: str, source: str, prediction_type: str, stated: Mapping[str, str]
) -> None:
    """Warn if the metadata say something else than what is taken."""
    others = [key for key, other in stated.items() if other != prediction_type]
    if others:
        warnings.warn(
            f"{name} contradicts itself about what the model predicts: {source} says "
            f"{prediction_type}, which is taken, {others[0]} says {stated[others[0]]}: if the "
            "picture is wrong, give the other one (--prediction-type)",
            stacklevel=2,
        )


def _guess(header: Header) -> str:
    """Return what an SD 2 model seems to predict, by its weights, and warn that it is a guess."""
    prediction_type, other, why = EPSILON, VELOCITY, "nothing shows that it is the velocity"
    shape = header.shapes.get(TELLTALE, ())
    if len(shape) == 1 and 0 < shape[0] <= MAX_WIDTH:
        raw = {TELLTALE: read_tensor(header, TELLTALE)}
        bias = widen_floats(header.name, header.kinds, raw)[TELLTALE].astype(mx.float32)
        deviation = np.std(np.array(bias))
        if deviation > MIN_DEVIATION:
            prediction_type, other = VELOCITY, EPSILON
        why = f"its weights look like it (deviation {deviation:.3f}, limit {MIN_DEVIATION})"
    warnings.warn(
        f"{header.name} does not say what this SD 2 model predicts, and is taken to predict "
        f"{prediction_type}: {why}; if the pictures are noise, give --prediction-type {other}",
        stacklevel=2,
    )
    return prediction_type
