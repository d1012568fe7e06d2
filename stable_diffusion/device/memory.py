"""Measure the memory of this machine, and limit how much of it is used."""

import ctypes
import os
import resource
import sys

import mlx.core as mx

from . import backend

SHORT_MEMORY = 12e9  # bytes: with less, as on Macs of 8 GB, memory is saved by default

STEP_SHARE = 1 / 3  # of the memory, for the UNet and the pictures that are denoised together

CPU_WHOLE_PIXELS = 768 * 768  # of a picture: larger ones are decoded in strips
CPU_STRIP_PIXELS = 2**15  # 32 MB in float32 at the 256 channels of the widest layer

# Numbers in memory for each pixel that the VAE of the real models decodes. Measured without
# convolutions: 3,200, and 3,800 with fused operations, because MLX begins about ten operations
# ahead, however large. Metal's convolution stores up to 2.25 numbers for each number of its input
# and output, 1,150 in the widest layer.
WHOLE_NUMBERS = 5_600
WHOLE_SHARE = 1 / 2  # of the memory, for pictures that are decoded at once
STRIP_NUMBERS = 2_500  # for each pixel of a strip: ten results of the widest layer
STRIP_SHARE = 1 / 16

MIN_BYTES_PER_WEIGHT = 0.5  # 4 bits

SCORE_SHARE = 1 / 32  # of the memory, for the scores of attention that are stored at once
CPU_SCORE_BYTES = 2**27

CACHE_SHARE = 1 / 16  # of the memory, for buffers that MLX keeps for the next step


def read_total_memory() -> int:
    """Return the memory, in bytes, of the device that computes."""
    if backend.is_gpu():
        info = mx.device_info()
        for key in ("memory_size", "total_memory"):  # the names of Metal and CUDA
            if key in info:
                return int(info[key])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_peak_memory() -> int:
    """Return the peak of the resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def is_memory_short() -> bool:
    """Return whether there is so little memory that saving it is worth the time it takes."""
    return read_total_memory() < SHORT_MEMORY


def choose_step_bytes() -> int:
    """Return how many bytes a step of a batch may take, with the weights of the UNet."""
    return int(read_total_memory() * STEP_SHARE)


def choose_whole_pixels(itemsize: int) -> int:
    """Return how many pixels the VAE may decode at once: of a picture, or on a GPU of a batch.

    Args:
        itemsize: bytes of a number.
    """
    if backend.is_gpu():
        return int(read_total_memory() * WHOLE_SHARE / (WHOLE_NUMBERS * itemsize))
    return CPU_WHOLE_PIXELS


def choose_strip_pixels(itemsize: int) -> int:
    """Return how many pixels of a larger picture the VAE decodes or encodes at once.

    Args:
        itemsize: bytes of a number.
    """
    if backend.is_gpu():
        return int(read_total_memory() * STRIP_SHARE / (STRIP_NUMBERS * itemsize))
    return CPU_STRIP_PIXELS


def choose_score_bytes() -> int:
    """Return how many bytes of the scores of an attention may be stored at once."""
    if backend.is_gpu():
        return int(read_total_memory() * SCORE_SHARE)
    return CPU_SCORE_BYTES


def require_room(n_weights: int, where: str) -> None:
    """Check that this machine can hold a network, at least in few bits.

    Args:
        n_weights: the number of weights of the network.
        where: the file that asks for the network, for the message.

    Raises:
        ValueError: if it cannot.
    """
    memory = read_total_memory()
    if n_weights * MIN_BYTES_PER_WEIGHT > memory:
        raise ValueError(
            f"{where} asks for {n_weights:,} weights, {4 * n_weights / 1e9:,.0f} GB in float32; "
            f"this machine has {memory / 1e9:.0f} GB: the file is damaged, or the model too large"
        )


def release_freed() -> None:
    """Return the memory that arrays have freed to the system.

    On a Linux CPU glibc keeps it for the next operations, see `cpu_kernels.keep_freed_memory`. The
    next phase of a run has arrays of other sizes, for which the free pieces may be too small.
    """
    mx.clear_cache()
    if sys.platform == "linux" and not backend.is_gpu():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)


def limit_cache() -> None:
    """Limit the freed buffers that Metal keeps, which are unlimited by default."""
    if backend.find_backend() is backend.Backend.METAL:
        mx.set_cache_limit(int(read_total_memory() * CACHE_SHARE))
