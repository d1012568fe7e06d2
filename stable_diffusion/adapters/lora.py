"""LoRA (Hu et al. 2021, arXiv:2106.09685) and its relatives: changes of layers, from files.

`find_lora_file` finds a file by its name, and `unfit` says what a file is that does not fit.
`lora_keys` has the names of layers in files, and `lora_file` reads the tensors of each layer.
`kinds` knows which of them make which change, and `layer_parts` checks their shapes. `changes` has
the formulas, and `lora_layers` puts changes into a network.
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
from .kinds import list_unknown, read_changes
from .layer_parts import IncompleteError, ShapeError
from .lora_file import LoRAFile, read_lora
from .lora_keys import list_names
from .lora_layers import (
    AdaptedLinear,
    Layer,
    add_changes,
    find_adapted,
    find_layers,
    get_weight_shape,
    list_changes,
    replace_layers,
)
from .textual_inversion import Reader
from .unfit import explain_unfit

Layers = dict[str, dict[str, Layer]]  # by component, and by path in its network


def load_lora(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    scale: float,
    dtype: mx.Dtype,
    readers: Sequence[Reader] = (),
    merged: bool = False,
) -> None:
    """Add the LoRA of a file to the layers of `networks`, after any that they have.

    It may be any of `kinds.KINDS`, for each layer another one. Textual inversions in the file
    become words of prompts, as `load_embedding` makes them, and a warning names them. They stay if
    the LoRA is removed.

    Args:
        networks: the networks, by their names in `COMPONENTS`.
        path: what `find_lora_file` takes: a safetensors file, a folder or a name on the Hub.
        scale: the scale of the change. At 0 the file is only checked.
        dtype: the type that the networks compute in.
        readers: each tokenizer with its text encoder, for the textual inversions.
        merged: whether the changes of linear layers are merged, see `add_changes`.

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
    changed = _read_changes(file, networks, layers, scale, dtype, merged)
    if scale == 0:
        return
    words = choose_words(file.path, file.words, readers)
    for component, network in networks.items():
        replace_layers(network, changed[component])
    learn_words(file.path, words, readers)


def unload_lora(networks: Mapping[str, nn.Module]) -> None:
    """Remove every LoRA from the layers of `networks`."""
    for network in networks.values():
        replace_layers(network, {path: layer.base for path, layer in find_adapted(network).items()})


def copy_lora(old: nn.Module, new: nn.Module, dtype: mx.Dtype) -> None:
    """Add the changes of a network's layers to another network of the same model, as `dtype`."""
    layers, copied = find_layers(new), {}
    for path, layer in find_adapted(old).items():
        changes = [each.astype(dtype) for each in list_changes(layer)]
        copied[path] = add_changes(layers[path], changes, isinstance(layer, AdaptedLinear))
    replace_layers(new, copied)


def _read_changes(
    file: LoRAFile,
    networks: Mapping[str, nn.Module],
    layers: Layers,
    scale: float,
    dtype: mx.Dtype,
    merged: bool,
) -> dict[str, dict[str, Layer]]:
    """Return the changed layers, by component and path.

    Raises:
        ValueError: if the changes of the file are not complete or do not fit the layers, or if
            there are none; the message says what the file is, or lists the keys. Also if an alpha
            cannot be used.
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
            changed[component][path] = add_changes(layer, changes, merged)
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
        explanation = explain_unfit(file.path, file.header, networks, file.unexpected)
        if explanation is not None:
            raise ValueError(explanation)
        found = "; ".join(f"{what}: {join_names(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file.path} does not fit {', '.join(layers)}: {found}")
    if not file.changes and not file.words:
        raise ValueError(f"{file.path} contains no LoRA")
    return changed
