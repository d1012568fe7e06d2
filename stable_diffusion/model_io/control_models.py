"""From a control model's name to its network: ControlNets and T2I-Adapters.

A name is a short one (`config.known_controls`), a folder of diffusers, also as `controlnet/` in the
folder of a pipeline, a safetensors file, a Hub repository (`org/name` or `org/name@revision`), or a
file of one (`org/name/FILE.safetensors`).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..config.controlnet import (
    ControlConfig,
    ControlNetConfig,
    ControlNetUnionConfig,
    T2IAdapterConfig,
    read_control_config,
)
from ..config.known_controls import explain_short_name, find_control
from ..controlnet import ControlNet, ControlNetUnion
from ..device import memory
from ..t2i_adapter import T2IAdapter
from ..utils.strict_json import read_json
from . import hub
from .control_fit import check_fit, find_control_family
from .control_layouts import CONTROLNET, CONTROLNET_UNION, T2I_ADAPTER
from .control_single_file import DIFFERENCE, detect_control, detect_union, is_union
from .control_unsupported import (
    CONTROL,
    is_control_config,
    refuse_control_config,
    refuse_control_keys,
    refuse_control_suffix,
    refuse_no_control,
)
from .hub_file import SUFFIX, ResolvedFile, parse_hub_name, resolve_file
from .layouts import Layout
from .loaders import ModelPath, load_unet, name_file
from .model import Model
from .network_file import Component, NetworkFile
from .safetensors_file import Header, find_not_finite
from .single_file import open_header
from .sources import INDEX, BareNetwork, Source
from .weight_files import ALL_STEMS, FP16, FULL, list_weight_files
from .weight_files import CONTROLNET as COMPONENT
from .weights import flatten_parameters, load_weights

CONFIG = "config.json"
ControlNetwork = ControlNet | ControlNetUnion | T2IAdapter
# Names of the file of weights in a folder of diffusers, whose config.json is beside it.
WEIGHT_NAMES = tuple(pattern.format(ALL_STEMS[COMPONENT]) for pattern in (FULL[0], FP16[0]))


class Kind(NamedTuple):
    """What belongs to a class of configs."""

    network: Callable[[Any], ControlNetwork]
    layout: Layout  # of diffusers' files


NETWORKS: Mapping[type, Kind] = {
    ControlNetConfig: Kind(ControlNet, CONTROLNET),
    ControlNetUnionConfig: Kind(ControlNetUnion, CONTROLNET_UNION),
    T2IAdapterConfig: Kind(T2IAdapter, T2I_ADAPTER),
}


@dataclass(frozen=True)
class OpenedControl:
    """A control model whose config is read, and fits the model that it is for.

    Attributes:
        source: its files.
        config: of its network.
        layout: how its files name the tensors.
        model: the model that it is for.
        is_difference: whether its weights are differences to those of the model's UNet.
    """

    source: Source
    config: ControlConfig
    layout: Layout
    model: Model
    is_difference: bool = False

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return self.source.name

    @property
    def commit(self) -> tuple[str, str] | None:
        """Return its repository, or the path of its file on the Hub, and the commit, or None."""
        return self.source.commit

    def describe_download(self, float16: bool) -> str | None:
        """Return what to say before its weights are downloaded, or None if they are here."""
        return self.source.describe_download([list_weight_files(COMPONENT, float16)])


def open_control(
    name: ModelPath,
    model: Model,
    *,
    on_message: Callable[[str], object] = lambda line: None,
) -> OpenedControl:
    """Open a control model for a model: read its config or the header of its file, no weights.

    Args:
        name: see the module. A path object is always a folder or file.
        on_message: called with a line before a file is downloaded, which is then whole.

    Raises:
        OSError: if it cannot be found.
        ValueError: if it is something else, is not supported, is damaged, or is for another kind
            of model; the message says what.
    """
    found = _find(name, model, on_message)
    if isinstance(found, ResolvedFile):
        return _open_file(found, model)
    return _open_folder(found, model)


def load_control_network(
    opened: OpenedControl, float16: bool = False, *, widened: bool = False
) -> ControlNetwork:
    """Load the network of an open control model. Its weights are read when they are first used.

    Weights that are differences are added to those of the model's UNet, as its files have them.

    Args:
        float16: half precision instead of float32.
        widened: take the files that `float16` chooses, but convert the weights to float32.

    Raises:
        OSError: if one of the files cannot be found.
        ValueError: if one is broken, lacks tensors, has others, or is too large for this machine.
    """
    dtype = mx.float16 if float16 and not widened else mx.float32
    files = opened.source.weights(COMPONENT, float16)
    opened = _recognize_union(opened, files)
    network = NETWORKS[type(opened.config)].network(opened.config)
    n_weights = sum(math.prod(value.shape) for value in flatten_parameters(network).values())
    memory.require_room(n_weights, opened.name)
    if not opened.is_difference:
        load_weights(network, files, opened.layout, dtype)
        return network
    load_weights(network, files, opened.layout, mx.float32)
    unet = flatten_parameters(load_unet(opened.model, float16, widened=True))
    weights = [
        (key, (value + unet[key] if key in unet else value).astype(dtype))
        for key, value in flatten_parameters(network).items()
    ]
    network.update(tree_unflatten(weights))
    return network


def find_damaged_control_weights(opened: OpenedControl, float16: bool) -> list[str]:
    """Return the tensors of a control model that have a number that is not finite, "FILE: KEY".

    All of its files are read. With `float16` numbers that half precision cannot hold count too.

    Raises:
        OSError, ValueError: as `load_control_network` does.
    """
    dtype = mx.float16 if float16 else mx.float32
    files = opened.source.weights(COMPONENT, float16)
    layout = _recognize_union(opened, files).layout
    return [f"{file}: {key}" for file in files for key in find_not_finite(file, dtype, layout)]


def _recognize_union(opened: OpenedControl, files: Sequence[Path]) -> OpenedControl:
    """Return a control model of a folder, as a union if its files are those of one.

    The configs of published unions may say the class of a ControlNet, or another number of types.
    """
    if not isinstance(opened.config, ControlNetConfig) or isinstance(opened.source, NetworkFile):
        return opened
    for file in files:
        header = open_header(str(file), file)
        if is_union(header):
            content, where = opened.source.config(f"{COMPONENT}/{CONFIG}")
            config = read_control_config(content | detect_union(header), where)
            return replace(opened, config=config, layout=NETWORKS[type(config)].layout)
    return opened


def _find(
    name: ModelPath, model: Model, on_message: Callable[[str], object]
) -> Source | ResolvedFile:
    """Find the files of a control model: a folder with its config, or the one file with it."""
    text = os.fspath(name)
    family = find_control_family(model)
    known = find_control(text, family) if isinstance(name, str) else None
    if known is not None and known.repo is None:
        return BareNetwork(Source(text, Path(known.location)), COMPONENT)
    if known is not None:
        name = text = known.location
    path = os.path.expanduser(text)
    is_here = os.path.exists(path)
    refuse_control_suffix(text)
    if not is_here and isinstance(name, str) and _is_word(text):
        raise FileNotFoundError(explain_short_name(text, family))
    hub_name = parse_hub_name(text) if isinstance(name, str) and not is_here else None
    if os.path.isdir(path):
        source: Source | None = Source(text, Path(path))
    else:
        source = hub.open_source(text) if hub_name is not None and not hub_name.path else None
    if source is not None:
        if source.find(f"{COMPONENT}/{CONFIG}") is not None:
            return source
        if source.find(CONFIG) is not None:
            return BareNetwork(source, COMPONENT)
        if source.find(INDEX) is not None:
            raise ValueError(f"{text} is a whole model without a {CONTROL}: give it with --model")
    return resolve_file(name, CONTROL, WEIGHT_NAMES, [CONFIG], announce=on_message)


def _is_word(text: str) -> bool:
    """Return whether a name can only be a short one."""
    return not any(mark in text for mark in "/\\~") and not text.endswith(SUFFIX)


def _open_file(found: ResolvedFile, model: Model) -> OpenedControl:
    """Open the control model in a file, by the config beside it if it is in a diffusers folder."""
    name = name_file(found)
    header = open_header(name, found.path)
    refuse_control_keys(header)
    config_file = found.path.with_name(CONFIG)
    if found.path.name in WEIGHT_NAMES and config_file.is_file():
        content = _read_config(config_file)
        if is_control_config(content):
            types = detect_union(header) if is_union(header) else {}
            config = read_control_config(content | types, str(config_file))
            component = Component(content, NETWORKS[type(config)].layout)
            return _make(header, component, config, found, model)
    detected = detect_control(header, model.unet_config)
    if detected is None:
        refuse_no_control(header)
    return _make(header, detected, read_control_config(detected.config, name), found, model)


def _make(
    header: Header, component: Component, config: ControlConfig, found: ResolvedFile, model: Model
) -> OpenedControl:
    """Return the control model in a file, if it fits the model."""
    check_fit(header.name, config, model)
    source = NetworkFile(header, COMPONENT, component)
    source.file_commit = found.commit
    return OpenedControl(source, config, component.layout, model, DIFFERENCE in header.shapes)


def _read_config(file: Path) -> Any:
    try:
        return read_json(file, must_be_finite=False)
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None


def _open_folder(source: Source, model: Model) -> OpenedControl:
    """Open a control model in a folder or repository of diffusers."""
    content, where = source.config(f"{COMPONENT}/{CONFIG}")
    refuse_control_config(where, content)
    config = read_control_config(content, where)
    check_fit(source.name, config, model)
    return OpenedControl(source, config, NETWORKS[type(config)].layout, model)
