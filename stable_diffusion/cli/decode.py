"""Decode the latents of a run into pictures."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from .. import overflow
from ..device import memory
from ..images.arrays import to_uint8
from .run import Run


def decode_pictures(run: Run, x_0: mx.array) -> Iterator[np.ndarray]:
    """Yield the pictures of latents, uint8 [H, W, 3], decoded a few at a time."""
    settings = run.settings
    spares_memory = settings.low_memory
    if spares_memory is None:
        spares_memory = memory.is_memory_short()
    tiled = True if settings.tiled or spares_memory else None  # None: if the picture is large
    is_flat = run.starts_flat
    for i in range(0, len(x_0), settings.decoding_batch_size):
        part = x_0[i : i + settings.decoding_batch_size]
        decoded = overflow.decode_checked(run.sd, part, tiled, is_flat=is_flat)
        for picture in to_uint8(np.array(decoded)):
            if not is_flat:
                overflow.warn_of_blank(picture)
            yield picture


def decode_all(run: Run, x_0: mx.array) -> np.ndarray:
    """Return the pictures of latents, uint8 [B, H, W, 3]."""
    return np.stack(list(decode_pictures(run, x_0)))
