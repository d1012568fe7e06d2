"""InstructPix2Pix: edit a picture as a text says, with guidance by the text and by the picture.

Brooks et al. 2022 (arXiv:2211.09800). The UNet takes the latents of the picture as channels beside
the noisy latents. The steps begin with noise alone.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from . import compiled
from .attention import KeysValues
from .denoising import NetworkInputs, Predict, TextTime, rescale_guidance
from .device import backend
from .image_start import ImageStart, encode_image
from .merged_layers import MergedLayers
from .sampler.schedule import Schedule
from .unet import UNetModel
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


def make_editing_predict(
    unet: UNetModel,
    embeddings: mx.array,
    text_time: TextTime | None,
    cfg_weight: float,
    guidance_rescale: float,
    dtype: mx.Dtype,
    image: mx.array,
    image_cfg: float,
) -> Predict:
    """Return the function that predicts with guidance by the text and by the picture.

    The other arguments and the result are those of `denoising.make_predict`.

    Args:
        embeddings: of the text and the negative text, [2B, N, D].
        image: the latents of the picture, [1, h, w, C], not scaled.
        image_cfg: the weight of guidance by the picture.
    """
    image = image.astype(dtype)
    text = unet.project_text(_add_third_part(embeddings).astype(dtype))
    if text_time is not None:
        pooled, time_ids = text_time
        text_time = _add_third_part(pooled), _add_third_part(time_ids)
    weights: list[Any] = [cfg_weight, image_cfg]
    if guidance_rescale:
        weights.append(guidance_rescale)
    if backend.is_gpu():
        weights = [mx.array(weight) for weight in weights]  # not constants of a compiled function
    merged_layers = MergedLayers()

    def predict(x: mx.array, timestep: mx.array, index: int) -> mx.array:
        arguments = x.astype(dtype), timestep, text, text_time, weights, image
        network = merged_layers.put_into(unet)
        return compiled.run(predict_edit, network, *arguments, owner=unet)

    return predict


def predict_edit(
    unet: UNetModel,
    x: mx.array,
    timestep: mx.array,
    text: Sequence[KeysValues],
    text_time: TextTime | None,
    weights: Sequence[Any],
    image: mx.array,
) -> mx.array:
    """Return the prediction with guidance by text and picture, in float32 [B, h, w, C].

    It is formula 3 of the paper, with the negative text in place of no text:
    e(no text, no image) + s_I (e(no text, image) - e(no text, no image))
    + s_T (e(text, image) - e(no text, image)).

    Args:
        x: latents [B, h, w, C].
        text: the keys and values of the text, with 3B rows: of the text, and twice of the negative
            text.
        text_time: for SDXL's UNet, with as many rows.
        weights: of the text and of the picture, and the amount of rescaling unless that is 0.
        image: the latents of the picture, [1, h, w, C].
    """
    image = mx.broadcast_to(image, (len(x), *image.shape[1:]))
    with_image = mx.concatenate([x, image], axis=-1)  # [B, h, w, 2C]
    without_image = mx.concatenate([x, mx.zeros_like(image)], axis=-1)
    rows = mx.concatenate([with_image, with_image, without_image])
    by_both, by_image, by_none = unet(rows, timestep, text, text_time).astype(mx.float32).split(3)
    text_weight, image_weight, *amounts = weights
    prediction = by_none + image_weight * (by_image - by_none) + text_weight * (by_both - by_image)
    for amount in amounts:
        prediction = rescale_guidance(prediction, by_both, amount)
    return prediction


def _add_third_part(rows: mx.array) -> mx.array:
    """Return [3B, …] for the rows of text and negative text [2B, …]: the second half again."""
    return mx.concatenate([rows, rows[len(rows) // 2 :]])
