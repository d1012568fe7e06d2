"""Forecast the memory that a run needs, from its networks and the size of its pictures.

No weight is read: arrays that are still lazy know their shapes and types.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .device import backend, memory
from .quantized_convolution import UNPACKED_NUMBERS, QuantizedConv3x3

# Numbers in memory for each pixel and each channel of the widest layer in the size of the picture,
# while a Linux CPU decodes a picture at once or in strips. Measured for the VAE of SD 1.5.
CPU_WHOLE_NUMBERS = 3.4
CPU_STRIP_NUMBERS = 1.4

FLOAT32 = mx.float32.size


@dataclass(frozen=True)
class Forecast:
    """The memory of the phases of a run, in bytes of the process.

    Attributes:
        encoding: while text and pictures are encoded.
        denoising: while the UNet runs.
        decoding: while pictures are decoded.
    """

    encoding: int
    denoising: int
    decoding: int

    @property
    def peak(self) -> int:
        """Return the largest of them."""
        return max(self.encoding, self.denoising, self.decoding)


def list_weights(networks: Iterable[nn.Module]) -> list[mx.array]:
    """Return the weights of networks, which may be lazy."""
    trees = (dict(tree_flatten(each.parameters(), destination={})) for each in networks)
    return [array for tree in trees for array in tree.values()]


def count_bytes(networks: Iterable[nn.Module]) -> int:
    """Return how many bytes the weights of networks take."""
    return sum(array.nbytes for array in list_weights(networks))


def count_widest(networks: Iterable[nn.Module]) -> int:
    """Return the bytes of the largest weight in float32, if it is stored in fewer bits.

    A Linux CPU widens each weight when it is used.
    """
    sizes = [0]
    for network in networks:
        for layer in network.modules():
            weight = layer.get("weight") if isinstance(layer, nn.Module) else None
            if weight is None or weight.ndim < 2 or isinstance(layer, nn.Embedding):
                continue
            if isinstance(layer, QuantizedConv3x3):
                sizes.append(min(math.prod(layer.weight_shape), UNPACKED_NUMBERS))
            elif weight.dtype == mx.uint32:
                sizes.append(layer.scales.size * layer.group_size)
            elif weight.dtype != mx.float32:
                sizes.append(weight.size)
    return 0 if backend.is_gpu() else max(sizes) * FLOAT32


def count_decoding_bytes(n_pixels: int, n_channels: int, itemsize: int, in_strips: bool) -> int:
    """Return how many bytes the results of the VAE's layers take while it decodes a picture.

    Args:
        n_pixels: of the picture.
        n_channels: of the widest layer in the size of the picture.
        itemsize: bytes of a number.
        in_strips: whether it is decoded in strips.
    """
    if in_strips:
        numbers = CPU_STRIP_NUMBERS * n_channels * n_pixels
        return (
            int(numbers * itemsize) + memory.choose_strip_pixels(itemsize) * itemsize * n_channels
        )
    if backend.is_gpu():
        return memory.WHOLE_NUMBERS * n_pixels * itemsize
    return int(CPU_WHOLE_NUMBERS * n_channels * n_pixels * itemsize)


def find_widest_channels(vae_config: object) -> int:
    """Return the channels of the widest layer that a VAE has in the size of the picture.

    It is the one after the last upsampling, which has the channels of the level below.
    """
    widths: tuple[int, ...] = getattr(vae_config, "block_out_channels", (128,))
    return widths[min(1, len(widths) - 1)]


def make_forecast(
    base: int,
    weights: Mapping[str, int],
    layers: Mapping[str, int],
    has_several_batches: bool = False,
    has_preview: bool = False,
    is_preloaded: bool = False,
) -> Forecast:
    """Return the memory of the phases of a run.

    Args:
        base: bytes of the process before any weights are read.
        weights: bytes of "text", "encoder" (of the VAE; 0 if no picture is encoded), "decoder",
            "unet" (with the control networks), and "other", which is there in all phases.
        layers: bytes of the results of layers, while "encoding", "denoising" and "decoding".
        has_several_batches: whether pictures are decoded before the last ones are denoised.
        has_preview: whether unfinished pictures are decoded.
        is_preloaded: whether all weights are read first.
    """
    encoding = {"other", "text", "encoder"}
    denoising, decoding = {"other", "unet", "encoder"}, {"other", "decoder", "encoder"}
    if is_preloaded:
        encoding |= {"unet", "decoder"}
    if is_preloaded or has_preview:
        denoising.add("decoder")
    if has_several_batches:
        decoding.add("unet")
    return Forecast(
        *(
            base + sum(weights[name] for name in names) + layers[phase]
            for phase, names in (
                ("encoding", encoding),
                ("denoising", denoising),
                ("decoding", decoding),
            )
        )
    )
