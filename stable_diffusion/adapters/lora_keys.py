"""The names of the networks' layers in adapter files.

Names are looked up, not parsed: each layer of a network is listed under the names that diffusers
and Stability AI's code use for it, with underscores in the place of dots, as kohya's scripts write
them. What programs put before these names is in the table `_PREFIXES`.
"""

import re
from collections.abc import Iterable, Mapping

import mlx.nn as nn

from ..config.networks import UNetConfig
from ..model_io.layouts import TEXT_ENCODER, UNET, Layout, rename
from ..model_io.original_layout import RESNET, UNET_PARTS

COMPONENTS: dict[str, Layout] = {
    "unet": UNET,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER,
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_UNET, _FIRST, _SECOND = (("unet",), ("text_encoder",), ("text_encoder_2",))
_ANY = tuple(COMPONENTS)
# The start of a name in a file → the components that it may be of. The longest start counts.
_PREFIXES: dict[str, tuple[str, ...]] = {
    "unet.": _UNET,  # diffusers, OneTrainer
    "lora_unet_": _UNET,  # kohya
    "lora_unet.": _UNET,  # OneTrainer, older
    "diffusion_model.": _UNET,  # ComfyUI
    "model.diffusion_model.": _UNET,
    "text_encoder.": _FIRST,  # diffusers
    "text_encoder_1.": _FIRST,
    "text_encoder_2.": _SECOND,
    "lora_te_": _FIRST,  # kohya
    "lora_te1_": _FIRST,
    "lora_te2_": _SECOND,
    "lora_te.": _FIRST,  # OneTrainer, older
    "lora_te1.": _FIRST,
    "lora_te2.": _SECOND,
    "clip_l.": _FIRST,  # OneTrainer, and ComfyUI after `text_encoders.`
    "clip_h.": _FIRST,  # SD 2's
    "clip_g.": _SECOND,
    "lora_clip_l.": _FIRST,
    "lora_clip_g.": _SECOND,
    "lycoris_unet_": _UNET,
    "lycoris_te_": _FIRST,
    "lycoris_te1_": _FIRST,
    "lycoris_te2_": _SECOND,
    # These do not say the component, because the file is of one network alone.
    "lycoris_": _ANY,  # LyCORIS's own saving
    "": _ANY,  # PEFT, diffusers' `save_lora_adapter`, and its oldest files
}
# What PEFT, torch.compile, distributed training and ComfyUI put before the name of a layer.
_WRAPPERS = r"(?:(?:base_model\.model|_orig_mod|module|text_encoders|transformer)\.)*"
_LONGEST_FIRST = "|".join(map(re.escape, sorted(_PREFIXES, key=len, reverse=True)))
_NAME = re.compile(rf"{_WRAPPERS}({_LONGEST_FIRST}){_WRAPPERS}(.*)")

# Parts of the UNet, and layers of its residual blocks → their names in Stability AI's code.
_ORIGINAL = {ours: theirs for theirs, ours in (UNET_PARTS | RESNET).items()} | {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}

Target = tuple[str, str]  # component, and path of a layer in its network


class Targets:
    """The layers of a model, by the names that files use for them.

    Args:
        names: the component and path of each layer, by the names that `list_names` returns.
        wants_second: whether names that do not say which text encoder they are of mean the second.
    """

    def __init__(self, names: Mapping[str, Target], wants_second: bool = False):
        self.names = names
        self.wants_second = wants_second

    def find(self, name: str) -> Target | None:
        """Return the layer that has this name in a file, or None if there is none."""
        components, rest = split_name(name)
        if components == _ANY and self.wants_second:
            components = tuple(reversed(components))
        for component in components:
            target = self.names.get(make_name(component, rest))
            if target is not None:
                return target
        return None

    def choose_text_encoder(self, names: Iterable[str]) -> "Targets":
        """Return targets with which names that do not say their text encoder mean one of both.

        They are of the second if the first does not have all of them, because files with such names
        are of one network alone.
        """
        bare = [rest for components, rest in map(split_name, names) if components == _ANY]
        wants_second = any(
            make_name("text_encoder", rest) not in self.names
            and make_name("text_encoder_2", rest) in self.names
            for rest in bare
        )
        return Targets(self.names, wants_second)


def split_name(name: str) -> tuple[tuple[str, ...], str]:
    """Return the components that a name in a file may be of, and the rest of the name."""
    match = _NAME.fullmatch(name)
    assert match is not None  # as the last prefix is empty, and the rest is anything
    prefix, rest = match.groups()
    return _PREFIXES[prefix], rest


def make_name(component: str, name: str) -> str:
    """Return the name under which a layer is listed: `COMPONENT.name_with_underscores`."""
    return f"{component}.{name.replace('.', '_')}"


def list_names(component: str, network: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Return the paths of a network's layers, by every name that files use for them."""
    layout = COMPONENTS[component]
    original = _list_original_names(network.config) if component == "unet" else {}
    names = {}
    for path in paths:
        name = layout.key(path)
        for spelling in {name, layout.prefix + name, rename(name, original)}:
            names[make_name(component, spelling)] = path
    return names


def _list_original_names(config: UNetConfig) -> dict[str, str]:
    """Return the names of a UNet's blocks and layers in the original code, by diffusers' names."""
    names = dict(_ORIGINAL)
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
