"""Run this port in tests: pictures of the library, and programs in new processes."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion
from stable_diffusion.denoising import Denoising
from stable_diffusion.images.arrays import to_uint8

ROOT = Path(__file__).parents[1]


def pictures(sd: StableDiffusion, latents: Denoising) -> np.ndarray:
    """Return the pictures of the last latents, uint8 [B, H, W, 3]."""
    for x_t in latents:
        mx.eval(x_t)
    return to_uint8(np.array(sd.decode(x_t)))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have the same weights, to the bit."""
    a, b = dict(tree_flatten(one.parameters())), dict(tree_flatten(other.parameters()))
    return a.keys() == b.keys() and all(mx.array_equal(a[key], b[key]).item() for key in a)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in the repository's root."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
