"""LoRA: low-rank changes of a model's layers, from files (Hu et al. 2021, arXiv:2106.09685).

They are kept beside the layers, whose weights stay as they are, quantized or not. That takes
little memory, and taking them off leaves the model as it was, to the bit.
"""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import regex
from mlx.utils import tree_flatten, tree_unflatten

from ..layers import Norm, project
from ..model_io.safetensors_file import read_safetensors
from ..model_io.weights import channels_last
from ..utils.strict_json import parse_json, require
from ..utils.wording import join_names
from .lora_keys import ALPHA, COMPONENTS, DOWN, UP, layer_names, split_key

PATTERN_SECONDS = 1.0  # to match a file's regular expression, which may be made to take for ever

# What else changes layers and is not plain LoRA, by how a segment of its keys begins.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "LoCon in Tucker form",
    "on_input": "(IA)³",
}


class LoRALinear(nn.Module):
    """A linear layer, quantized or not, with a low-rank product beside it: W x + U D x.

    Args:
        base: the layer.
        down: D [rank, in].
        up: U [out, rank], with the scale in it.
    """

    def __init__(self, base: nn.Module, down: mx.array, up: mx.array):
        super().__init__()
        self.base = base
        self.down = down
        self.up = up

    def __call__(
        self, x: mx.array, norm: Norm | None = None, added: mx.array | None = None
    ) -> mx.array:
        """Of norm(x); `added` is added."""
        x = x if norm is None else norm(x)
        return project(project(x, self.down), self.up, added=self.base(x, added=added))


class LoRAConv2d(nn.Module):
    """A convolution with a low-rank change, that its weight is put together with at each use.

    So it can do whatever its `base` can, in the same way; the sum does not outlive the use.

    Args:
        base: the layer.
        down: D [rank, height, width, in].
        up: U [out, rank], with the scale in it.
    """

    def __init__(self, base: nn.Conv2d, down: mx.array, up: mx.array):
        super().__init__()
        self.base = base
        self.down = down
        self.up = up

    def __call__(self, *inputs, **options) -> mx.array:
        """As of the base."""
        return self._changed()(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the changed convolution has and does."""
        is_own = name in ("base", "down", "up")
        return super().__getattr__(name) if is_own else getattr(self._changed(), name)

    def _changed(self) -> nn.Conv2d:
        layer = copy.copy(self.base)
        change = self.up @ self.down.flatten(1)  # [out, height × width × in]
        layer.weight = layer.weight + change.reshape(layer.weight.shape)
        return layer


@dataclass
class _Adapter:
    """What a file has for one layer: tensors and their keys, by `DOWN`, `UP` and `ALPHA`."""

    name: str  # of the layer, in the file
    tensors: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can change a weight of `shape`."""
        down, up = self._down_and_up(shape)
        is_scalar = ALPHA not in self.tensors or self.tensors[ALPHA].size == 1
        is_down = down.size > 0 and down.shape[1:] == shape[1:]
        are_floats = all(mx.issubdtype(x.dtype, mx.floating) for x in (down, up))
        return are_floats and is_scalar and is_down and up.shape == (shape[0], len(down))

    def matrices(
        self, shape: tuple[int, ...], config: Mapping[str, Any]
    ) -> tuple[mx.array, mx.array]:
        """For a weight of `shape`, D [rank, ...] and U [out, rank] in float32, times the ratio."""
        down, up = self._down_and_up(shape)
        ratio = self._ratio(len(down), config)
        require(math.isfinite(ratio), f"the alpha of {self.name} is not a finite number")
        return down, up.astype(mx.float32) * ratio

    def _down_and_up(self, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        down = channels_last(self.tensors[DOWN], len(shape))
        return down, channels_last(self.tensors[UP], rank=2)

    def _ratio(self, rank: int, config: Mapping[str, Any]) -> float:
        """What the file has the product multiplied with: alpha / rank."""
        if ALPHA in self.tensors:
            return self.tensors[ALPHA].item() / rank
        component, _, name = self.name.partition(".")
        # PEFT's patterns are regular expressions for the end of a layer's name.
        patterns = config.get(f"{component}.alpha_pattern", {}).items()
        own = (alpha for pattern, alpha in patterns if _fits(pattern, name))
        alpha = next(own, config.get(f"{component}.lora_alpha", rank))
        # Rank-stabilised LoRA, arXiv:2312.03732.
        return alpha / (math.sqrt(rank) if config.get(f"{component}.use_rslora") else rank)


def load_lora(
    networks: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    scale: float,
    dtype: mx.Dtype,
) -> None:
    """Put the LoRA of a file beside the layers of `networks`, and of any LoRA that is there.

    Args:
        networks: by their names in `COMPONENTS`.
        path: of a safetensors file, in the names of kohya's scripts, of diffusers or of PEFT.
        scale: of the change. At 0 the file is only checked.
        dtype: what the networks compute in.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no LoRA, another kind of adapter, or made for another model; the
            message names the keys, and nothing is changed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, got {scale}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such LoRA file: {file}")
    header, tensors = read_safetensors(file)
    config = _adapter_config(file, header.metadata)
    _refuse_other_kinds(file, tensors, config)

    adapters, unexpected = _by_layer(file, tensors, networks)
    layers = {component: _layers(network) for component, network in networks.items()}
    changed: dict[str, dict[str, nn.Module]] = {component: {} for component in networks}
    missing, misshapen = [], []
    for (component, layer_path), adapter in adapters.items():
        layer = layers[component][layer_path]
        if not adapter.tensors.keys() >= {DOWN, UP}:
            missing += [f"what goes with {key}" for key in adapter.keys.values()]
        elif not adapter.fits(_shape(layer)):
            for key in adapter.keys.values():
                misshapen.append(f"{key} {list(tensors[key].shape)} of {header.tensors[key].kind}")
        else:
            try:
                down, up = adapter.matrices(_shape(layer), config)
            except ValueError as error:
                raise ValueError(f"the LoRA {file}: {error}") from None
            up = (scale * up).astype(dtype)
            changed[component][layer_path] = _changed(layer, down.astype(dtype), up)

    problems = {"not layers there": unexpected, "missing": missing, "wrong shape": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{what}: {join_names(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file} does not fit {', '.join(networks)}: {found}")
    if not adapters:
        raise ValueError(f"{file} holds no LoRA")
    if scale != 0:
        for component, network in networks.items():
            _replace(network, changed[component])


def unload_lora(networks: Mapping[str, nn.Module]) -> None:
    """Take every LoRA off the layers of `networks`."""
    for network in networks.values():
        layers = _layers(network).items()
        _replace(network, {path: layer.base for path, layer in layers if _has_lora(layer)})


def copy_lora(old: nn.Module, new: nn.Module, dtype: mx.Dtype) -> None:
    """Put the LoRA of a network beside the layers of another one, of the same model."""
    layers = _layers(new)
    _replace(
        new,
        {
            path: _changed(layers[path], layer.down.astype(dtype), layer.up.astype(dtype))
            for path, layer in _layers(old).items()
            if _has_lora(layer)
        },
    )


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that a LoRA can change, or has changed, by their paths."""
    kinds = (nn.Linear, nn.QuantizedLinear, nn.Conv2d, LoRALinear, LoRAConv2d)
    layers = network.filter_and_map(
        nn.Module.valid_child_filter, is_leaf_fn=lambda _, __, child: isinstance(child, kinds)
    )
    return dict(tree_flatten(layers, is_leaf=nn.Module.is_module))


def _by_layer(
    file: Path, tensors: Mapping[str, mx.array], networks: Mapping[str, nn.Module]
) -> tuple[dict[tuple[str, str], _Adapter], list[str]]:
    """Adapters by component and path there; and the keys that are none of any layer."""
    targets = {
        name: (component, path)
        for component, network in networks.items()
        for name, path in layer_names(component, network, _layers(network)).items()
    }
    adapters: dict[tuple[str, str], _Adapter] = {}
    unexpected = []
    for key, tensor in tensors.items():
        name, part = split_key(key) or ("", "")
        if name not in targets:
            unexpected.append(key)
            continue
        adapter = adapters.setdefault(targets[name], _Adapter(name))
        if part in adapter.keys:
            raise ValueError(f"{file}: {adapter.keys[part]} and {key} are of the same layer")
        adapter.tensors[part], adapter.keys[part] = tensor, key
    return adapters, unexpected


def _adapter_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's options, as diffusers keeps them in a file: `COMPONENT.OPTION`."""
    where = f"{file}: its lora_adapter_metadata"
    try:
        config = parse_json(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"{where} is no JSON object: {error}") from None
    require(isinstance(config, dict), f"{where} is no JSON object")
    for key, value in config.items():
        option = key.rpartition(".")[2]
        patterns = value if option == "alpha_pattern" else {"": value}
        require(isinstance(patterns, dict), f"{where} has no object as {key}")
        if option in ("alpha_pattern", "lora_alpha"):
            are_numbers = all(type(alpha) in (int, float) for alpha in patterns.values())
            require(are_numbers, f"{where} has {key} = {str(value)[:100]}, which is no number")
    return config


def _fits(pattern: str, name: str) -> bool:
    """Whether one of PEFT's patterns is for a layer."""
    try:
        match = regex.fullmatch(rf"(.*\.)?({pattern})", name, timeout=PATTERN_SECONDS)
    except (regex.error, TimeoutError, RecursionError) as error:
        why = "takes too long" if isinstance(error, TimeoutError) else "is not one"
        raise ValueError(f"the pattern {pattern[:100]!r} of its metadata {why}") from None
    return match is not None


def _refuse_other_kinds(
    file: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any]
) -> None:
    for key in tensors:
        for segment in key.split("."):
            for mark, kind in _OTHER_KINDS.items():
                if segment.startswith(mark):
                    raise ValueError(f"{file} is {kind}, which is not supported: it has {key}")
    for component in COMPONENTS:
        if config.get(f"{component}.use_dora"):
            raise ValueError(f"{file} is DoRA, which is not supported: its metadata says so")


def _replace(network: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    if layers:
        network.update_modules(tree_unflatten(list(layers.items())))


def _has_lora(layer: nn.Module) -> bool:
    return isinstance(layer, LoRALinear | LoRAConv2d)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of a layer's weight, were it not quantized."""
    if _has_lora(layer):
        layer = layer.base
    if isinstance(layer, nn.QuantizedLinear):
        out_dims, groups = layer.scales.shape
        return (out_dims, groups * layer.group_size)
    return layer.weight.shape


def _changed(layer: nn.Module, down: mx.array, up: mx.array) -> nn.Module:
    """The layer with a low-rank change, or one more: the products add up in the rank."""
    if _has_lora(layer):
        down, up = mx.concatenate([layer.down, down]), mx.concatenate([layer.up, up], axis=1)
        layer = layer.base
    return (LoRAConv2d if isinstance(layer, nn.Conv2d) else LoRALinear)(layer, down, up)
