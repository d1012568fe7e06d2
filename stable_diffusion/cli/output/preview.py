from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...images.arrays import make_grid
from ...images.writing import save_image


class Preview:
    """A file that shows a batch of pictures in the making, and is written over again and again.

    Args:
        path: the file; it is there when the first preview is, and always whole.
        every: how many steps there are between two previews.
        n_rows: of the grid of a batch, where that many come out even.
        decode: from latents [B, h, w, C] to pictures, uint8 [B, f·h, f·w, 3].
    """

    def __init__(
        self, path: Path, every: int, n_rows: int, decode: Callable[[mx.array], np.ndarray]
    ):
        self._path, self._every, self._n_rows, self._decode = path, every, n_rows, decode

    def show(self, step: int, n_steps: int, estimate: mx.array) -> None:
        """Write what step `step` of `n_steps` took x_0 for, if it is one to be shown.

        The last one is not: the pictures themselves are about to be decoded.
        """
        if step % self._every or step == n_steps:
            return
        images = self._decode(estimate)
        n_rows = self._n_rows if len(images) % self._n_rows == 0 else 1
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_image(self._path, make_grid(images, n_rows))

    def remove(self) -> None:
        """Delete the file, as the pictures themselves are there."""
        self._path.unlink(missing_ok=True)
