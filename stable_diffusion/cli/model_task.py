"""Models for inpainting and for editing: which options they need, and which they do not take."""

from collections.abc import Sequence
from typing import NamedTuple

from ..config.known_models import find_spec
from ..config.task import Task
from .settings import PictureOptions


class GivenPictures(NamedTuple):
    """What pictures the options give to the model."""

    has_image: bool
    has_mask: bool = False
    has_control: bool = False


def check_known_model(
    model: str, unet: str | None, options: Sequence[PictureOptions], given: GivenPictures
) -> None:
    """Check that the options of all pictures suit a known model, before anything is loaded.

    Args:
        model: its name; other names than those of known models pass.
        unet: where another UNet is taken from, which may be for another task.

    Raises:
        ValueError: as `require_inputs` does.
    """
    spec = find_spec(model)
    if spec is not None and unet is None:
        require_inputs(model, spec.task, options, given)


def require_inputs(
    model: str, task: Task | None, options: Sequence[PictureOptions], given: GivenPictures
) -> None:
    """Check that the options of all pictures suit what a model is trained for.

    Raises:
        ValueError: if an option is missing, or has no meaning for the model.
    """
    for each in options:
        problem = _find_problem(task, each, given)
        if problem is not None:
            raise ValueError(f"{each.where}{model} {problem}")


def _find_problem(task: Task | None, options: PictureOptions, given: GivenPictures) -> str | None:
    """Return why the options do not suit a task, after the name of the model; None if they do."""
    if task == "inpainting" and not given.has_image:
        return "repaints a part of a picture: use image2image.py, and --mask FILE"
    if task == "inpainting" and not given.has_mask:
        return "repaints a part of a picture: say which with --mask FILE, white where to repaint"
    if task == "editing" and not given.has_image:
        return "edits a picture as the prompt says: use image2image.py"
    if task == "editing" and given.has_mask:
        return "edits the whole picture: leave --mask out"
    if task == "editing" and given.has_control:
        return "edits a picture as the prompt says, and no network steers it: leave --control out"
    if task == "editing" and options.strength is not None:
        return "has no --strength: --image-cfg says how closely to keep to the picture"
    if task != "editing" and options.image_cfg is not None:
        return "does not take --image-cfg, which is for models such as instruct-pix2pix"
    return None
