"""Models that are not supported are refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import original_layout
import pytest
from kinds import PUBLISHED_KINDS

import txt2image
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.model_io.unsupported import KEYS

SD_1, *_, SDXL = PUBLISHED_KINDS


@pytest.mark.parametrize("channels", [5, 7, 8, 9])
@pytest.mark.parametrize("way_in", ["single file", "folder"])
def test_unets_that_take_more_than_latents(spoil_file, checkpoint, tmp_path, channels, way_in):
    if way_in == "single file":
        key = "model.diffusion_model.input_blocks.0.0.weight"
        shape = (64, channels, 3, 3)
        model = spoil_file(SD_1, lambda tensors: tensors.update({key: np.zeros(shape)}))
    else:
        model = copy_configs(checkpoint(SD_1), tmp_path, "unet/config.json", in_channels=channels)
    names = {
        5: "a depth-to-image",
        7: "an upscaler",
        8: "an editing model",
        9: "an inpainting model",
    }
    for load in (load_model_config, loaders.load_unet):
        with pytest.raises(ValueError, match=f"this is {names[channels]}.*; only Stable Diffusion"):
            load(model)


def copy_configs(folder: Path, copy: Path, path: str, **changes) -> Path:
    """Copy a folder without its weights, and change one of its configs."""
    shutil.copytree(folder, copy / "folder", ignore=shutil.ignore_patterns("*.safetensors"))
    file = copy / "folder" / path
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copy / "folder"


@pytest.mark.parametrize(
    ("path", "changes", "name"),
    [
        ("model_index.json", {"requires_aesthetics_score": True}, "the SDXL refiner"),
        ("unet/config.json", {"cross_attention_dim": 1280}, "the SDXL refiner"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ("model_index.json", {"_class_name": "FluxInpaintPipeline"}, "FLUX"),
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "an inpainting"),
        ("model_index.json", {"_class_name": "StableDiffusionUpscalePipeline"}, "an upscaler"),
    ],
)
def test_other_models_in_folders(checkpoint, tmp_path, path, changes, name):
    folder = copy_configs(checkpoint(SDXL), tmp_path, path, **changes)
    with pytest.raises(
        ValueError, match=f"this is {name}.*; only Stable Diffusion 1.x, 2.x and XL"
    ):
        load_model_config(folder)


@pytest.mark.parametrize("part", KEYS)
def test_other_models_in_files(tmp_path, capsys, part):
    """The error is one line, with status 1."""
    file = original_layout.save({f"a.{part}b": np.zeros(1)}, tmp_path / "x.safetensors")
    assert txt2image.main(["a photo", "--model", str(file)]) == 1
    line = f"error: {file}: this is {KEYS[part]}; only Stable Diffusion 1.x, 2.x and XL are run\n"
    assert capsys.readouterr().err == line
