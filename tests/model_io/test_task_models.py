"""Models for inpainting and editing: each way in gives the same networks and config."""

import json
import shutil
from pathlib import Path

import numpy as np
import original_layout
import pytest
from kinds import EDITING, INPAINTING, PUBLISHED_KINDS
from ours import same
from safetensors.numpy import load_file

from stable_diffusion.config.known_models import MODELS
from stable_diffusion.config.model import Defaults
from stable_diffusion.model_io import convert_model, loaders
from stable_diffusion.model_io.loaders import load_model_config, open_model
from stable_diffusion.model_io.prediction_type import TELLTALE
from stable_diffusion.utils.size import Size

SD_1, SD_2, SD_2_V, SDXL = PUBLISHED_KINDS
SD_1_EDITING, SD_2_INPAINTING = f"{SD_1}{EDITING}", f"{SD_2}{INPAINTING}"
SDXL_INPAINTING = f"{SDXL}{INPAINTING}"
TASKS = {SD_1_EDITING: "editing", SD_2_INPAINTING: "inpainting", SDXL_INPAINTING: "inpainting"}


@pytest.mark.parametrize("kind", [SD_1_EDITING, SDXL_INPAINTING])
def test_single_files_equal_folders(checkpoint, single, kind):
    """The width of the first layer tells the task."""
    folder, file = load_model_config(checkpoint(kind)), load_model_config(single(kind))
    assert folder.unet.task == file.unet.task == TASKS[kind]
    assert file.unet.in_channels == {"editing": 8, "inpainting": 9}[TASKS[kind]]
    assert file.diffusion.prediction_type == "epsilon"
    assert file.is_xl == ("sdxl" in kind)
    assert same(loaders.load_unet(single(kind)), loaders.load_unet(checkpoint(kind)))


def test_sd_2_for_inpainting_is_not_guessed(checkpoint, tmp_path, recwarn):
    """The deviation of one bias says nothing about it, and no warning comes."""
    tensors = original_layout.original_tensors(checkpoint(SD_2_INPAINTING))
    tensors[TELLTALE] = np.linspace(-9, 9, tensors[TELLTALE].size, dtype=np.float32)
    file = original_layout.save(tensors, tmp_path / "x.safetensors")
    assert load_model_config(file).diffusion.prediction_type == "epsilon"
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


@pytest.mark.parametrize(
    ("base", "kind"),
    [(SD_1, SD_1_EDITING), (SD_1_EDITING, SD_1), (SDXL, SDXL_INPAINTING)],
)
def test_another_unet(checkpoint, single, tmp_path, base, kind):
    """`--unet` gives a model the UNet of another task, from each way in."""
    expected = loaders.load_unet(checkpoint(kind))
    tensors = load_file(checkpoint(kind) / original_layout.WEIGHT_FILE)
    alone = original_layout.save(tensors, tmp_path / "unet.safetensors")
    for source in (checkpoint(kind), checkpoint(kind) / "unet", single(kind), alone):
        model = open_model(checkpoint(base), unet=source)
        assert model.config.unet.task == expected.config.task
        assert same(loaders.load_unet(model), expected)


@pytest.mark.parametrize(("width", "predicts"), [(1024, "epsilon"), (128, "v_prediction")])
def test_a_unet_for_inpainting_in_a_model_that_predicts_velocity(
    checkpoint, tmp_path, width, predicts
):
    """It predicts the noise, if it is one of SD 2, unless the user says otherwise."""
    folder, unet = (
        copy_configs(checkpoint(kind), tmp_path / kind, cross_attention_dim=width)
        for kind in (SD_2_V, SD_2_INPAINTING)
    )
    model = open_model(folder, unet=unet)
    assert model.diffusion_config.prediction_type == predicts
    model = open_model(folder, unet=unet, prediction_type="v_prediction")
    assert model.diffusion_config.prediction_type == "v_prediction"
    assert open_model(folder).diffusion_config.prediction_type == "v_prediction"


def copy_configs(
    folder: Path, copy: Path, path: str = "unet/config.json", **changes: object
) -> Path:
    """Copy a folder without its weights, and change one of its configs."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((copy / path).read_text())
    (copy / path).write_text(json.dumps(content | changes))
    return copy


def test_from_the_hub(checkpoint, hub):
    """A repository gives the networks of the folder."""
    folder = checkpoint(SD_1_EDITING)
    hub.add("org/edit", folder)
    assert same(loaders.load_unet("org/edit"), loaders.load_unet(folder))
    assert load_model_config("org/edit").unet.task == "editing"


def test_converted(single, checkpoint, tmp_path):
    """The folder names the pipeline of the task, also if a file was converted."""
    convert_model(single(SD_1_EDITING), tmp_path / "m", unet_bits=8)
    index = json.loads((tmp_path / "m/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert load_model_config(tmp_path / "m").unet.task == "editing"
    first = loaders.load_unet(tmp_path / "m").conv_in.weight
    assert first.shape[-1] == 8


@pytest.mark.parametrize("kind", [SD_1_EDITING, SDXL_INPAINTING])
def test_other_keys_of_the_index(checkpoint, tmp_path, kind):
    """Published folders list an image encoder and the safety checker."""
    folder = copy_configs(
        checkpoint(kind),
        tmp_path / "m",
        "model_index.json",
        image_encoder=[None, None],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        is_cosxl_edit=False,
    )
    assert load_model_config(folder).unet.task == TASKS[kind]


def test_defaults(checkpoint):
    assert load_model_config(checkpoint(SD_1_EDITING)).defaults == Defaults(100, 7.5, Size(64, 64))
    assert load_model_config(checkpoint(SDXL_INPAINTING)).defaults.steps == 50


def test_known_models():
    tasks = {name: spec.task for name, spec in MODELS.items() if spec.task != "text"}
    assert tasks == {
        **dict.fromkeys(("sd-1-5-inpainting", "sd-2-inpainting", "sdxl-inpainting"), "inpainting"),
        "instruct-pix2pix": "editing",
    }
    assert (MODELS["instruct-pix2pix"].steps, MODELS["sdxl-inpainting"].guidance) == (100, 8.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 96}, "the UNet takes text embeddings of 96, the text encoders"),
        ({"in_channels": 13}, "the UNet takes 13 channels and gives 4, the VAE has 4"),
        ({"in_channels": 2**20 + 1}, "in_channels = 1048577 is not from 1 to 1048576"),
        ({"out_channels": 8, "in_channels": 16}, "the VAE has 4: they do not fit together"),
    ],
)
def test_configs_that_do_not_fit(checkpoint, tmp_path, changes, message):
    folder = copy_configs(checkpoint(SD_1_EDITING), tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_model_config(folder)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_wrong_about_the_first_layer(checkpoint, tmp_path):
    folder, file = checkpoint(SD_1_EDITING), original_layout.WEIGHT_FILE
    copied = copy_configs(folder, tmp_path / "m", in_channels=9)
    shutil.copyfile(folder / file, copied / file)
    with pytest.raises(ValueError, match=r"wrong shape: conv_in.weight \[64, 8, 3, 3\], not"):
        loaders.load_unet(copied)
