"""Seeded normal noise: the numbers of PyTorch's CPU generator, without PyTorch.

A seed gives the same picture as in diffusers only if the noise is the same. PyTorch draws 32-bit
words from MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995), which NumPy has too,
and turns them into normal numbers by the transform of Box and Muller (1958). It does so in one way
for 16 numbers or more, and in another way for fewer.
"""

import math
import operator
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState  # at import: later there may be too little memory for it

MAX_SEED = 2**64 - 1  # of a picture; PyTorch accepts none above it
BLOCK = 16  # PyTorch transforms 8 pairs at a time


class NoiseStream:
    """The random numbers of `torch.Generator().manual_seed(seed)`, for successive `torch.randn`.

    Raises:
        ValueError: if `seed` is outside PyTorch's range, -2⁶³ to 2⁶⁴ - 1.
    """

    def __init__(self, seed: int) -> None:
        seed = operator.index(seed)
        if not -(2**63) <= seed <= MAX_SEED:
            raise ValueError(f"seed must be in [-2**63, 2**64 - 1], got {seed}")
        self._generator = RandomState(seed % 2**32)  # PyTorch also uses only 32 bits
        self._spare: float | None = None  # the second number of a pair, for the next short draw

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """Return standard normal numbers, float32 of `shape`, filled in C order.

        Equal to `torch.randn(shape, generator=…)` within 1e-6.
        """
        n = math.prod(shape)
        return (self._draw_many(n) if n >= BLOCK else self._draw_few(n)).reshape(shape)

    def _draw_words(self, n: int) -> np.ndarray:
        """Return n random words of 32 bits."""
        return np.frombuffer(self._generator.bytes(4 * n), dtype="<u4")

    def _draw_many(self, n: int) -> np.ndarray:
        """Return n ≥ `BLOCK` numbers; an incomplete last block is drawn again as a whole."""
        words = self._draw_words(n)
        whole = n - n % BLOCK
        normal = np.empty(n, dtype=np.float32)
        normal[:whole] = _transform_words(words[:whole])
        if whole < n:
            normal[-BLOCK:] = _transform_words(self._draw_words(BLOCK))
        return normal

    def _draw_few(self, n: int) -> np.ndarray:
        """Return n < `BLOCK` numbers, computed in double precision, a pair at a time."""
        normal = np.empty(n, dtype=np.float32)
        for i in range(n):
            if self._spare is None:
                words = self._draw_words(4).astype(np.uint64)
                u1, u2 = ((words[::2] << 32 | words[1::2]) % 2**53 * 2.0**-53).tolist()
                radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
                normal[i], self._spare = radius * math.cos(angle), radius * math.sin(angle)
            else:
                normal[i], self._spare = self._spare, None
        return normal


def _transform_words(words: np.ndarray) -> np.ndarray:
    """Transform blocks of words into normal numbers: 8 u1 and 8 u2 → 8 cosines and 8 sines."""
    uniform = ((words & 0xFFFFFF) * 2.0**-24).astype(np.float32)  # 24 bits: exact
    u1, u2 = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)  # [blocks, 8] each
    # As in PyTorch the angle is rounded to float32, an error of up to 1e-6. Other errors are tiny.
    angle = (np.float32(2 * np.pi) * u2).astype(np.float64)
    radius = np.sqrt(-2 * np.log1p(-u1.astype(np.float64)))
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


def draw_latents(streams: Sequence[NoiseStream], shape: Sequence[int]) -> np.ndarray:
    """Draw noise for latents: one picture from each stream, in PyTorch's order, channels first.

    Args:
        streams: B streams.
        shape: (height, width, channels) of one picture's latents.

    Returns:
        float32 [B, height, width, channels].
    """
    height, width, channels = shape
    noise = np.stack([stream.normal((channels, height, width)) for stream in streams])
    return np.ascontiguousarray(noise.transpose(0, 2, 3, 1))  # [B, C, H, W] -> [B, H, W, C]


def make_noise_streams(
    seed: int | Sequence[int] | None, n_images: int
) -> tuple[int, list[NoiseStream]]:
    """Return the seed of the first picture, and a stream of noise for each picture.

    Args:
        seed: the seed of the first picture, whose successors the others get; or one for each
            picture. None draws a random one.

    Raises:
        ValueError: if a seed is out of range, or there are not as many seeds as pictures.
    """
    if isinstance(seed, Sequence):
        seeds = list(seed)
        if len(seeds) != n_images:
            raise ValueError(
                f"seed: got {len(seeds)} seeds for n_images = {n_images}: give one for the first "
                "picture, or one for each"
            )
    else:
        seed = secrets.randbits(32) if seed is None else seed
        seeds = list(range(seed, seed + n_images))
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to 2^64 - 1 for each picture, got {seed}")
    return seeds[0], [NoiseStream(seed) for seed in seeds]
