"""Seeded normal noise: the numbers of PyTorch's CPU generator, without PyTorch.

A seed means the same picture in diffusers only where the noise is the same. The words are those of
MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995), which NumPy has too; what PyTorch
makes of them is Box and Muller's transform (1958), one way from 16 numbers on, another below.
"""

import math
import operator
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState  # now: later there may be no memory to read it

MAX_SEED = 2**64 - 1  # of a picture, as other programs draw them; PyTorch takes no larger one
BLOCK = 16  # PyTorch transforms 8 pairs at a time


class NoiseStream:
    """What `torch.Generator().manual_seed(seed)` gives to one `torch.randn` after another.

    Raises:
        ValueError: `seed` is outside PyTorch's range, -2⁶³ to 2⁶⁴ - 1.
    """

    def __init__(self, seed: int) -> None:
        seed = operator.index(seed)
        if not -(2**63) <= seed <= MAX_SEED:
            raise ValueError(f"seed must be in [-2**63, 2**64 - 1], got {seed}")
        self._generator = RandomState(seed % 2**32)  # PyTorch, too, takes 32 bits only
        self._spare: float | None = None  # the second of a pair, waiting for the next short draw

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal numbers, float32 of `shape`, filled in C order.

        Equal to `torch.randn(shape, generator=…)` within 1e-6.
        """
        n = math.prod(shape)
        return (self._long(n) if n >= BLOCK else self._short(n)).reshape(shape)

    def _words(self, n: int) -> np.ndarray:
        return np.frombuffer(self._generator.bytes(4 * n), dtype="<u4")

    def _long(self, n: int) -> np.ndarray:
        """At least `BLOCK` numbers; where it does not divide `n`, the last block is drawn anew."""
        words = self._words(n)
        whole = n - n % BLOCK
        normal = np.empty(n, dtype=np.float32)
        normal[:whole] = _box_muller(words[:whole])
        if whole < n:
            normal[-BLOCK:] = _box_muller(self._words(BLOCK))
        return normal

    def _short(self, n: int) -> np.ndarray:
        """Fewer numbers than `BLOCK`, in double precision, a pair at a time."""
        normal = np.empty(n, dtype=np.float32)
        for i in range(n):
            if self._spare is None:
                words = self._words(4).astype(np.uint64)
                u1, u2 = ((words[::2] << 32 | words[1::2]) % 2**53 * 2.0**-53).tolist()
                radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
                normal[i], self._spare = radius * math.cos(angle), radius * math.sin(angle)
            else:
                normal[i], self._spare = self._spare, None
        return normal


def _box_muller(words: np.ndarray) -> np.ndarray:
    """Blocks of words to blocks of normal numbers: 8 u1 and 8 u2 to 8 cosines and 8 sines."""
    uniform = ((words & 0xFFFFFF) * 2.0**-24).astype(np.float32)  # 24 bits: exact
    u1, u2 = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)  # [blocks, 8] each
    # PyTorch rounds the angle to float32, an error of up to 1e-6 that we share; no other counts.
    angle = (np.float32(2 * np.pi) * u2).astype(np.float64)
    radius = np.sqrt(-2 * np.log1p(-u1.astype(np.float64)))
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


def draw_latents(streams: Sequence[NoiseStream], shape: tuple[int, int, int]) -> np.ndarray:
    """Noise for latents, channels last: one picture a stream, drawn in PyTorch's channels first.

    Args:
        streams: B streams.
        shape: (height, width, channels) of one picture's latents.

    Returns:
        float32 [B, height, width, channels].
    """
    height, width, channels = shape
    noise = np.stack([stream.normal((channels, height, width)) for stream in streams])
    return np.ascontiguousarray(noise.transpose(0, 2, 3, 1))  # [B, C, H, W] -> [B, H, W, C]


def picture_streams(
    seed: int | Sequence[int] | None, n_images: int
) -> tuple[int, list[NoiseStream]]:
    """The seed of the first picture, drawn where it is None, and a stream of noise for each.

    The other pictures have the seeds that follow, or each its own where there are several.

    Raises:
        ValueError: a seed is out of its range, or there are not as many as pictures.
    """
    if isinstance(seed, Sequence):
        seeds = list(seed)
        if len(seeds) != n_images:
            raise ValueError(
                f"seed: {len(seeds)} seeds are not one for each of n_images, {n_images}"
            )
    else:
        seed = secrets.randbits(32) if seed is None else seed
        seeds = list(range(seed, seed + n_images))
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to 2^64 - 1 for each picture, got {seed}")
    return seeds[0], [NoiseStream(seed) for seed in seeds]
