"""Weights of few bits, so that a model fits small memories."""

import mlx.nn as nn


def quantize_linear(network: nn.Module, bits: int, group_size: int) -> None:
    """Quantize the linear layers of `network`, in place.

    Layers whose input width does not divide into groups of `group_size` stay as they are, and so
    do convolutions, embeddings and norms.
    """

    def is_quantizable(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) and layer.weight.shape[-1] % group_size == 0

    nn.quantize(network, group_size, bits, class_predicate=is_quantizable)
