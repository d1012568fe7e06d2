"""Check that a model gets what its UNet takes: a picture to edit, or a picture and a mask."""

from .config.model import ModelConfig


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
