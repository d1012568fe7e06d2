"""Half precision given up: a network loaded again, to compute in float32."""

import mlx.core as mx
import mlx.nn as nn

from .adapters.lora import copy_lora
from .model_io.loaders import load_text_encoder, load_unet
from .model_io.model import Model
from .quantize import is_quantized, quantize_text_encoder, quantize_unet


def in_float32(model: Model, component: str, old: nn.Module) -> nn.Module:
    """The UNet or text encoder `old` of a model, from the same files in float32.

    It is quantized as the old one is, and has its LoRAs and learned words.

    Raises: as `load_unet`.
    """
    if component == "unet":
        new, quantize = load_unet(model, True, widened=True), quantize_unet
    else:
        new = load_text_encoder(model, True, component, widened=True)
        quantize, table = quantize_text_encoder, new.token_embedding
        learned = old.token_embedding.weight[len(table.weight) :].astype(mx.float32)
        table.weight = mx.concatenate([table.weight, learned])
    if is_quantized(old) and not is_quantized(new):
        quantize(new)
    copy_lora(old, new, mx.float32)
    return new
