"""LoRA: low-rank changes of a model's layers, from files (Hu et al. 2021, arXiv:2106.09685).

`find_lora_file` finds a file by its name. `lora_keys` has the names of layers in files,
`lora_file` reads a file into one change for each layer, and `lora_layers` puts changes into a
network. `unfit` says what a file is that does not fit.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..utils.wording import join_names
from .bundled_words import choose_words, learn_words
from .find_lora_file import find_lora_file
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
from .lora_parts import ALPHA, DOWN, UP
from .textual_inversion import Reader
from .unfit import explain_unfit

Layers = dict[str, dict[str, Layer]]  # by component, and by path in its network


def load_lora(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    scale: float,
    dtype: mx.Dtype,
    readers: Sequence[Reader] = (),
) -> None:
    """Add the LoRA of a file to the layers of `networks`, in addition to any that they have.

    Textual inversions in the file become words of prompts, as `load_embedding` makes them, and a
    warning names them. They stay if the LoRA is removed.

    Args:
        networks: the networks, by their names in `COMPONENTS`.
        path: what `find_lora_file` takes: a safetensors file, a folder or a name on the Hub.
        scale: the scale of the change. At 0 the file is only checked.
        dtype: the type that the networks compute in.
        readers: each tokenizer with its text encoder, for the textual inversions.

    Raises:
        OSError: if there is no such file, or it cannot be downloaded.
        ValueError: if the file is not a LoRA, is another kind of adapter, or was made for another
            model. The message says what it is, and nothing is changed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, got {scale}")
    layers: Layers = {component: find_layers(network) for component, network in networks.items()}
    targets = {
        name: (component, layer_path)
        for component, network in networks.items()
        for name, layer_path in list_names(component, network, layers[component]).items()
    }
    file = read_lora(Path(find_lora_file(path)), targets)
    _check_fit(file, layers, networks)
    changed = _change_layers(file, layers, scale, dtype)
    if scale == 0:
        return
    words = choose_words(file.path, file.words, readers)
    for component, network in networks.items():
        replace_layers(network, changed[component])
    learn_words(file.path, words, readers)


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


def _check_fit(file: LoRAFile, layers: Layers, networks: Mapping[str, nn.Module]) -> None:
    """Check that the changes of a file are complete, and fit the layers of the networks.

    Raises:
        ValueError: if they do not, or if there are none; the message says what the file is, or
            lists the keys.
    """
    others: list[str] = []
    missing: list[str] = []
    misshapen: list[str] = []
    for (component, path), change in file.changes.items():
        others += [key for part, key in change.keys.items() if part not in (DOWN, UP, ALPHA)]
        if not change.is_complete():
            missing += [f"the counterpart of {key}" for key in change.keys.values()]
        elif not change.fits(get_weight_shape(layers[component][path])):
            misshapen += file.describe(change)
    problems = {
        "no such layers": file.unexpected,
        "not supported": others,
        "missing": missing,
        "wrong shape": misshapen,
    }
    if any(problems.values()):
        if (explanation := explain_unfit(file.path, file.header, networks)) is not None:
            raise ValueError(explanation)
        found = "; ".join(f"{what}: {join_names(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file.path} does not fit {', '.join(layers)}: {found}")
    if not file.changes and not file.words:
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
            down, up = change.scale_matrices(get_weight_shape(layer))
        except ValueError as error:
            raise ValueError(f"the LoRA {file.path}: {error}") from None
        up = (scale * up).astype(dtype)
        changed[component][path] = add_lora(layer, down.astype(dtype), up)
    return changed
