"""From a control model's name to its network: ControlNets and T2I-Adapters.

A name is a short one (`config.known_controls`), a folder of diffusers, also as `controlnet/` in the
folder of a pipeline, a safetensors file, a Hub repository (`org/name` or `org/name@revision`), or a
file of one (`org/name/FILE.safetensors`).
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..config.controlnet import (
    ControlConfig,
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
from .control_single_file import DIFFERENCE, detect_control
from .control_unsupported import (
    CONTROL,
    refuse_control_config,
    refuse_control_keys,
    refuse_control_suffix,
    refuse_no_control,
)
from .hub_file import ResolvedFile, parse_hub_name, resolve_file
from .layouts import Layout
from .loaders import ModelPath, load_unet, name_file
from .model import Model
from .network_file import Component, NetworkFile
from .safetensors_file import Header, find_not_finite
from .sources import INDEX, BareNetwork, Source
from .weight_files import FP16, FULL, STEMS, list_weight_files
from .weights import flatten_parameters, load_weights

COMPONENT = "controlnet"  # the folder in a pipeline of diffusers
CONFIG = "config.json"
ControlNetwork = ControlNet | ControlNetUnion | T2IAdapter
# Names of the file of weights in a folder of diffusers, whose config.json is beside it.
WEIGHT_NAMES = tuple(pattern.format(STEMS[COMPONENT]) for pattern in (*FP16, *FULL))


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
    content, where = found.config(f"{COMPONENT}/{CONFIG}")
    return _open_config(found, content, where, model)


def _find(
    name: ModelPath, model: Model, on_message: Callable[[str], object]
) -> Source | ResolvedFile:
    """Find the files of a control model: a folder with its config, or the one file with it."""
    text = os.fspath(name)
    family = find_control_family(model)
    if isinstance(name, str) and (known := find_control(text, family)) is not None:
        text = known.location
        name = Path(text) if known.repo is None else text
    path = os.path.expanduser(text)
    is_word = isinstance(name, str) and "/" not in text and "\\" not in text
    refuse_control_suffix(text)
    if is_word and not os.path.exists(path) and not text.endswith(".safetensors"):
        raise FileNotFoundError(explain_short_name(text, family))
    hub_name = parse_hub_name(text) if isinstance(name, str) and not os.path.exists(path) else None
    if os.path.isdir(path) or (hub_name is not None and not hub_name.path):
        source = Source(text, Path(path)) if os.path.isdir(path) else _open_repository(hub_name)
        if source.find(f"{COMPONENT}/{CONFIG}") is not None:
            return source
        if source.find(CONFIG) is not None:
            return BareNetwork(source, COMPONENT)
        if source.find(INDEX) is not None:
            raise ValueError(f"{text} is a whole model without a {CONTROL}: give it with --model")
    return resolve_file(name, CONTROL, WEIGHT_NAMES[::-1], [CONFIG], announce=on_message)
