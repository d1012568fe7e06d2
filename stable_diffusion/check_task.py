"""Check that a model gets what its UNet takes: a picture to edit, or a picture and a mask."""

from typing import Any

from .check_arguments import check_number
from .config.model import ModelConfig
from .config.task import IMAGE_GUIDANCE

DEFAULT_STRENGTH = 0.8


def check_task(config: ModelConfig, *, has_image: bool = False, has_mask: bool = False) -> None:
    """Check that a model is given the pictures that it is trained for.

    Args:
        has_image: whether there is a picture to start from, or to edit.
        has_mask: whether there is a mask of the part to repaint.

    Raises:
        ValueError: if an inpainting model has no picture or no mask; if an editing model has no
            picture, or has a mask.
    """
    name, task = config.name, config.unet.task
    if task == "inpainting" and not (has_image and has_mask):
        raise ValueError(
            f"{name} is an inpainting model, which needs a picture and a mask: give both to "
            "generate_latents_from_image (image2image.py has --mask), or take another model"
        )
    if task == "editing" and not has_image:
        raise ValueError(
            f"{name} is an editing model, which needs a picture: give one to "
            "generate_latents_from_image (image2image.py), or take another model"
        )
    if task == "editing" and has_mask:
        raise ValueError(
            f"{name} is an editing model, which changes the whole picture: leave the mask out"
        )


def check_strength(value: Any, config: ModelConfig) -> float:
    """Return how much of the schedule to run: the strength, or its default.

    Raises:
        TypeError: if it is neither a number nor None.
        ValueError: if it is outside [0, 1], or given to an editing model.
    """
    if config.unet.task != "editing":
        return check_number("strength", DEFAULT_STRENGTH if value is None else value, 0, 1)
    if value is not None:
        raise ValueError(
            f"{config.name} is an editing model, which begins with noise alone: leave strength "
            "out; image_cfg_weight says how closely to keep to the picture"
        )
    return 1.0


def check_image_cfg_weight(value: Any, config: ModelConfig) -> float | None:
    """Return the weight of guidance by the picture, or its default; None for other models.

    Raises:
        TypeError: if it is neither a number nor None.
        ValueError: if it is not finite, or given for a model that does not edit a picture.
    """
    if value is not None:
        value = check_number("image_cfg_weight", value)
    if config.unet.task == "editing":
        return IMAGE_GUIDANCE if value is None else value
    if value is not None:
        raise ValueError(
            f"image_cfg_weight is for models that edit a picture, and {config.name} does not: "
            f"leave it out, got {value:g}"
        )
    return None
