"""LoRA: low-rank changes of a model's layers, from files (Hu et al. 2021, arXiv:2106.09685).

They are kept beside the layers, whose weights stay as they are, quantized or not. That takes
little memory, and taking them off leaves the model as it was, to the bit.

Names are looked up, not parsed: each layer of a network is listed under every name that files have
for it. There is no other way to tell kohya's names apart, which put underscores for dots.
"""

import copy
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .config import UNetConfig
from .weights import TEXT_ENCODER, UNET, Layout, channels_last, read_safetensors, rename

MOST_NAMED = 10  # keys that an error lists; it counts the others


class Component(NamedTuple):
    """How files name the layers of one network; in diffusers' and PEFT's, after `COMPONENT.`"""

    layout: Layout
    kohya: tuple[str, ...]  # what stands before the name, whose dots are underscores then


COMPONENTS = {
    "unet": Component(UNET, ("lora_unet_",)),
    "text_encoder": Component(TEXT_ENCODER, ("lora_te_", "lora_te1_")),
    "text_encoder_2": Component(TEXT_ENCODER, ("lora_te2_",)),
}

# What follows a layer's name in any file → `lora.down.weight`, `lora.up.weight`, `alpha`.
_SPELLINGS = {
    "lora_down": "lora.down",  # kohya
    "lora_up": "lora.up",
    "lora_A": "lora.down",  # PEFT and today's diffusers
    "lora_B": "lora.up",
    "lora_linear_layer": "lora",  # older diffusers: text encoders
    **{f"processor.to_{name}_lora": f"to_{name}.lora" for name in "qkv"},  # and attention
    "processor.to_out_lora": "to_out.0.lora",
    **{f"self_attn.to_{name}_lora": f"self_attn.{name}_proj.lora" for name in "qkv"},
    "self_attn.to_out_lora": "self_attn.out_proj.lora",
}
_DOWN, _UP, _ALPHA = "lora.down.weight", "lora.up.weight", "alpha"
_KEY = re.compile(rf"(.+)\.({_DOWN}|{_UP}|{_ALPHA})")

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

# Layers of the UNet as Stability AI's code names them, after the name of their block.
_ORIGINAL_LAYERS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
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

    def __call__(self, x: mx.array) -> mx.array:
        return self.base(x) + (x @ self.down.T) @ self.up.T


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

    def __call__(self, x: mx.array) -> mx.array:
        return self._changed()(x)

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
    """What a file has for one layer: tensors and their keys, by `_DOWN`, `_UP` and `_ALPHA`."""

    name: str  # of the layer, in the file
    tensors: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can change a weight of `shape`."""
        down, up = self._down_and_up(shape)
        is_scalar = _ALPHA not in self.tensors or self.tensors[_ALPHA].size == 1
        return is_scalar and down.shape[1:] == shape[1:] and up.shape == (shape[0], len(down))

    def matrices(
        self, shape: tuple[int, ...], config: Mapping[str, Any]
    ) -> tuple[mx.array, mx.array]:
        """For a weight of `shape`, D [rank, ...] and U [out, rank] in float32, times the ratio."""
        down, up = self._down_and_up(shape)
        return down, up.astype(mx.float32) * self._ratio(len(down), config)

    def _down_and_up(self, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        down = channels_last(self.tensors[_DOWN], len(shape))
        return down, channels_last(self.tensors[_UP], rank=2)

    def _ratio(self, rank: int, config: Mapping[str, Any]) -> float:
        """What the file has the product multiplied with: alpha / rank."""
        if _ALPHA in self.tensors:
            return self.tensors[_ALPHA].item() / rank
        component, _, name = self.name.partition(".")
        # PEFT's patterns are regular expressions for the end of a layer's name.
        patterns = config.get(f"{component}.alpha_pattern", {}).items()
        own = (alpha for pattern, alpha in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name))
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
    tensors, metadata = read_safetensors(file)
    config = _adapter_config(file, metadata)
    _refuse_other_kinds(file, tensors, config)

    adapters, unexpected = _by_layer(tensors, networks)
    layers = {component: _layers(network) for component, network in networks.items()}
    changed: dict[str, dict[str, nn.Module]] = {component: {} for component in networks}
    missing, misshapen = [], []
    for (component, layer_path), adapter in adapters.items():
        layer = layers[component][layer_path]
        if not adapter.tensors.keys() >= {_DOWN, _UP}:
            missing += [f"what goes with {key}" for key in adapter.keys.values()]
        elif not adapter.fits(_shape(layer)):
            misshapen += [f"{key} {list(tensors[key].shape)}" for key in adapter.keys.values()]
        else:
            down, up = adapter.matrices(_shape(layer), config)
            up = (scale * up).astype(dtype)
            changed[component][layer_path] = _changed(layer, down.astype(dtype), up)

    problems = {"not layers there": unexpected, "missing": missing, "wrong shape": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the LoRA {file} does not fit {', '.join(networks)}: {listed}")
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


def original_names(config: UNetConfig) -> dict[str, str]:
    """Names of a UNet's blocks in diffusers, and of layers in blocks → the original code's."""
    names = _ORIGINAL_BLOCKS | _ORIGINAL_LAYERS
    number = 1
    for level, n_layers in enumerate(config.layers):
        for i in range(n_layers):
            names[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for block, n_layers in enumerate(reversed(config.layers)):
        for i in range(n_layers + 1):
            names[f"up_blocks.{block}.resnets.{i}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        attends = config.up_block_types[block] == "CrossAttnUpBlock2D"
        last = f"output_blocks.{number - 1}.{2 if attends else 1}"
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"{last}.conv"
    return names


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that a LoRA can change, or has changed, by their paths."""
    kinds = (nn.Linear, nn.QuantizedLinear, nn.Conv2d, LoRALinear, LoRAConv2d)
    layers = network.filter_and_map(
        nn.Module.valid_child_filter, is_leaf_fn=lambda _, __, child: isinstance(child, kinds)
    )
    return dict(tree_flatten(layers, is_leaf=nn.Module.is_module))


def _names(component: str, network: nn.Module) -> dict[str, str]:
    """Every name that a file can have for a layer of a network → its path there."""
    layout, kohya = COMPONENTS[component]
    original = original_names(network.config) if component == "unet" else {}
    names = {}
    for path in _layers(network):
        name = layout.key(path)
        for spelling in {name, layout.prefix + name, rename(name, original)}:
            names[f"{component}.{spelling}"] = path
            names |= {prefix + spelling.replace(".", "_"): path for prefix in kohya}
    return names


def _by_layer(
    tensors: Mapping[str, mx.array], networks: Mapping[str, nn.Module]
) -> tuple[dict[tuple[str, str], _Adapter], list[str]]:
    """Adapters by component and path there; and the keys that are none of any layer."""
    targets = {
        name: (component, path)
        for component, network in networks.items()
        for name, path in _names(component, network).items()
    }
    adapters: dict[tuple[str, str], _Adapter] = {}
    unexpected = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(rename(key, _SPELLINGS))
        if match is None or match[1] not in targets:
            unexpected.append(key)
            continue
        adapter = adapters.setdefault(targets[match[1]], _Adapter(match[1]))
        if match[2] in adapter.keys:  # the same layer by another name
            unexpected.append(key)
            continue
        adapter.tensors[match[2]], adapter.keys[match[2]] = tensor, key
    return adapters, unexpected


def _adapter_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's options, as diffusers keeps them in a file: `COMPONENT.OPTION`."""
    try:
        return dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError):
        raise ValueError(f"{file}: its lora_adapter_metadata is no JSON object") from None


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


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
