"""Load a network in half precision again, to compute in float32."""

import mlx.core as mx
import mlx.nn as nn

from .adapters.lora import copy_lora
from .model_io.loaders import load_text_encoder, load_unet
from .model_io.model import Model
from .quantize import find_quantization, is_quantized, quantize_as, store_in_float16


def load_in_float32(model: Model, component: str, old: nn.Module) -> nn.Module:
    """Load a network again, from the same files, to compute in float32.

    Args:
        component: "unet", or the folder of a text encoder.
        old: the network in half precision. The new one is quantized like it, and gets its LoRAs
            and learned words.

    Raises:
        OSError, ValueError: see `load_unet`.
    """
    if component == "unet":
        new: nn.Module = load_unet(model, True, widened=True)
    else:
        new = load_text_encoder(model, True, component, widened=True)
        table = new.token_embedding
        learned = old.token_embedding.weight[len(table.weight) :].astype(mx.float32)
        table.weight = mx.concatenate([table.weight, learned])
    quantization = find_quantization(old)
    if quantization is not None and not is_quantized(new):
        quantize_as(new, quantization)
        if component == "unet":
            store_in_float16(new)
    copy_lora(old, new, mx.float32)
    return new
