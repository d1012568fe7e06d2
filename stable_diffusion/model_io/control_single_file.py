"""Detect the control network in a file: its config and the names of its tensors.

Their names are those of its authors, or diffusers'. The config is made from names and shapes, and
from the model that it is for: a ControlNet is a copy of a part of its UNet, Zhang et al. 2023
(arXiv:2302.05543). T2I-Adapters: Mou et al. 2023 (arXiv:2302.08453).
"""

import re
from dataclasses import replace
from itertools import count
from pathlib import PurePosixPath
from typing import Any

from ..config.controlnet import FULL, FULL_XL, LIGHT
from ..config.networks import UNetConfig
from .control_layouts import CONTROLNET, CONTROLNET_UNION, T2I_ADAPTER
from .detect_unet import (
    Tensors,
    detect_added_embedding,
    detect_attention,
    detect_encoder,
    find_layout,
)
from .layouts import Layout
from .network_file import Component
from .original_layout import LEFTOVERS
from .safetensors_file import Header
from .unet_file import choose_heads, count_pooled

# Starts of the keys of a ControlNet: as its authors wrote them, as some trainers do, and alone.
CONTROLNET_ROOTS = ("control_model.", "controlnet.", "")
# The first layer whose output is a residual: its name by the authors, and by diffusers.
FIRST_OUTPUTS = ("zero_convs.0.0.weight", "controlnet_down_blocks.0.weight")
# The layers that embed the picture.
HINT_BLOCK, EMBEDDING = "input_hint_block", "controlnet_cond_embedding"
# A tensor that says that weights are differences to those of the UNet.
DIFFERENCE = "difference"
# Files do not say that residuals are averaged over the picture; only this kind is made for it.
POOLED = re.compile(r"(^|[^a-z])shuffle([^a-z]|$)", re.IGNORECASE)
# What shapes do not show, and a ControlNet has in common with the UNet that it is a copy of.
SHARED = ("norm_num_groups", "norm_eps", "act_fn", "flip_sin_to_cos", "freq_shift")

ADAPTER_ROOTS = ("adapter.", "")  # of diffusers, and of the authors
UNSHUFFLED = {8: FULL, 16: FULL_XL}  # pixels along each side that become channels: the kind


def detect_control(header: Header, base: UNetConfig) -> Component | None:
    """Return the config and the layout of the control network in a file, or None without one.

    Args:
        base: the config of the UNet that it is for.

    Raises:
        ValueError: if a tensor that shows the architecture is missing or has another shape.
    """
    for root in CONTROLNET_ROOTS:
        if any(root + key in header.shapes for key in FIRST_OUTPUTS):
            return _detect_controlnet(header, root, base)
    for root in ADAPTER_ROOTS:
        if header.has(f"{root}body.0."):
            return _detect_adapter(header, root, len(base.block_out_channels))
    return None


def _detect_controlnet(header: Header, root: str, base: UNetConfig) -> Component:
    """Return a ControlNet, or a union, whose keys begin with `root`."""
    has_types = is_union(header, root)
    layout = _find_controlnet_layout(header, root, has_types)
    tensors = Tensors(header, layout)
    config = {"_class_name": "ControlNetModel"} | detect_encoder(tensors)
    config["cross_attention_dim"] = base.cross_attention_dim
    if any(key.startswith(root) and ".transformer_blocks.0." in key for key in header.shapes):
        config |= detect_attention(tensors, config["block_out_channels"])
    config["num_attention_heads"] = choose_heads(
        config["block_out_channels"], config["cross_attention_dim"], base
    )
    config |= {option: getattr(base, option) for option in SHARED}
    if tensors.has("add_embedding.linear_1"):
        config |= detect_added_embedding(header, layout, count_pooled(base))
    config |= _detect_embedding(tensors)
    if POOLED.search(PurePosixPath(header.name).stem):
        config["global_pool_conditions"] = True
    return Component(config | (detect_union(header, root) if has_types else {}), layout)


def _find_controlnet_layout(header: Header, root: str, has_types: bool) -> Layout:
    """Return how a file names the tensors of a ControlNet, or of a union if it has types."""
    diffusers = CONTROLNET_UNION if has_types else CONTROLNET
    renames = {**diffusers.renames, **find_layout(header, root).renames}
    # The UNet has layers with the same names as diffusers gives these; they keep theirs.
    renames |= {f"{EMBEDDING}.{layer}": f"{EMBEDDING}.{layer}" for layer in ("conv_in", "conv_out")}
    if header.has(f"{root}zero_convs."):
        places = range(header.count(f"{root}zero_convs.{{}}.0.weight"))
        renames |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in places}
        renames["middle_block_out.0"] = "controlnet_mid_block"
        renames |= _rename_embedding(header, root)
    leftovers = (DIFFERENCE, *LEFTOVERS)
    return Layout(renames, root=root, fused=diffusers.fused, leftovers=leftovers)


def _rename_embedding(header: Header, root: str) -> dict[str, str]:
    """Return the renames of the layers that embed the picture.

    They are numbered together with the activations between them, so by twos.
    """
    places = (f"{HINT_BLOCK}.{2 * i}" for i in count())
    layers: list[str] = []
    for place in places:
        if f"{root}{place}.weight" not in header.shapes:
            break
        layers.append(place)
    if len(layers) < 2:  # the network then names what is missing
        return {}
    middle = {place: f"{EMBEDDING}.blocks.{i}" for i, place in enumerate(layers[1:-1])}
    return {layers[0]: f"{EMBEDDING}.conv_in", **middle, layers[-1]: f"{EMBEDDING}.conv_out"}


def _detect_embedding(tensors: Tensors) -> dict[str, Any]:
    """Return the options about the layers that embed the picture.

    Between the first and the last there are two to a level, and the second has the level's width.
    """
    n = next(i for i in count() if not tensors.has(f"{EMBEDDING}.blocks.{i}"))
    widths = [tensors.size(f"{EMBEDDING}.conv_in.weight", 0)]
    widths += [tensors.size(f"{EMBEDDING}.blocks.{i}.weight", 0) for i in range(1, n, 2)]
    return {
        "conditioning_channels": tensors.size(f"{EMBEDDING}.conv_in.weight", 1),
        "conditioning_embedding_out_channels": widths,
    }


def is_union(header: Header, root: str = "") -> bool:
    """Return whether the ControlNet in a file is one for several types of picture."""
    return f"{root}task_embedding" in header.shapes


def detect_union(header: Header, root: str = "") -> dict[str, Any]:
    """Return the options of a union that other ControlNets do not have."""
    return {
        "_class_name": "ControlNetUnionModel",
        "num_control_type": header.size(f"{root}task_embedding", 0),
        "num_trans_channel": header.size(f"{root}task_embedding", 1),
        "num_trans_layer": header.count(f"{root}transformer_layes.{{}}.ln_1.weight"),
        "num_proj_channel": header.size(f"{root}spatial_ch_projs.weight", 0),
    }


def _detect_adapter(header: Header, root: str, n_levels: int) -> Component:
    """Return a T2I-Adapter whose keys begin with `root`.

    Args:
        n_levels: of the UNet that it is for.

    Raises:
        ValueError: if its first layer takes something other than a picture.
    """
    is_light = header.has(f"{root}body.0.out_conv.")
    first = f"{root}body.0.in_conv.weight" if is_light else f"{root}conv_in.weight"
    n_inputs = header.size(first, 1)
    kinds = [(n, factor) for n in (1, 3) for factor in UNSHUFFLED if n * factor**2 == n_inputs]
    if not kinds:
        raise ValueError(f"{header.name}: {first} takes {n_inputs} numbers, which are no picture")
    in_channels, factor = kinds[0]
    n_resnets, places = _list_resnets(header, root, n_levels + (UNSHUFFLED[factor] == FULL_XL))
    blocks = range(len(places) // n_resnets)
    if is_light:
        channels = [header.size(f"{root}body.{i}.out_conv.weight", 0) for i in blocks][:-1]
    else:
        resnets = places[::n_resnets]
        channels = [header.size(f"{root}{place}.block1.weight", 0) for place in resnets]
    config = {
        "_class_name": "T2IAdapter",
        "in_channels": in_channels,
        "channels": channels,
        "num_res_blocks": n_resnets,
        "downscale_factor": factor,
        "adapter_type": LIGHT if is_light else UNSHUFFLED[factor],
    }
    return Component(config, _find_adapter_layout(root, n_resnets, places))


def _list_resnets(header: Header, root: str, n_blocks: int) -> tuple[int, list[str]]:
    """Return how many residual blocks a block of a T2I-Adapter has, and the places of all.

    In full ones by the authors they are numbered through all blocks. Those with `in_conv`, which
    changes the width, are the first ones of their blocks.

    Args:
        n_blocks: how many blocks it has if it fits the UNet.

    Raises:
        ValueError: if there are none.
    """
    for inner in ("resnets", "body"):  # diffusers' name, and the authors' in light ones
        if n := header.count(f"{root}body.0.{inner}.{{}}.block1.weight"):
            blocks = header.count(f"{root}body.{{}}.{inner}.0.block1.weight")
            return n, [f"body.{i}.{inner}.{j}" for i in range(blocks) for j in range(n)]
    n = header.count(f"{root}body.{{}}.block1.weight")
    header.size(f"{root}body.0.block1.weight", 0)  # raises if there are none
    widened = next((i for i in range(1, n) if header.has(f"{root}body.{i}.in_conv.")), n)
    return widened if n % n_blocks else n // n_blocks, [f"body.{i}" for i in range(n)]


def _find_adapter_layout(root: str, n_resnets: int, places: list[str]) -> Layout:
    """Return how a file names the tensors of a T2I-Adapter; see `_list_resnets`."""
    names = [f"body.{i // n_resnets}.resnets.{i % n_resnets}" for i in range(len(places))]
    renames = dict(zip(places, names, strict=True))
    if places[0] == "body.0":
        firsts = range(0, len(places), n_resnets)
        renames |= {f"body.{i}.in_conv": f"body.{i // n_resnets}.in_conv" for i in firsts}
    return replace(T2I_ADAPTER, renames={**T2I_ADAPTER.renames, **renames}, root=root)
