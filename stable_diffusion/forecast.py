"""Forecast the memory that a run needs, from its networks and the size of its pictures.

No weight is read: arrays that are still lazy know their shapes and types.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .config.autoencoder_tiny import AutoencoderTinyConfig, VaeConfig
from .device import backend, memory
from .quantized_convolution import UNPACKED_NUMBERS, QuantizedConv3x3
from .rrdbnet import STRIP_NUMBERS, RRDBNet

# Numbers in memory for each pixel and each channel of the widest layer in the size of the picture,
# while a Linux CPU decodes a picture at once or in strips. Measured for the VAE of SD 1.5.
CPU_WHOLE_NUMBERS = 3.0
CPU_STRIP_NUMBERS = 1.4

REAL_CHANNELS = 256  # of the widest layer in the size of the picture, in the real models' decoder
UPSCALER_STRIPS = 4  # layers of a strip that are in memory at once

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


@dataclass(frozen=True)
class Course:
    """What a run does that decides which networks are in memory together.

    Attributes:
        starts_from_picture: whether a picture is encoded first.
        enlarges_pictures: whether pictures are decoded, and encoded, before a second pass.
        has_preview: whether unfinished pictures are decoded.
        has_several_batches: whether pictures are decoded before the last ones are denoised.
        is_preloaded: whether all weights are read first.
    """

    starts_from_picture: bool = False
    enlarges_pictures: bool = False
    has_preview: bool = False
    has_several_batches: bool = False
    is_preloaded: bool = False


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


def count_merged(networks: Iterable[nn.Module], is_quantized: bool = False) -> int:
    """Return the bytes of the weights that `merged_layers` keeps beside those of networks.

    A layer with a change that is merged gets a weight in float32 on a Linux CPU. Changes of
    quantized linear layers stay beside them.

    Args:
        is_quantized: count as if all linear layers were quantized.
    """
    beside = (nn.QuantizedLinear, nn.Linear) if is_quantized else nn.QuantizedLinear
    total = 0
    for layer in (each for network in networks for each in network.modules()):
        base = layer.get("base")
        if not hasattr(type(layer), "merge") or isinstance(base, beside):
            continue
        is_packed = isinstance(base, QuantizedConv3x3)
        size = math.prod(base.weight_shape) if is_packed else base.weight.size
        stored = base.scales if is_packed else base.weight
        dtype = mx.result_type(stored, *list_weights(layer.changes))
        total += size * (dtype.size if backend.is_gpu() else FLOAT32)
    return total


def count_vae_bytes(n_pixels: int, n_channels: int, itemsize: int, in_strips: bool) -> int:
    """Return how many bytes the results of a VAE's layers take while it decodes, or encodes.

    Args:
        n_pixels: of the picture.
        n_channels: of the widest layer in the size of the picture.
        itemsize: bytes of a number.
        in_strips: whether it is computed in strips.
    """
    if in_strips:
        numbers = CPU_STRIP_NUMBERS * n_channels * n_pixels
        return (
            int(numbers * itemsize) + memory.choose_strip_pixels(itemsize) * itemsize * n_channels
        )
    if backend.is_gpu():
        return memory.WHOLE_NUMBERS * n_pixels * itemsize * n_channels // REAL_CHANNELS
    return int(CPU_WHOLE_NUMBERS * n_channels * n_pixels * itemsize)


def find_decoder_channels(vae_config: VaeConfig) -> int:
    """Return the channels of the widest layer that a decoder has in the size of the picture.

    It is the one after the last upsampling, which has the channels of the level below.
    """
    if isinstance(vae_config, AutoencoderTinyConfig):
        return vae_config.decoder_block_out_channels[0]
    widths = vae_config.block_out_channels
    return widths[min(1, len(widths) - 1)]


def find_encoder_channels(vae_config: VaeConfig) -> int:
    """Return the channels of the widest layer that an encoder has in the size of the picture."""
    if isinstance(vae_config, AutoencoderTinyConfig):
        return vae_config.encoder_block_out_channels[0]
    return vae_config.block_out_channels[0]


def count_upscaler_bytes(network: RRDBNet, n_pixels: int) -> int:
    """Return how many bytes the results of an upscaler's layers take.

    Args:
        n_pixels: of the picture that it enlarges.
    """
    config = network.config
    n_places = n_pixels // config.shuffle**2
    dense = config.num_feat + 4 * config.num_grow_ch  # channels of the widest layer of a block
    strip = min(STRIP_NUMBERS, dense * n_places)
    kept = 3 * config.num_feat * n_places
    return FLOAT32 * int(UPSCALER_STRIPS * strip + kept)


def make_forecast(
    base: int, weights: Mapping[str, int], layers: Mapping[str, int], course: Course
) -> Forecast:
    """Return the memory of the phases of a run.

    Args:
        base: bytes of the process before any weights are read.
        weights: bytes of "text", "encoder" and "decoder" of the VAE, "unet" (with the control
            networks), "preview" (the VAE of previews), and "upscalers".
        layers: bytes of the results of layers, while "encoding", "denoising" and "decoding".
    """
    phases = {"encoding": {"text"}, "denoising": {"unet"}, "decoding": {"decoder", "upscalers"}}
    if course.is_preloaded:
        phases["encoding"] |= {"unet", "encoder", "decoder"}
    if course.starts_from_picture:
        phases["encoding"].add("encoder")
    if course.has_preview:
        phases["denoising"] |= {"decoder", "preview"}
        phases["decoding"].add("preview")
    if course.enlarges_pictures:
        phases["denoising"] |= {"decoder", "encoder", "upscalers"}
    if course.has_several_batches:
        phases["decoding"].add("unet")
        phases["denoising"] |= phases["decoding"]
    # Each part of the VAE stays until the end.
    phases["denoising"] |= phases["encoding"] - {"text"}
    phases["decoding"] |= phases["denoising"] & {"encoder"}
    return Forecast(
        *(
            base + sum(weights[name] for name in names) + layers[phase]
            for phase, names in phases.items()
        )
    )
