"""InstructPix2Pix: edit a picture as a text says, with guidance by the text and by the picture.

Brooks et al. 2022 (arXiv:2211.09800). The UNet takes the latents of the picture as channels beside
the noisy latents. The steps begin with noise alone.
"""

import mlx.core as mx

from .image_start import ImageStart, encode_image
from .prediction import NetworkInputs
from .sampler.schedule import Schedule
from .vae_strips import Vae


def start_editing(
    autoencoder: Vae,
    image: mx.array,
    noise: mx.array,
    schedule: Schedule,
    latent_scale: float,
    image_cfg: float | None,
) -> ImageStart:
    """Return what the steps begin with.

    Args:
        image: the picture to edit, [H, W, 3] in [-1, 1].
        noise: [B, h, w, C].
        latent_scale: of the latents that are denoised. The UNet takes those of the picture as the
            VAE encodes them, not scaled.
        image_cfg: the weight of guidance by the picture; None without guidance.
    """
    latents = encode_image(autoencoder, image)
    unscaled = latents / latent_scale
    inputs = NetworkInputs(channels=unscaled)
    if image_cfg is not None:
        inputs = NetworkInputs(image=unscaled, image_cfg=image_cfg)
    return ImageStart(noise * schedule.initial_sigma, [latents], network_inputs=inputs)
