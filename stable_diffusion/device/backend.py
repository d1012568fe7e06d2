"""Which backend of MLX computes. Whatever is chosen by the kind of device asks here."""

from enum import StrEnum

import mlx.core as mx


class Backend(StrEnum):
    """The backends of MLX."""

    CPU = "cpu"
    METAL = "metal"
    CUDA = "cuda"


def find_backend() -> Backend:
    """Return the backend of the default device."""
    if mx.default_device().type == mx.cpu:
        return Backend.CPU
    return Backend.METAL if mx.metal.is_available() else Backend.CUDA


def is_gpu() -> bool:
    """Return whether the default device is a GPU."""
    return find_backend() is not Backend.CPU
