"""The two sides of a check: the device that is tried, and the CPU, which says what is right."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from stable_diffusion.device import backend


@contextmanager
def on_cpu() -> Iterator[None]:
    """Compute on the CPU inside the block, as the program does on a machine without a GPU."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(device)


@contextmanager
def on_device(compiles: bool = False) -> Iterator[None]:
    """Compute on the device that is tried, inside the block.

    Without a GPU this is the CPU with MLX's own operations, chosen as they are on Metal.

    Args:
        compiles: whether `mx.compile` compiles without a GPU, too: there each kernel takes a C++
            compiler about a second.
    """
    with ExitStack() as stack:
        if not backend.is_gpu():
            metal = backend.Backend.METAL
            stack.enter_context(mock.patch.object(backend, "find_backend", lambda: metal))
            if not compiles:
                mx.disable_compile()
                stack.callback(mx.enable_compile)
        yield


def has_gpu() -> bool:
    """Return whether a GPU is tried; inside `on_device` a CPU counts as one, so ask outside."""
    return mx.default_device().type == mx.gpu


def evaluate(function: Callable[..., mx.array], *inputs: Any) -> np.ndarray:
    """Return the result of a function in float32, computed now."""
    return np.array(function(*inputs).astype(mx.float32))
