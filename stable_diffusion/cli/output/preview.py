"""Show pictures while they are being made, in a file that is overwritten again and again."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...autoencoder_tiny import AutoencoderTiny
from ...images.arrays import choose_rows, make_grid
from ...images.writing import save_image
from ...latent_preview import LinearDecoder, decode_by_vae
from ...model_io.loaders import load_autoencoder, open_model
from ...model_io.model import Model, describe_downloads
from ...pipeline import StableDiffusion
from ...vae_strips import Vae
from ..settings import Settings
from ..terminal.console import say

Decode = Callable[[mx.array], np.ndarray]  # latents [B, h, w, C] → pictures, uint8


class Preview:
    """A file that shows the pictures of a batch after some of the steps.

    Args:
        path: the file, which exists from the first preview on, and is always complete.
        every: how many steps there are between two previews.
        n_rows: how many rows the grid of a batch has, if its pictures fill them; otherwise one.
        decode: turns latents [B, h, w, C] into pictures, uint8 [B, f·h, f·w, 3].
    """

    def __init__(self, path: Path, every: int, n_rows: int, decode: Decode):
        self._path, self._every, self._n_rows, self._decode = path, every, n_rows, decode

    def show(self, step: int, n_steps: int, estimate: mx.array | None) -> None:
        """Write the estimate of x_0 after a step, counted from 1, if this step has a preview.

        The last step is not shown, as the pictures themselves are decoded next.
        """
        if estimate is None or step % self._every or step == n_steps:
            return
        pictures = self._decode(estimate)
        n_rows = choose_rows(len(pictures), self._n_rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_image(self._path, make_grid(pictures, n_rows))

    def remove(self) -> None:
        """Delete the file, as the pictures themselves are finished."""
        self._path.unlink(missing_ok=True)


def load_preview_vae(settings: Settings, model: Model, float16: bool) -> Vae | None:
    """Return the VAE that the settings name for previews, or None; weights are read later.

    Args:
        float16: which files to take.

    Raises:
        OSError, ValueError: if it cannot be found, or does not suit the model.
    """
    if settings.preview is None or not isinstance(settings.preview_vae, str):
        return None
    opened = open_model(model, vae=settings.preview_vae, on_message=say)
    _ = opened.config  # checks that the VAE suits the model
    for line in describe_downloads(opened, ["vae"], float16):
        say(line)
    return load_autoencoder(opened, float16)


def choose_decoder(
    settings: Settings, sd: StableDiffusion, vae: Vae | None, decode_whole: Decode
) -> Decode:
    """Return the function that previews are decoded with.

    Args:
        vae: what `load_preview_vae` returned.
        decode_whole: decodes latents as those of finished pictures are decoded.
    """
    if vae is not None:
        return partial(decode_by_vae, vae)
    if isinstance(sd.autoencoder, AutoencoderTiny):
        return lambda latents: decode_by_vae(sd.autoencoder, latents)
    if settings.preview_vae:
        return decode_whole
    config = sd.config.autoencoder
    return LinearDecoder(sd.decode, config.latent_channels, config.factor)
