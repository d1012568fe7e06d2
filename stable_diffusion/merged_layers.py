"""Merge layers with adapters once for all steps of a batch, not again in each step.

Such a layer has a method `merge`, which computes one weight from several arrays and returns a plain
layer with it; for a quantized weight it computes only what else is the same in each step. When the
layer is called it merges first, so that every call is right, whatever has changed. `MergedLayers`
puts merged layers into a copy of the network instead, and keeps them until one of the arrays is
replaced, which takes the memory of their weights.
"""

import copy
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .compiled import collect, has_same_structure
from .device import kernel_calls


class Merged(NamedTuple):
    """A merged layer, and what it was made from."""

    source: nn.Module
    arrays: list[mx.array]  # of the source
    structure: list[Any]  # of the source
    layer: nn.Module


class MergedLayers:
    """The merged layers of a network, which are kept as long as their arrays stay the same.

    An array that is replaced is noticed, but not one that is changed in place.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Merged] = {}  # by the id of the source
        self._used: dict[int, Merged] = {}  # those of this call

    def put_into(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network with merged layers, or the network if it has none to merge.

        The copy shares everything else with the network. The merged weights are computed now,
        unless MLX is tracing them for a transformation.
        """
        self._used = {}
        replaced = self._replace(network)
        self._kept, self._used = self._used, {}  # layers that were removed are freed
        return replaced

    def _replace(self, value: Any) -> Any:
        """Return a part of the network with merged layers; the part itself if it has none."""
        if isinstance(value, nn.Module) and hasattr(type(value), "merge"):
            return self._merge(value)
        if isinstance(value, dict):  # a module is one, too
            changed = {}
            for key, each in value.items():
                if isinstance(each, dict | list) and (new := self._replace(each)) is not each:
                    changed[key] = new
            if not changed:
                return value
            replaced = copy.copy(value)
            dict.update(replaced, changed)
            return replaced
        if isinstance(value, list):
            items = [self._replace(each) for each in value]
            return value if all(map(is_, items, value)) else items
        return value

    def _merge(self, source: nn.Module) -> nn.Module:
        """Return the merged layer of a layer, the one that is kept if it is still right."""
        arrays, structure = collect(source)
        kept = self._kept.get(id(source))
        if kept is None or not _is_made_from(kept, arrays, structure):
            layer: nn.Module = source.merge()
            if kernel_calls.is_traced(*collect(layer).arrays):
                return layer
            kept = Merged(source, arrays, structure, layer)
        self._used[id(source)] = kept
        return kept.layer


def _is_made_from(merged: Merged, arrays: list[mx.array], structure: list[Any]) -> bool:
    """Return whether a layer was made from these arrays, and not from others like them."""
    is_same = len(arrays) == len(merged.arrays) and all(map(is_, arrays, merged.arrays))
    return is_same and has_same_structure(structure, merged.structure)
