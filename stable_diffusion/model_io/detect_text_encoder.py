"""Detect the text encoders in a file: their family, configs, and the names of their tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .layouts import TEXT_ENCODER, Layout
from .original_layout import (
    CLIP,
    OPEN_CLIP,
    SD_1,
    SD_2,
    SDXL,
    TEXT_ROOTS,
    UNET_ROOT,
    XL_TEXT_ROOTS,
    Family,
    TextTower,
)
from .safetensors_file import Header
from .unsupported import REFINER, refuse_model

HEAD_WIDTH = 64  # of attention
# The layers of SD 2's text encoder that are used. The published files have one more; those that
# were made from a folder of diffusers do not.
SD_2_LAYERS = 23
SD_2_WIDTH = 1024
# What stands between the root of a text encoder and the names of transformers: usually the first.
NESTINGS = ("transformer.", "model.transformer.", "model.", "")


def detect_family(header: Header) -> tuple[Family, dict[str, Layout]]:
    """Return the family of a model by its text encoders, and how the file names their tensors.

    Raises:
        ValueError: if it has none of a known family.
    """
    for roots in XL_TEXT_ROOTS:
        found = [layout for root in roots if (layout := _find_layout(header, root)) is not None]
        if len(found) == 2:
            return SDXL, dict(zip(SDXL.text_towers, found, strict=True))
        if found and header.has(f"{UNET_ROOT}label_emb."):
            if found[0].fused and found[0].root.startswith(roots[0]):
                refuse_model(header.name, REFINER)
            raise ValueError(f"{header.name} has only one of the two text encoders of SDXL")
    for root in TEXT_ROOTS:
        if (layout := _find_layout(header, root)) is not None:
            shape = header.shapes.get(layout.key("token_embedding.weight"))
            is_sd_2 = bool(layout.fused) or (shape is not None and shape[-1:] == (SD_2_WIDTH,))
            return SD_2 if is_sd_2 else SD_1, {"text_encoder": layout}
    raise ValueError(
        f"{header.name} has no text encoder of SD 1.x, 2.x or XL: if it is a fine-tuned UNet, give "
        "it to a whole model (--unet)"
    )


def detect_text_encoder(
    header: Header, tower: TextTower, layout: Layout
) -> tuple[dict[str, Any], Layout]:
    """Return the config of a text encoder, and how the file names the tensors that it uses.

    Args:
        layout: how the file names its tensors, see `detect_family`.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    n_layers = header.count(layout.key("layers.{}.layer_norm1.weight"))
    if tower.skips_last_layer:
        n_layers = n_layers if n_layers == SD_2_LAYERS else n_layers - 1
        last = layout.key(f"layers.{n_layers}.").removeprefix(layout.root)
        layout = replace(layout, unused=(*layout.unused, last, "text_projection"))

    def size(parameter: str, axis: int) -> int:
        return header.size(layout.key(parameter), axis)

    vocab_size = size("token_embedding.weight", 0)
    width = size("token_embedding.weight", 1)
    config = {
        "hidden_act": tower.hidden_act,
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": size("position_embedding.weight", 0),
        "intermediate_size": size("layers.0.linear1.weight", 0),
        "num_hidden_layers": n_layers,
    }
    if tower.has_projection:
        config["architectures"] = ["CLIPTextModelWithProjection"]
        config["projection_dim"] = size("text_projection.weight", 1 if layout.transposed else 0)
    return config, layout


def _find_layout(header: Header, root: str) -> Layout | None:
    """Return how the file names the tensors of a text encoder whose keys begin with `root`.

    Return None if it has none there.
    """
    if any(header.has(f"{root}model.{part}") for part in ("token_embedding.", "transformer.resb")):
        layout = replace(OPEN_CLIP, root=f"{root}model.")
        return replace(layout, **_find_projection(header, layout))
    for nesting in NESTINGS:
        start = f"{root}{nesting}"
        if header.has(f"{start}text_model.encoder."):
            return replace(CLIP, root=start)
        if header.has(f"{start}encoder.layers."):  # very old files lack the inner part of the name
            return replace(TEXT_ENCODER, root=start, prefix="")
    return None


def _find_projection(header: Header, layout: Layout) -> Mapping[str, Any]:
    """Return the fields of a layout that say how OpenCLIP's projection of the text is stored.

    OpenCLIP has a matrix [in, out]; other programs store the weight of a linear layer.
    """
    for name in ("text_projection.weight", "text_projection.weight.weight"):
        if f"{layout.root}{name}" in header.shapes:
            renames = {k: v for k, v in layout.renames.items() if k != "text_projection"}
            return {
                "renames": {**renames, name: "text_projection.weight"},
                "transposed": frozenset(),
            }
    return {}
