"""LoRA (Hu et al. 2021, arXiv:2106.09685) and its relatives: changes of layers, from files.

`lora_keys` has the names of layers in files, and `lora_file` reads the tensors of each layer.
`kinds` knows which of them make which change, and `layer_parts` checks their shapes. `changes` has
the formulas, and `lora_layers` puts changes into a network.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..utils.wording import join_names
from .kinds import list_unknown, read_changes
from .layer_parts import IncompleteError, ShapeError
from .lora_file import LoRAFile, read_lora
from .lora_keys import list_names
from .lora_layers import (
    Layer,
    add_changes,
    find_adapted,
    find_layers,
    get_weight_shape,
    list_changes,
    replace_layers,
)

Layers = dict[str, dict[str, Layer]]  # by component, and by path in its network


def load_lora(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    scale: float,
    dtype: mx.Dtype,
) -> None:
    """Add the LoRA of a file to the layers of `networks`, after any that they have.

    It may be any of `kinds.KINDS`, for each layer another one.

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
    changed = _read_changes(file, layers, scale, dtype)
    if scale != 0:
        for component, network in networks.items():
            replace_layers(network, changed[component])


def unload_lora(networks: Mapping[str, nn.Module]) -> None:
    """Remove every LoRA from the layers of `networks`."""
    for network in networks.values():
        replace_layers(network, {path: layer.base for path, layer in find_adapted(network).items()})


def copy_lora(old: nn.Module, new: nn.Module, dtype: mx.Dtype) -> None:
    """Add the changes of a network's layers to another network of the same model, as `dtype`."""
    layers = find_layers(new)
    replace_layers(
        new,
        {
            path: add_changes(layers[path], [each.astype(dtype) for each in list_changes(layer)])
            for path, layer in find_adapted(old).items()
        },
    )


def _read_changes(
    file: LoRAFile, layers: Layers, scale: float, dtype: mx.Dtype
) -> dict[str, dict[str, Layer]]:
    """Return the changed layers, by component and path.

    Raises:
        ValueError: if the changes of the file are not complete or do not fit the layers, or if
            there are none; the message lists the keys. Also if an alpha cannot be used.
    """
    missing: list[str] = []
    misshapen: list[str] = []
    unknown: list[str] = []
    changed: dict[str, dict[str, Layer]] = {component: {} for component in layers}
    for (component, path), change in file.changes.items():
        layer = layers[component][path]
        unknown += list_unknown(change)
        try:
            changes = read_changes(change, get_weight_shape(layer), scale, dtype)
            changed[component][path] = add_changes(layer, changes)
        except IncompleteError:
            missing += [f"the counterpart of {key}" for key in change.keys.values()]
        except ShapeError:
            misshapen += file.describe(change)
        except ValueError as error:
            raise ValueError(f"the LoRA {file.path}: {error}") from None
    problems = {
        "no such layers": file.unexpected,
        "not supported": unknown,
        "missing": missing,
        "wrong shape": misshapen,
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {join_names(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file.path} does not fit {', '.join(layers)}: {found}")
    if not file.changes:
        raise ValueError(f"{file.path} contains no LoRA")
    return changed
