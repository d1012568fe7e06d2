"""Show pictures while they are being made, in a file that is overwritten again and again."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...images.arrays import choose_rows, make_grid
from ...images.writing import save_image


class Preview:
    """A file that shows the pictures of a batch after some of the steps.

    Args:
        path: the file, which exists from the first preview on, and is always complete.
        every: how many steps there are between two previews.
        n_rows: how many rows the grid of a batch has, if its pictures fill them; otherwise one.
        decode: turns latents [B, h, w, C] into pictures, uint8 [B, f·h, f·w, 3].
    """

    def __init__(
        self, path: Path, every: int, n_rows: int, decode: Callable[[mx.array], np.ndarray]
    ):
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
