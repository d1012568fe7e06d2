"""Say what an adapter file is that does not fit a model, in place of a list of its keys.

A file that fits is never refused: these functions are called if one does not.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import mlx.nn as nn

from ..config.networks import UNetConfig
from ..model_io.safetensors_file import LENGTH_BYTES, Header
from ..model_io.sources import CONVERT_PICKLE
from .foreign_files import FOREIGN, find, identify_adapter, identify_model, identify_weights
from .lora_parts import split_key

Shapes = Mapping[str, tuple[int, ...]]

MAX_START = 64  # bytes at the start of a file that show its format
_CONVERT = f"pickles are never loaded; if you trust the file, {CONVERT_PICKLE}"
# By the start of a file, in lower case: what it is, and what to do.
FORMATS = {
    b"pk\x03\x04": ("a pickle", _CONVERT),
    **{bytes((0x80, protocol)): ("a pickle", _CONVERT) for protocol in range(2, 6)},
    b"gguf": ("a GGUF file", "use the safetensors file"),
    b"sqlite format 3": ("a file of Draw Things", "use the safetensors file"),
    b"version https://git-lfs": ("a pointer of Git LFS", "run git lfs pull, or download it"),
    b"<!doctype html": ("a web page", "download the file again; the site may ask for a login"),
    b"<html": ("a web page", "download the file again; the site may ask for a login"),
    b'{"error"': ("an error message of a web site", "download the file again"),
}

SD_1, SD_2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
SD_1_OR_2 = "Stable Diffusion 1.x or 2.x"
# By the width of the text embeddings.
KINDS_BY_WIDTH = {768: SD_1, 1024: SD_2, 2048: SDXL, 1280: "the SDXL refiner"}

# Parts of keys that only one kind of model has. SDXL has two text encoders and deep transformers,
# and no attention at the largest size.
_XL_KEYS = (
    r"^lora_te2_|^text_encoder_2\.|clip_g\b|label_emb|add_embedding"
    r"|(attentions[._]\d+|[._]1)[._]transformer_blocks[._][1-9]"
)
_NOT_XL_KEYS = (
    r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]|input_blocks[._]([12][._]1|9|1\d)[._]"
)
_BLOCK = re.compile(r"(down_blocks|up_blocks|mid_block|(in|out)put_blocks|middle_block)[._]\w")
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


def refuse_other_formats(file: Path) -> None:
    """Check that a file is not known to be of another format than safetensors.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is; the message says what to do.
    """
    with file.open("rb") as opened:
        start = opened.read(MAX_START)
    if start[LENGTH_BYTES:].startswith(b"{"):  # a length, and a JSON object
        return
    for beginning, (what, advice) in FORMATS.items():
        if start.lstrip().lower().startswith(beginning):
            raise ValueError(f"{file} is {what}, not a safetensors file: {advice}")


def explain_unfit(
    file: Path, header: Header, networks: Mapping[str, nn.Module], unexpected: Collection[str] = ()
) -> str | None:
    """Return a message that says what a file is that does not fit, or None if it is not known.

    Args:
        file: the file.
        header: its header.
        networks: the networks that it does not fit, by their names in `COMPONENTS`.
        unexpected: the keys that belong to none of their layers.
    """
    keys = header.shapes.keys()
    kind = identify_adapter(keys) or identify_weights(header.shapes)
    if kind is not None:
        return f"{file} is {kind.what}, not a LoRA of a model: {kind.advice}"
    if (model := identify_model(keys, header.metadata)) is not None:
        return f"{file} is a LoRA for {model}: {FOREIGN}"
    if "unet" not in networks:
        return None
    config: UNetConfig = networks["unet"].config
    own, layers = find_kind_of_model(config), group_by_layer(header.shapes)
    found = find_kind_of_lora(layers, keys, header.metadata)
    if found is not None and found != own and not (found == SD_1_OR_2 and own != SDXL):
        return f"{file} is a LoRA for {found}, and this model is {own}: use a LoRA for {own}"
    width, own_width = next(find_text_widths(layers), None), config.cross_attention_dim
    if width is not None and width != own_width:
        return (
            f"{file} is a LoRA for another kind of model, whose text embeddings have {width} "
            f"numbers; those of this model, {own}, have {own_width}"
        )
    if unexpected and all(map(_BLOCK.search, unexpected)):
        return (
            f"{file} is a LoRA for a UNet with other blocks: {len(unexpected)} of its "
            f"{len(keys)} tensors are for layers that this model, {own}, does not have (distilled "
            "models, such as SSD-1B, have LoRAs of their own)"
        )
    return None


def find_kind_of_model(config: UNetConfig) -> str:
    """Return which Stable Diffusion a UNet is of."""
    if config.addition_embed_type is not None:
        return SDXL
    by_shape = SD_2 if config.use_linear_projection else SD_1
    return KINDS_BY_WIDTH.get(config.cross_attention_dim, by_shape)


def find_kind_of_lora(
    layers: Mapping[str, Shapes], keys: Collection[str], metadata: Mapping[str, str]
) -> str | None:
    """Return which Stable Diffusion a LoRA is for: by its shapes, its keys, then its metadata."""
    for width in find_text_widths(layers):
        if width in KINDS_BY_WIDTH:
            return KINDS_BY_WIDTH[width]
    if find(_XL_KEYS, keys):
        return SDXL
    said = find_kind_in_metadata(metadata)
    if not find(_NOT_XL_KEYS, keys):
        return said
    ranks = {
        len(shape)
        for name, parts in layers.items()
        if _PROJECTION.fullmatch(name)
        for part, shape in parts.items()
        if part in ("lora_down.weight", "diff")
    }
    if len(ranks) == 1:  # SD 1 has convolutions there, SD 2 linear layers
        return SD_1 if ranks == {4} else SD_2
    return said if said in (SD_1, SD_2) else SD_1_OR_2


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
