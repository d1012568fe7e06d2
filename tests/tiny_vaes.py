"""Write tiny VAEs (TAESD) as people have them, with random weights."""

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

WIDTH = 8


@cache
def make_tiny_vae(**options) -> AutoencoderTiny:
    """Return diffusers' AutoencoderTiny of few channels, whose pictures have contrast."""
    torch.manual_seed(4)
    widths = {f"{half}_block_out_channels": (WIDTH,) * 4 for half in ("encoder", "decoder")}
    vae = AutoencoderTiny(**{**widths, "num_decoder_blocks": (2, 1, 1, 1), **options}).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight *= 1.6
    return vae


def write_folder(folder: Path) -> Path:
    """Write a folder of diffusers with a tiny VAE alone."""
    make_tiny_vae().save_pretrained(folder)
    return folder


def write_model(model: Path, folder: Path) -> Path:
    """Copy a model to a folder, with a tiny VAE in place of its own."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("vae"))
    write_folder(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def split_halves(vae: AutoencoderTiny) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of both halves under the names of the original files."""
    halves: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for key, value in vae.state_dict().items():
        half, _, number, rest = key.split(".", 3)
        shift = 1 if half == "decoder" else 0  # the original decoder begins with a clamp
        halves[half][f"{int(number) + shift}.{rest}"] = value.contiguous()
    return halves


def write_half(half: str, file: Path, **options) -> Path:
    """Write the encoder or decoder alone, as taesd_encoder.safetensors is published."""
    save_file(split_halves(make_tiny_vae(**options))[half], file)
    return file


def write_joined(file: Path, prefix: str, root: str = "", **more: torch.Tensor) -> Path:
    """Write both halves into one file under the original names, with `prefix` before the half."""
    tensors = {
        f"{root}{prefix}{half}.{key}": value
        for half, found in split_halves(make_tiny_vae()).items()
        for key, value in found.items()
    }
    save_file({**tensors, **more}, file)
    return file
