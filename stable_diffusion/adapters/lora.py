"""LoRA: low-rank changes of a model's layers, from files (Hu et al. 2021, arXiv:2106.09685).

`lora_keys` has the names of layers in files, `lora_file` reads a file into one change for each
layer, and `lora_layers` puts changes into a network.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..utils.wording import join_names
from .lora_file import LoRAFile, read_lora
from .lora_keys import list_names
from .lora_layers import (
    Layer,
    LoRALayer,
    add_lora,
    find_layers,
    find_lora,
    get_weight_shape,
    replace_layers,
)

Layers = dict[str, dict[str, Layer]]  # by component, and by path in its network


def load_lora(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    scale: float,
    dtype: mx.Dtype,
) -> None:
    """Add the LoRA of a file to the layers of `networks`, in addition to any that they have.

    Args:
        networks: the networks, by their names in `COMPONENTS`.
        path: a safetensors file, with the names of kohya's scripts, of diffusers or of PEFT.
        scale: the scale of the change. At 0 the file is only checked.
        dtype: the type that the networks compute in.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not a LoRA, is another kind of adapter, or was made for another
            model. The message names the keys, and nothing is changed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, got {scale}")
    layers: Layers = {component: find_layers(network) for component, network in networks.items()}
    targets = {
        name: (component, layer_path)
        for component, network in networks.items()
        for name, layer_path in list_names(component, network, layers[component]).items()
    }
    file = read_lora(Path(path), targets)
    _check_fit(file, layers)
    changed = _change_layers(file, layers, scale, dtype)
    if scale != 0:
        for component, network in networks.items():
            replace_layers(network, changed[component])


def unload_lora(networks: Mapping[str, nn.Module]) -> None:
    """Remove every LoRA from the layers of `networks`."""
    for network in networks.values():
        replace_layers(network, {path: layer.base for path, layer in find_lora(network).items()})


def copy_lora(old: nn.Module, new: nn.Module, dtype: mx.Dtype) -> None:
    """Add the LoRA of a network to the layers of another network of the same model."""
    layers = find_layers(new)
    replace_layers(
        new,
        {
            path: add_lora(layers[path], layer.down.astype(dtype), layer.up.astype(dtype))
            for path, layer in find_lora(old).items()
        },
    )


def _check_fit(file: LoRAFile, layers: Layers) -> None:
    """Check that the changes of a file are complete, and fit the layers of the networks.

    Raises:
        ValueError: if they do not, or if there are none; the message lists the keys.
    """
    missing: list[str] = []
    misshapen: list[str] = []
    for (component, path), change in file.changes.items():
        if not change.is_complete():
            missing += [f"the counterpart of {key}" for key in change.keys.values()]
        elif not change.fits(get_weight_shape(layers[component][path])):
            misshapen += file.describe(change)
    problems = {"no such layers": file.unexpected, "missing": missing, "wrong shape": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{what}: {join_names(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file.path} does not fit {', '.join(layers)}: {found}")
    if not file.changes:
        raise ValueError(f"{file.path} contains no LoRA")


def _change_layers(
    file: LoRAFile, layers: Layers, scale: float, dtype: mx.Dtype
) -> dict[str, dict[str, LoRALayer]]:
    """Return the changed layers, by component and path.

    Raises:
        ValueError: if an alpha of the file, or a pattern of its metadata, cannot be used.
    """
    changed: dict[str, dict[str, LoRALayer]] = {component: {} for component in layers}
    for (component, path), change in file.changes.items():
        layer = layers[component][path]
        try:
            down, up = change.scale_matrices(get_weight_shape(layer), file.config)
        except ValueError as error:
            raise ValueError(f"the LoRA {file.path}: {error}") from None
        up = (scale * up).astype(dtype)
        changed[component][path] = add_lora(layer, down.astype(dtype), up)
    return changed
