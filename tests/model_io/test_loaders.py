"""Components load by themselves, whatever way a model is named."""

import shutil

import pytest
from clip_vocabulary import write_tokenizer

from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.model import Model
from stable_diffusion.model_io.sources import Source


def test_components_load_alone(checkpoint, tmp_path):
    """Each loads from a folder that has nothing else, not even a model index."""
    for name, load in (
        ("unet", loaders.load_unet),
        ("vae", loaders.load_autoencoder),
        ("text_encoder", loaders.load_text_encoder),
        ("scheduler", loaders.load_diffusion_config),
        ("tokenizer", loaders.load_tokenizer),
    ):
        folder = tmp_path / f"only_{name}"
        shutil.copytree(checkpoint("sd-1") / name, folder / name)
        assert load(str(folder)) is not None


def test_both_tokenizers_of_sdxl(checkpoint):
    first = loaders.load_tokenizer(checkpoint("sdxl"))
    second = loaders.load_tokenizer(checkpoint("sdxl"), "tokenizer_2_vocab", "tokenizer_2_merges")
    assert first.pad_id == first.eos_id
    assert second.pad_id == 0
    with pytest.raises(ValueError, match="not of one tokenizer"):
        loaders.load_tokenizer(checkpoint("sdxl"), "tokenizer_2_vocab", "tokenizer_merges")


@pytest.mark.parametrize("layout", ["slow", "decoder", "json"])
def test_tokenizer_files_of_any_age(tmp_path, layout):
    write_tokenizer(tmp_path / "tokenizer", "!", layout)
    tokenizer = loaders.load_tokenizer(tmp_path)
    assert tokenizer.pad_id == 0
    assert tokenizer.encode("a photo!")[:5] == [49406, 320, 1125, 0, 49407]


def test_missing_files_are_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sd-1"), tmp_path / "model")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model has no vae/config.json"):
        loaders.load_model_config(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere"):
        loaders.load_unet("/nowhere")


def test_pad_token_where_a_cache_lacks_the_small_files(tmp_path):
    """Users of the original MLX example have only vocabulary and merges of SD 2.1 base."""
    write_tokenizer(tmp_path / "tokenizer", "!")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "tokenizer" / name).unlink()
    cached = Model(Source("stabilityai/stable-diffusion-2-1-base", tmp_path))
    assert loaders.load_tokenizer(cached).pad_id == 0
    assert loaders.load_tokenizer(tmp_path).pad_id == 49407


@pytest.mark.parametrize("name", ["~nosuch/model", "~nosuch/model.safetensors"])
def test_folders_of_users_that_do_not_exist(name):
    """They are not found, where `Path.expanduser` would raise a RuntimeError."""
    with pytest.raises(FileNotFoundError, match=f"there is no (folder|file) {name}"):
        loaders.open_model(name)


def test_an_open_model_takes_another_prediction_type(checkpoint):
    """This gives a copy; the model itself does not change."""
    model = loaders.open_model(checkpoint("sd-1"))
    other = loaders.open_model(model, prediction_type="sample")
    assert other.config.diffusion.prediction_type == "sample"
    assert model.config.diffusion.prediction_type == "epsilon"
