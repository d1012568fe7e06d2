"""What a UNet is trained for: to follow a text, to repaint a part, or to edit by an instruction."""

from typing import Literal

Task = Literal["text", "inpainting", "editing"]

# How much weight the picture to edit has in guidance, if the caller does not say it; diffusers has
# the same default.
IMAGE_GUIDANCE = 1.5


def find_task(in_channels: int, out_channels: int) -> Task | None:
    """Return what a UNet is trained for, by its channels; None if it is something else.

    "text" takes noisy latents alone; "inpainting" also the mask, and the latents of the picture
    without the masked part (arXiv:2112.10752); "editing" also the latents of the picture to edit
    (InstructPix2Pix, arXiv:2211.09800).
    """
    tasks: dict[int, Task] = {
        out_channels: "text",
        2 * out_channels + 1: "inpainting",
        2 * out_channels: "editing",
    }
    return tasks.get(in_channels)
