"""What the steps begin with if there is a picture: its latents, with noise, or as inputs."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .config.task import Task
from .denoising import Restore
from .inpainting import hide_masked, join_channels, restore_outside, shrink_mask
from .prediction import EMPTY, NetworkInputs
from .sampler.schedule import Schedule
from .vae_strips import Vae, encode


@dataclass(frozen=True, eq=False)
class ImageStart:
    """What the steps begin with.

    Attributes:
        x: latents [B, h, w, C] at the first level of the schedule.
        encoded: the latents of pictures that are needed, [1, h, w, C] each.
        flat: those of `encoded` whose picture has one colour, so that they may be constant.
        network_inputs: what the UNet takes beside noisy latents, time and text.
        restore: changes the latents after each step.
    """

    x: mx.array
    encoded: list[mx.array]
    flat: tuple[mx.array, ...] = ()
    network_inputs: NetworkInputs = EMPTY
    restore: Restore | None = None


def encode_image(autoencoder: Vae, image: mx.array) -> mx.array:
    """Return the most likely latents [1, h, w, C] of a picture [H, W, 3] in [-1, 1]."""
    mean, _ = encode(autoencoder, image[None])
    return mean


def start_from_image(
    autoencoder: Vae,
    task: Task | None,
    image: mx.array,
    painted: np.ndarray | None,
    noise: mx.array,
    schedule: Schedule,
    strength: float,
) -> ImageStart:
    """Return latents of the picture with noise (SDEdit, arXiv:2108.01073), or see `inpainting`.

    Inpainting with a strength of 1 begins with noise alone.

    Args:
        task: what the UNet is trained for.
        image: [H, W, 3] in [-1, 1].
        painted: the pixels to paint, booleans [H, W]; None for the whole picture.
        noise: [B, h, w, C].
        schedule: the steps that are run.
        strength: how much of the whole schedule they are, in (0, 1].
    """
    is_from_noise = painted is not None and strength == 1
    takes_mask = task == "inpainting"
    encoded = [] if is_from_noise and takes_mask else [encode_image(autoencoder, image)]
    if is_from_noise:
        x = noise * schedule.initial_sigma
    else:
        x = schedule.steps[0].start.mix(encoded[0], noise)
    if painted is None:
        return ImageStart(x, encoded)
    mask = shrink_mask(painted, autoencoder.config.factor)
    if not takes_mask:
        return ImageStart(x, encoded, restore=restore_outside(mask, encoded[0], noise))
    masked_image = hide_masked(image, painted)
    masked = encode_image(autoencoder, masked_image)
    is_flat = not masked_image.any().item()  # it has a hole, which is grey
    inputs = NetworkInputs(channels=join_channels(mask, masked))
    return ImageStart(x, [*encoded, masked], (masked,) if is_flat else (), inputs)
