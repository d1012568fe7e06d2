"""Read adapter files: the change that a file has for each layer."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ..model_io.safetensors_file import Header, read_safetensors
from ..model_io.weights import channels_last
from ..utils.strict_json import require
from ..utils.wording import join_names
from .bundled_words import BundledWords, collect_words
from .leftovers import is_leftover
from .lora_keys import Target, Targets, split_name
from .lora_parts import ALPHA, DOWN, IA3_INPUT, MAGNITUDE, UP, split_key, split_plain_key
from .peft_options import PeftOptions, read_options
from .unfit import refuse_other_formats


class Ratio(Protocol):
    """Returns the factor of a change of this rank, if the file has no alpha for it."""

    def __call__(self, *, rank: int) -> float: ...


@dataclass
class LayerChange:
    """The tensors of a file for one layer.

    Attributes:
        name: of the layer, in the file.
        tensors: the tensors, by their part (see `lora_parts.PARTS`).
        keys: their keys in the file, by the same parts.
        ratio: alpha / rank as PEFT's options say it; None if there are none.
    """

    name: str
    tensors: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    ratio: Ratio | None = None

    def compute_ratio(self, rank: int) -> float:
        """Return the factor of the change, as the file says: alpha / rank.

        Raises:
            ValueError: if alpha is not one finite number, or one of PEFT's patterns is not a
                regular expression or takes too long.
        """
        if ALPHA in self.tensors:
            alpha = self.tensors[ALPHA]
            require(alpha.size == 1, f"the alpha of {self.name} is {list(alpha.shape)}, not one")
            value: Any = alpha.item()
            ratio = value / rank
        else:
            ratio = 1.0 if self.ratio is None else self.ratio(rank=rank)
        require(math.isfinite(ratio), f"the alpha of {self.name} is not a finite number")
        return ratio

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

    def scale_matrices(self, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        """Return D [rank, ...], and U [out, rank] in float32 times the ratio alpha / rank.

        Args:
            shape: the shape of the weight that they change.

        Raises:
            ValueError: as `compute_ratio` does.
        """
        down, up = self._get_matrices(shape)
        return down, up.astype(mx.float32) * self.compute_ratio(len(down))

    def _get_matrices(self, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        down = channels_last(self.tensors[DOWN], len(shape))
        return down, channels_last(self.tensors[UP], rank=2)


@dataclass
class LoRAFile:
    """The content of an adapter file.

    Attributes:
        path: the path of the file.
        header: the header of the file, with the types of its tensors.
        changes: the changes, by component and path of the layer in its network.
        unexpected: the keys that belong to no layer.
        words: the textual inversions in the file.
    """

    path: Path
    header: Header
    changes: dict[Target, LayerChange] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    words: BundledWords = field(default_factory=dict)

    def describe(self, change: LayerChange) -> Iterator[str]:
        """Yield the key, shape and type of each tensor of a change."""
        for part, key in change.keys.items():
            yield f"{key} {list(change.tensors[part].shape)} of {self.header.tensors[key].kind}"


def read_lora(file: Path, targets: Mapping[str, Target]) -> LoRAFile:
    """Read an adapter file; warn if it has tensors that have no effect on pictures.

    Args:
        file: a safetensors file, with the names of any of the programs in `lora_keys`.
        targets: the component and path of each layer, by the names of `lora_keys.list_names`.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not a safetensors file, if its options are broken or not supported, or
            if two of its keys are one tensor.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such LoRA file: {file}")
    refuse_other_formats(file)
    header, tensors = read_safetensors(file)
    options = read_options(file, header.metadata)
    words, rest = collect_words(file, tensors)
    found = LoRAFile(file, header, words=words)
    parts = _split_keys(rest)
    has_magnitudes = any(part == MAGNITUDE for _, part in parts.values())
    require(
        has_magnitudes or not options.uses_dora,
        f"{file}: its options have use_dora, but it has no magnitudes of DoRA",
    )
    names = {name for name, _ in parts.values()}
    finder = Targets(targets).choose_text_encoder(names)
    targets_by_name = {name: finder.find(name) for name in names}
    leftovers = []
    for key, tensor in rest.items():
        name, part = parts.get(key, ("", ""))
        target = targets_by_name.get(name)
        if target is not None:
            _add(found, target, name, part, key, tensor, options)
        elif is_leftover(key):
            leftovers.append(key)
        else:
            found.unexpected.append(key)
    if leftovers:
        n = len(leftovers)
        warnings.warn(
            f"{file}: passed over {n} {'tensor' if n == 1 else 'tensors'} without an effect on "
            f"pictures: {join_names(leftovers)}",
            stacklevel=2,
        )
    return found


def _split_keys(tensors: Mapping[str, mx.array]) -> dict[str, tuple[str, str]]:
    """Return the name of the layer and the part of each key that has one."""
    split = {key: split_key(key) for key in tensors}
    parts = {key: found for key, found in split.items() if found is not None}
    names = {name for name, _ in parts.values()}
    ia3_names = {name for name, part in parts.values() if part == IA3_INPUT}
    for key in tensors.keys() - parts.keys():
        if (found := split_plain_key(key)) is not None:
            name, part = found
            if name in (ia3_names if part == "weight" else names):
                parts[key] = found
    return parts


def _add(
    file: LoRAFile,
    target: Target,
    name: str,
    part: str,
    key: str,
    tensor: mx.array,
    options: PeftOptions,
) -> None:
    """Add a tensor to the change of a layer.

    Raises:
        ValueError: if it is there already.
    """
    if target not in file.changes:
        ratio = partial(options.compute_ratio, target[0], split_name(name)[1])
        file.changes[target] = LayerChange(name, ratio=ratio)
    change = file.changes[target]
    if part in change.keys:
        raise ValueError(
            f"{file.path}: {change.keys[part]} and {key} are the same tensor of one layer"
        )
    change.tensors[part], change.keys[part] = tensor, key
