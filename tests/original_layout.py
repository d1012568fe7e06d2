"""Checkpoints of diffusers as one file, in the layout that Stable Diffusion was published in.

The inverse of what `original.py` tells, written by itself: here the places follow from the configs
of diffusers. That they are right is shown by diffusers loading such files.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ENDS = {
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_q.": "mid.attn_1.q.",
    "mid_block.attentions.0.to_k.": "mid.attn_1.k.",
    "mid_block.attentions.0.to_v.": "mid.attn_1.v.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
}


def write_single_file(folder: Path, file: Path, **options) -> Path:
    """Write the model of a folder as one file, with what such files have besides.

    `options` are those of `save`.
    """
    return save({**original_tensors(folder), **leftovers(folder)}, file, **options)


def save(
    tensors: Tensors,
    file: Path,
    metadata: Mapping[str, str] | None = None,
    dtype: type[np.floating] = np.float32,
) -> Path:
    """Write a safetensors file; `dtype` is for what are numbers of that kind."""
    tensors = {
        key: np.ascontiguousarray(value.astype(dtype) if value.dtype.kind == "f" else value)
        for key, value in tensors.items()
    }
    save_file(tensors, file, metadata=metadata)
    return file


def original_tensors(folder: Path) -> Tensors:
    """All weights of the model of a folder, under their original names."""
    unet, is_xl = _read(folder, "unet"), (folder / "text_encoder_2").exists()
    tensors = {UNET + key: value for key, value in _unet(unet, _layers(folder)).items()}
    tensors |= {VAE + key: value for key, value in vae_tensors(folder).items()}
    text = _read(folder, "text_encoder")
    if is_xl:
        tensors |= _clip(text, XL_CLIP)
        return tensors | _open_clip(_read(folder, "text_encoder_2"), XL_OPEN_CLIP)
    if "linear" in _kind_of_projections(unet):
        tensors |= _open_clip(text, OPEN_CLIP)
        return tensors | _unused_layer(tensors, OPEN_CLIP)
    return tensors | _clip(text, CLIP)


def vae_tensors(folder: Path) -> Tensors:
    """The weights of the VAE, under their original names, as a file of the VAE alone has them."""
    tensors = _read(folder, "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    last = len(config["block_out_channels"]) - 1
    renamed = {}
    for key, value in tensors.items():
        for ours, theirs in _VAE_ENDS.items():
            key = key.replace(ours, theirs)
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last - int(m[1])}", key)
        key = key.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")
        if ".attn_1." in key and value.ndim == 2:
            value = value[..., None, None]
        renamed[key] = value
    return renamed


def leftovers(folder: Path) -> Tensors:
    """What training leaves in such files."""
    is_xl = (folder / "text_encoder_2").exists()
    clip = f"{XL_CLIP if is_xl else CLIP}text_model.embeddings.position_ids"
    keys = ["model_ema.decay", "model_ema.diffusion_modelinput_blocks00weight", "betas"]
    keys += ["alphas_cumprod", "posterior_mean_coef1", "sqrt_recipm1_alphas_cumprod", "logvar"]
    keys += ["first_stage_model.loss.logvar", "denoiser.sigmas"]
    tensors = {key: np.full(3, 7.0, np.float32) for key in keys}
    tensors["model_ema.num_updates"] = np.array(1000, np.int32)
    if clip.split("text_model")[0] + "text_model.final_layer_norm.bias" in original_tensors(folder):
        tensors[clip] = np.arange(77)[None]
    return tensors


def _read(folder: Path, component: str) -> Tensors:
    tensors = load_file(folder / component / WEIGHTS[component])
    return {key.removeprefix("text_model."): value for key, value in tensors.items()}


def _layers(folder: Path) -> int:
    return json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]


def _kind_of_projections(unet: Tensors) -> str:
    weight = unet["mid_block.attentions.0.proj_in.weight"]
    return "linear" if weight.ndim == 2 else "convolution"


def _unet(tensors: Tensors, layers: int) -> Tensors:
    """`layers` is the number of residual blocks of a down block."""
    per_level = layers + 1  # on the way down with the downsampling, on the way up without
    renamed = {}
    for key, value in tensors.items():
        kind, *rest = key.split(".", 4)
        match kind, rest:
            case "down_blocks", [level, "downsamplers", "0", tail]:
                place = f"input_blocks.{(int(level) + 1) * per_level}.0"
                new = f"{place}.{tail.replace('conv', 'op')}"
            case "up_blocks", [level, "upsamplers", "0", tail]:
                attends = f"up_blocks.{level}.attentions.0.norm.weight" in tensors
                place = f"output_blocks.{int(level) * per_level + layers}.{2 if attends else 1}"
                new = f"{place}.{tail}"
            case (("down_blocks" | "up_blocks"), [level, part, layer, tail]):
                n = int(level) * per_level + int(layer)
                place = f"input_blocks.{n + 1}" if kind == "down_blocks" else f"output_blocks.{n}"
                new = f"{place}.{0 if part == 'resnets' else 1}.{tail}"
            case _:
                new = key
        for ours, theirs in _UNET_ENDS.items():
            new = theirs + new.removeprefix(ours) if new.startswith(f"{ours}.") else new
        if ".resnets." in key:
            for ours, theirs in _RESNET.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
        renamed[new] = value
    return renamed


def _clip(tensors: Tensors, root: str) -> Tensors:
    return {f"{root}text_model.{key}": value for key, value in tensors.items()}


def _open_clip(tensors: Tensors, root: str) -> Tensors:
    renamed = {}
    for key, value in tensors.items():
        if key == "text_projection.weight":
            renamed[f"{root}text_projection"] = value.T
            continue
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = np.concatenate([tensors[key.replace("q_proj", f"{p}_proj")] for p in "qkv"])
            key = key.replace("q_proj.", "in_proj_")
        for ours, theirs in _OPEN_CLIP_ENDS.items():
            key = key.replace(ours, theirs)
        renamed[root + key] = value
    renamed[f"{root}logit_scale"] = np.array([4.6], np.float32)
    return renamed


def _unused_layer(tensors: Tensors, root: str) -> Tensors:
    """What SD 2's text encoder has and does not use: one more layer, and a projection."""
    start = f"{root}transformer.resblocks."
    layers = {
        int(key.removeprefix(start).split(".")[0]) for key in tensors if key.startswith(start)
    }
    first, extra = f"{start}0.", f"{start}{max(layers) + 1}."
    layer = {k.replace(first, extra): -v for k, v in tensors.items() if k.startswith(first)}
    width = tensors[f"{root}ln_final.bias"].size
    return {**layer, f"{root}text_projection": np.ones((width, width), np.float32)}
