"""Where finished pictures go: names, files, the grid."""

import argparse

import numpy as np

from .image import make_grid, save_image
from .jobs import Job


class Output:
    """The files of a call: `add` takes each picture as it is finished."""

    def __init__(self, args: argparse.Namespace):
        self._grid_file = args.output
        self._n_rows = args.n_rows
        self._images: list[np.ndarray] = []

    def add(self, job: Job, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], or keep it for the grid."""
        self._images.append(image)

    def finish(self) -> None:
        """Write what takes all pictures."""
        save_image(self._grid_file, make_grid(np.stack(self._images), self._n_rows))
        print(f"Wrote {self._grid_file}")
