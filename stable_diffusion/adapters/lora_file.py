"""Read LoRA files: the change that a file has for each layer."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import regex

from ..model_io.safetensors_file import Header, read_safetensors
from ..model_io.weights import channels_last
from ..utils.strict_json import parse_json, require
from .lora_keys import ALPHA, COMPONENTS, DOWN, UP, split_key

MAX_PATTERN_SECONDS = 1.0  # for matching a regular expression, which can take very long

# Kinds of adapters that are not supported, by the beginning of a segment of their keys.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "LoCon in Tucker form",
    "on_input": "(IA)³",
}


@dataclass
class LayerChange:
    """The tensors of a file for one layer, and their keys, by `DOWN`, `UP` and `ALPHA`."""

    name: str  # of the layer, in the file
    tensors: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Return whether both matrices are there."""
        return self.tensors.keys() >= {DOWN, UP}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether this can change a weight of `shape`."""
        down, up = self._get_matrices(shape)
        is_scalar = ALPHA not in self.tensors or self.tensors[ALPHA].size == 1
        is_down = down.size > 0 and down.shape[1:] == shape[1:]
        are_floats = all(mx.issubdtype(x.dtype, mx.floating) for x in (down, up))
        return are_floats and is_scalar and is_down and up.shape == (shape[0], len(down))

    def scale_matrices(
        self, shape: tuple[int, ...], config: Mapping[str, Any]
    ) -> tuple[mx.array, mx.array]:
        """Return D [rank, ...], and U [out, rank] in float32 times the ratio alpha / rank.

        Args:
            shape: the shape of the weight that they change.
            config: the options of PEFT, see `read_config`.

        Raises:
            ValueError: if the ratio is not a finite number, or one of PEFT's patterns is not a
                regular expression or takes too long.
        """
        down, up = self._get_matrices(shape)
        ratio = self._compute_ratio(len(down), config)
        require(math.isfinite(ratio), f"the alpha of {self.name} is not a finite number")
        return down, up.astype(mx.float32) * ratio

    def _get_matrices(self, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        down = channels_last(self.tensors[DOWN], len(shape))
        return down, channels_last(self.tensors[UP], rank=2)

    def _compute_ratio(self, rank: int, config: Mapping[str, Any]) -> float:
        """Return the factor of the product U D, as the file says: alpha / rank."""
        if ALPHA in self.tensors:
            own_alpha: Any = self.tensors[ALPHA].item()
            return own_alpha / rank
        component, _, name = self.name.partition(".")
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
    refuse_other_kinds(file, tensors, config)
    changes: dict[tuple[str, str], LayerChange] = {}
    unexpected = []
    for key, tensor in tensors.items():
        name, part = split_key(key) or ("", "")
        if name not in targets:
            unexpected.append(key)
            continue
        change = changes.setdefault(targets[name], LayerChange(name))
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


def refuse_other_kinds(
    file: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any]
) -> None:
    """Check that the file is not one of the `OTHER_KINDS` of adapters.

    Raises:
        ValueError: if it is.
    """
    for key in tensors:
        for segment in key.split("."):
            for beginning, kind in OTHER_KINDS.items():
                if segment.startswith(beginning):
                    raise ValueError(f"{file} is {kind}, which is not supported: it has {key}")
    for component in COMPONENTS:
        if config.get(f"{component}.use_dora"):
            raise ValueError(f"{file} is DoRA, which is not supported: its metadata says so")


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
