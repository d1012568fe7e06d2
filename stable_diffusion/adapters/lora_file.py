"""Read LoRA files: the change that a file has for each layer."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import regex

from ..model_io.safetensors_file import Header, read_safetensors
from ..utils.strict_json import parse_json, require
from .lora_keys import split_key

MAX_PATTERN_SECONDS = 1.0  # for matching a regular expression, which can take very long

# Kinds of adapters that are not supported, by the beginning of a segment of their keys.
OTHER_KINDS = {"oft_": "OFT"}


@dataclass
class LayerChange:
    """The tensors of a file for one layer, and their keys, by the names of their parts."""

    name: str  # of the layer, in the file
    config: Mapping[str, Any]  # the options of PEFT, see `read_config`
    tensors: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def compute_ratio(self, rank: int) -> float:
        """Return the factor of the change, as the file says: alpha / rank."""
        if "alpha" in self.tensors:
            own_alpha: Any = self.tensors["alpha"].item()
            return own_alpha / rank
        component, _, name = self.name.partition(".")
        config = self.config
        # PEFT's patterns are regular expressions for the end of a layer's name.
        patterns = config.get(f"{component}.alpha_pattern", {}).items()
        own = (alpha for pattern, alpha in patterns if _matches(pattern, name))
        alpha = next(own, config.get(f"{component}.lora_alpha", rank))
        # The square root is for rank-stabilised LoRA, arXiv:2312.03732.
        return alpha / (math.sqrt(rank) if config.get(f"{component}.use_rslora") else rank)


@dataclass
class LoRAFile:
    """The content of a LoRA file.

    Attributes:
        path: the path of the file.
        header: the header of the file, with the types of its tensors.
        changes: the changes, by component and path of the layer in its network.
        unexpected: the keys that belong to no layer.
        config: the options of PEFT, see `read_config`.
    """

    path: Path
    header: Header
    changes: dict[tuple[str, str], LayerChange]
    unexpected: list[str]
    config: dict[str, Any]

    def describe(self, change: LayerChange) -> Iterator[str]:
        """Yield the key, shape and type of each tensor of a change."""
        for part, key in change.keys.items():
            yield f"{key} {list(change.tensors[part].shape)} of {self.header.tensors[key].kind}"


def read_lora(file: Path, targets: Mapping[str, tuple[str, str]]) -> LoRAFile:
    """Read a LoRA file.

    Args:
        file: a safetensors file, with the names of kohya's scripts, of diffusers or of PEFT.
        targets: the component and path of each layer, by its names in files.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not a safetensors file, or another kind of adapter, or if its metadata
            or keys contradict each other.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such LoRA file: {file}")
    header, tensors = read_safetensors(file)
    config = read_config(file, header.metadata)
    refuse_other_kinds(file, tensors)
    changes: dict[tuple[str, str], LayerChange] = {}
    unexpected = []
    for key, tensor in tensors.items():
        name, part = split_key(key) or ("", "")
        if name not in targets:
            unexpected.append(key)
            continue
        change = changes.setdefault(targets[name], LayerChange(name, config))
        if part in change.keys:
            raise ValueError(
                f"{file}: {change.keys[part]} and {key} are the same tensor of one layer"
            )
        change.tensors[part], change.keys[part] = tensor, key
    return LoRAFile(file, header, changes, unexpected, config)


def read_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's options `COMPONENT.OPTION`, which diffusers keeps in the file's metadata.

    Raises:
        ValueError: if they are not a JSON object, or an alpha in them is not a number.
    """
    where = f"{file}: its lora_adapter_metadata"
    try:
        config = parse_json(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"{where} is not a JSON object: {error}") from None
    require(isinstance(config, dict), f"{where} is not a JSON object")
    for key, value in config.items():
        option = key.rpartition(".")[2]
        patterns = value if option == "alpha_pattern" else {"": value}
        require(isinstance(patterns, dict), f"{where} has a {key} that is not an object")
        if option in ("alpha_pattern", "lora_alpha"):
            are_numbers = all(type(alpha) in (int, float) for alpha in patterns.values())
            require(are_numbers, f"{where} has {key} = {str(value)[:100]}, which is not a number")
    return config


def refuse_other_kinds(file: Path, tensors: Mapping[str, mx.array]) -> None:
    """Check that the file is not one of the `OTHER_KINDS` of adapters.

    Raises:
        ValueError: if it is.
    """
    for key in tensors:
        for segment in key.split("."):
            for beginning, kind in OTHER_KINDS.items():
                if segment.startswith(beginning):
                    raise ValueError(f"{file} is {kind}, which is not supported: it has {key}")


def _matches(pattern: str, name: str) -> bool:
    """Return whether one of PEFT's patterns matches the name of a layer.

    Raises:
        ValueError: if the pattern is not a regular expression, or takes too long.
    """
    try:
        match = regex.fullmatch(rf"(.*\.)?({pattern})", name, timeout=MAX_PATTERN_SECONDS)
    except (regex.error, TimeoutError, RecursionError) as error:
        is_slow = isinstance(error, TimeoutError)
        why = "takes too long" if is_slow else "is not a regular expression"
        raise ValueError(f"the pattern {pattern[:100]!r} in its metadata {why}") from None
    return match is not None
