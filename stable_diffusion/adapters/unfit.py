"""Say what an adapter file is that does not fit a model, in place of a list of its keys.

A file that fits is never refused: these functions are called if one does not.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.nn as nn

from ..config.networks import UNetConfig
from ..model_io.safetensors_file import Header
from .foreign_files import FOREIGN, find, identify_adapter, identify_model, identify_weights
from .lora_parts import split_key

Shapes = Mapping[str, tuple[int, ...]]

SD_1, SD_2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
KINDS_BY_TEXT = {768: SD_1, 1024: SD_2, 2048: SDXL, 1280: "the SDXL refiner"}

# Parts of keys that only one kind of model has.
_XL_KEYS = (
    r"^lora_te2_|^text_encoder_2\.|clip_g\b|label_emb|add_embedding"
    r"|(transformer_blocks)[._]([2-9]|1\d)[._]"
    r"|input_blocks[._][78][._]1[._]transformer_blocks[._]1[._]"
    r"|down_blocks[._][12][._]attentions[._]\d[._]transformer_blocks[._]1[._]"
)
_NOT_XL_KEYS = r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]|input_blocks[._][12][._]1[._]"
_PROJECTION = re.compile(r"(.*[._])?proj_(in|out)")
_TEXT_LAYER = re.compile(r".*[._]attn2[._](to_[kv]|processor[._]to_[kv])")

# By the end of `modelspec.architecture`'s first part, `ss_base_model_version` or `sd version`.
_SAID = (
    (r"xl-v1-base|sdxl|sd_?xl|pony|illustrious|noobai", SDXL),
    (r"diffusion-v2|sd_v2|sd_?2(\.|$)|\bsd2", SD_2),
    (r"diffusion-v1|sd_v1|sd_?1(\.|_|$)|\bsd1", SD_1),
)
_METADATA_KEYS = (
    "ss_base_model_version",
    "modelspec.architecture",
    "ss_sd_model_name",
    "base_model",
)


def explain_unfit(file: Path, header: Header, networks: Mapping[str, nn.Module]) -> str | None:
    """Return a message that says what a file is that does not fit, or None if it is not known.

    Args:
        file: the file.
        header: its header.
        networks: the networks that it does not fit, by their names in `COMPONENTS`.
    """
    keys = header.shapes.keys()
    kind = identify_adapter(keys) or identify_weights(header.shapes)
    if kind is not None:
        return f"{file} is {kind.what}, not a LoRA of a model: {kind.advice}"
    if (model := identify_model(keys, header.metadata)) is not None:
        return f"{file} is a LoRA for {model}: {FOREIGN}"
    own = find_kind_of_model(networks)
    found = find_kind_of_lora(header.shapes, header.metadata)
    if found is None or own is None or found == own:
        return None
    return f"{file} is a LoRA for {found}, and this model is {own}: use it with a model of {found}"


def find_kind_of_model(networks: Mapping[str, nn.Module]) -> str | None:
    """Return which Stable Diffusion the networks are of; None if that cannot be told."""
    if "unet" not in networks:
        return None
    config: UNetConfig = networks["unet"].config
    if config.addition_embed_type is not None:
        return SDXL
    return KINDS_BY_TEXT.get(
        config.cross_attention_dim, SD_2 if config.use_linear_projection else SD_1
    )


def find_kind_of_lora(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Return which Stable Diffusion a LoRA is for: by its shapes, its keys, then its metadata."""
    layers = group_by_layer(shapes)
    for width in find_text_widths(layers):
        if width in KINDS_BY_TEXT:
            return KINDS_BY_TEXT[width]
    keys = shapes.keys()
    if find(_XL_KEYS, keys):
        return SDXL
    is_sd_1_or_2 = find(_NOT_XL_KEYS, keys)
    ranks = {
        len(shape)
        for name, parts in layers.items()
        if _PROJECTION.fullmatch(name)
        for part, shape in parts.items()
        if part in ("lora_down.weight", "diff")
    }
    if is_sd_1_or_2 and len(ranks) == 1:  # SD 1 has convolutions there, SD 2 linear layers
        return SD_1 if ranks == {4} else SD_2
    said = find_kind_in_metadata(metadata)
    return None if is_sd_1_or_2 and said == SDXL else said


def find_kind_in_metadata(metadata: Mapping[str, str]) -> str | None:
    """Return which Stable Diffusion the metadata of a file name."""
    if metadata.get("ss_v2") == "True":
        return SD_2
    for key in _METADATA_KEYS:
        text = metadata.get(key, "").lower()
        for pattern, kind in _SAID:
            if re.search(pattern, text):
                return kind
    return None


def group_by_layer(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of each layer's tensors, by the layer's name and by their part."""
    layers: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for key, shape in shapes.items():
        if (found := split_key(key)) is not None:
            name, part = found
            layers[name][part] = shape
    return layers


def find_text_widths(layers: Mapping[str, Shapes]) -> Iterator[int]:
    """Yield the width of the text embeddings that each changed layer of cross-attention takes."""
    for name, parts in layers.items():
        if _TEXT_LAYER.fullmatch(name) and (width := find_input_width(parts)) is not None:
            yield width


def find_input_width(parts: Shapes) -> int | None:
    """Return how many numbers a linear layer takes, by the shapes of the tensors that change it."""
    for part in ("lora_down.weight", "hada_w1_b", "diff", "a1.weight"):
        if part in parts and len(parts[part]) > 1:
            return parts[part][1]
    factors = [parts.get(f"lokr_w{n}", parts.get(f"lokr_w{n}_b", ())) for n in (1, 2)]
    if all(len(shape) > 1 for shape in factors):  # a Kronecker product
        return factors[0][1] * factors[1][1]
    return None
