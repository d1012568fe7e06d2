"""How much memory there is, and how much of it MLX may keep for later."""

import os
import resource
import sys

import mlx.core as mx

SHORT = 12e9  # bytes: with less, as Macs of 8 GB have, memory is spared without being asked

# Of a UNet step with guidance in half precision, beside the weights, in bytes a pixel of a picture.
STEP = 3_000
STEP_SHARE = 1 / 8  # of the memory, for the pictures that are denoised at once
CPU_PIXELS = 512 * 512  # that keep a CPU busy
MIN_BYTES_PER_WEIGHT = 0.5  # of a weight: 4 bits

CACHE_SHARE = 1 / 16  # of the memory, for buffers that MLX keeps for the next step


def total_memory() -> int:
    """The memory, in bytes, of the device that computes."""
    if mx.default_device().type == mx.gpu:
        info = mx.device_info()
        for key in ("memory_size", "total_memory"):  # Metal's name for it, and CUDA's
            if key in info:
                return int(info[key])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_of_process() -> int:
    """The most memory, in bytes, that this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def is_memory_short() -> bool:
    """Whether there is so little memory that time should be given for it."""
    return total_memory() < SHORT


def pixels_at_once() -> int:
    """Of how many pixels, of all pictures together, latents should be denoised at once."""
    if mx.default_device().type == mx.gpu:
        return int(total_memory() * STEP_SHARE / STEP)
    return CPU_PIXELS


def require_room(n_weights: int, where: str) -> None:
    """Refuse a network that this machine could not even hold in few bits, before it is tried.

    Raises:
        ValueError: so it is; `where` says who asks for it.
    """
    memory = total_memory()
    if n_weights * MIN_BYTES_PER_WEIGHT > memory:
        raise ValueError(
            f"{where} asks for {n_weights:,} weights, {4 * n_weights / 1e9:,.0f} GB in float32; "
            f"this machine has {memory / 1e9:.0f} GB: the file is damaged, or the model too large"
        )


def limit_cache() -> None:
    """Keep Metal from holding on to all buffers that were ever freed, as it does by default."""
    if mx.metal.is_available() and mx.default_device().type == mx.gpu:
        mx.set_cache_limit(int(total_memory() * CACHE_SHARE))
