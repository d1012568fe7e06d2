"""Refuse models that this package does not support: their files show what they are.

They would not fit the networks here, or worse, would fit and give wrong pictures.
"""

import re
from collections.abc import Collection
from typing import Any, NoReturn

from ..config.networks import UNetConfig
from .original_layout import UNET_ROOT
from .other_files import FAMILIES, PARTS, RELATIVES, UNET_ALONE

REFINER = "the SDXL refiner"
REFINER_CONTEXT = 1280  # the width of SDXL's second text encoder, the only one that it uses
# By the width of the text embeddings that the UNet takes.
CONTEXTS = {768: "SD 1.x", 1024: "SD 2.x"}
XL_CONTEXT = 2048

# By a part of the pipeline's class in `model_index.json`; the first match counts.
PIPELINES = {
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "Kandinsky": "Kandinsky",
    "Depth2Img": "a depth-to-image model",
    "Upscale": "an upscaler",
    "UnCLIP": "Stable unCLIP",
    "ControlNet": "a pipeline with a ControlNet",
    "StableVideo": "Stable Video Diffusion",
    "AnimateDiff": "AnimateDiff",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Würstchen",
    "PixArt": "PixArt",
    "QwenImage": "Qwen-Image",
    "Kolors": "Kolors",
    "LTX": "LTX-Video",
}

# By the number of channels that the UNet takes, if it gives another number.
INPUTS = {5: "a depth-to-image model", 7: "an upscaler"}


def refuse_pipeline(index: Any, where: str) -> None:
    """Refuse a model that is not supported, by the content of its `model_index.json`.

    A model that is not known at all passes: the strict configs refuse it later.

    Raises:
        ValueError: if it is a known kind of model that is not supported; the message names it.
    """
    if not isinstance(index, dict):
        return
    class_name = str(index.get("_class_name"))
    # The refiner takes an aesthetic score instead of the target size.
    if index.get("requires_aesthetics_score") is True:
        raise _make_refusal(where, REFINER)
    if index.get("is_cosxl_edit") is True:
        raise _make_refusal(where, "CosXL")
    for part, model in PIPELINES.items():
        if part in class_name:
            raise _make_refusal(where, model)


def refuse_unet(name: str, unet: UNetConfig) -> None:
    """Refuse a model that is not supported, by the inputs of its UNet.

    Raises:
        ValueError: as `refuse_pipeline` does.
    """
    if unet.in_channels != unet.out_channels and unet.in_channels in INPUTS:
        raise _make_refusal(name, INPUTS[unet.in_channels])
    if unet.addition_embed_type is not None:
        refuse_context(name, unet.cross_attention_dim)


def refuse_context(name: str, width: int) -> None:
    """Refuse a UNet of SDXL's kind by the width of the text embeddings that it takes.

    Raises:
        ValueError: as `refuse_pipeline` does.
    """
    if width == REFINER_CONTEXT:
        raise _make_refusal(name, REFINER)


def describe_unet(unet: UNetConfig) -> str:
    """Return the family of the models that a UNet is for."""
    return describe_family(unet.addition_embed_type is not None, unet.cross_attention_dim)


def describe_family(has_added_embedding: bool, width: int) -> str:
    """Return the family of the models whose UNet takes text embeddings of a width."""
    if has_added_embedding:
        return "SDXL" if width == XL_CONTEXT else f"SDXL with text embeddings of {width}"
    return CONTEXTS.get(width, f"Stable Diffusion with text embeddings of {width}")


def refuse_other_family(name: str, family: str, model: str, own_family: str) -> None:
    """Refuse a UNet that is not one for a model.

    Args:
        name: of the UNet.
        family: that it is for.
        model: the name of the model.
        own_family: of the model.

    Raises:
        ValueError: if the families differ.
    """
    if family != own_family:
        raise ValueError(
            f"{name} is the UNet of {family}, and {model} is {own_family}: they do not fit together"
        )


def refuse_keys(name: str, keys: Collection[str], *, is_for_unet: bool = False) -> None:
    """Refuse a file that is no model of a supported kind, by its keys.

    Beside the UNet of a whole model only relatives of Stable Diffusion are refused: its other keys
    may be left over from anything.

    Args:
        is_for_unet: whether only the UNet of the file is wanted, so that it may be alone.

    Raises:
        ValueError: as `refuse_pipeline` does, or with what the file is and what to do with it.
    """
    lines = "\n".join(keys)

    def has(pattern: str) -> bool:
        return re.search(pattern, lines, re.MULTILINE) is not None

    is_whole = has(rf"^{re.escape(UNET_ROOT)}input_blocks\.")
    parts = {} if is_whole else PARTS
    for pattern, model in (RELATIVES if is_whole else {**RELATIVES, **FAMILIES}).items():
        if has(pattern):
            refuse_model(name, model)
    for pattern, (what, advice) in parts.items():
        if has(pattern) and not (is_for_unet and pattern == UNET_ALONE):
            raise ValueError(f"{name}: this is {what}: {advice}")


def refuse_model(where: str, model: str) -> NoReturn:
    """Refuse a model that is not supported.

    Raises:
        ValueError: always.
    """
    raise _make_refusal(where, model)


def _make_refusal(where: str, model: str) -> ValueError:
    """Return the error to raise for a model that is not supported."""
    return ValueError(f"{where}: this is {model}; only Stable Diffusion 1.x, 2.x and XL are run")
