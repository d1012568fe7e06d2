"""Files of TAESD: every layout gives the same network, and others are refused by name."""

import shutil
import warnings

import mlx.core as mx
import numpy as np
import pytest
import torch
from parity import random_normal
from safetensors.torch import load_file, save_file
from tiny_vaes import make_tiny_vae, write_folder, write_half, write_joined, write_model

from stable_diffusion.config.autoencoder_tiny import AutoencoderTinyConfig, read_vae_config
from stable_diffusion.model_io.convert import convert_model
from stable_diffusion.model_io.loaders import load_autoencoder, open_model
from stable_diffusion.model_io.tiny_vae import find_family

COMFY = {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}


def write_halves(folder):
    """Write both files as they are published, and return the decoder's."""
    folder.mkdir()
    write_half("encoder", folder / "taesd_encoder.safetensors")
    return write_half("decoder", folder / "taesd_decoder.safetensors")


LAYOUTS = {
    "folder": lambda path: write_folder(path / "tiny"),
    "diffusers' file": lambda path: (
        write_folder(path / "tiny") / "diffusion_pytorch_model.safetensors"
    ),
    "two files": lambda path: write_halves(path / "two"),
    "folder of two files": lambda path: write_halves(path / "two").parent,
    "its encoder": lambda path: write_halves(path / "two").with_name("taesd_encoder.safetensors"),
    "ComfyUI's": lambda path: write_joined(path / "c.safetensors", "taesd_", **COMFY),
    "one file": lambda path: write_joined(path / "o.safetensors", ""),
}


@pytest.fixture
def expected(checkpoint, tmp_path):
    """Return what the tiny VAE decodes and encodes, read from a folder of diffusers."""
    folder = write_folder(tmp_path / "expected")
    return run(load_autoencoder(open_model(checkpoint("sd-1"), vae=folder)))


def run(autoencoder) -> list[np.ndarray]:
    z, x = random_normal(1, 3, 4, 4), np.tanh(random_normal(1, 16, 16, 3))
    return [np.array(autoencoder.decode(mx.array(z))), np.array(autoencoder.encode(mx.array(x))[0])]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(checkpoint, tmp_path, expected, layout):
    model = open_model(checkpoint("sd-1"), vae=LAYOUTS[layout](tmp_path))
    for ours, theirs in zip(run(load_autoencoder(model)), expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert model.autoencoder_config.scaling_factor == 1


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny/taesd_decoder.safetensors"])
def test_on_the_hub(hub, checkpoint, tmp_path, expected, name):
    """The encoder comes with the decoder, and of two decoders the one for the model is taken."""
    files = {path.name: path.read_bytes() for path in write_halves(tmp_path / "x").parent.iterdir()}
    commit = hub.add("org/tiny", {**files, "taesdxl_decoder.safetensors": b"x"})
    lines: list[str] = []
    model = open_model(checkpoint("sd-1"), vae=name, on_message=lines.append)
    for ours, theirs in zip(run(load_autoencoder(model)), expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert model.vae.commit == ("org/tiny/taesd_decoder.safetensors", commit)
    assert len(lines) == 1 and lines[0].startswith("Downloading org/tiny, ")
    with pytest.raises(ValueError, match="taesdxl_decoder"):
        open_model(checkpoint("sdxl"), vae="org/tiny")


def test_in_a_whole_checkpoint(checkpoint, tmp_path, expected):
    """ComfyUI saves the VAE that a model has been given."""
    from original_layout import write_single_file

    file = write_single_file(checkpoint("sd-1"), tmp_path / "whole.safetensors")
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("first_stage_model.")}
    save_file(tensors, file)
    write_joined(file, "taesd_", "first_stage_model.", **tensors)
    for ours, theirs in zip(run(load_autoencoder(file)), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_converted(checkpoint, tmp_path, expected):
    model = write_model(checkpoint("sd-1"), tmp_path / "model")
    convert_model(model, tmp_path / "converted")
    for ours, theirs in zip(run(load_autoencoder(tmp_path / "converted")), expected, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "factor"), [("sd-1", 0.18215), ("sdxl", 0.13025)])
def test_a_usual_vae_in_a_model_with_a_tiny_one(checkpoint, tmp_path, kind, factor):
    """The tiny one says nothing of the scale of the latents."""
    model = write_model(checkpoint(kind), tmp_path / "model")
    file = checkpoint("sd-1-published") / "vae/diffusion_pytorch_model.safetensors"
    assert open_model(model, vae=file).autoencoder_config.scaling_factor == factor


def test_the_encoder_alone(checkpoint, tmp_path):
    encoder = write_half("encoder", tmp_path / "taesd_encoder.safetensors")
    with pytest.raises(ValueError, match=r"the decoder is needed too: put taesd_decoder\."):
        open_model(checkpoint("sd-1"), vae=encoder)
    shutil.copy(encoder, tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(ValueError, match=r"is not the decoder that belongs to"):
        open_model(checkpoint("sd-1"), vae=encoder)


@pytest.mark.parametrize(
    ("name", "maker"), [("taef1", "FLUX.1"), ("taesd3", "SD 3"), ("mine", "SD 3 and FLUX.1")]
)
def test_of_other_models(checkpoint, tmp_path, name, maker):
    file = write_half("decoder", tmp_path / f"{name}_decoder.safetensors", latent_channels=16)
    with pytest.raises(ValueError) as caught:
        _ = open_model(checkpoint("sd-1"), vae=file).config
    assert f"is a tiny VAE of {maker}, whose latents have 16 channels" in str(caught.value)
    assert str(caught.value).endswith("have 4: take madebyollin/taesd")


@pytest.mark.parametrize(("kind", "name"), [("sd-1", "taesdxl"), ("sdxl", "taesd")])
def test_a_name_that_does_not_suit_the_model(checkpoint, tmp_path, kind, name):
    """The shapes are the same, so that only the name can warn."""
    folder = write_folder(tmp_path / name)
    with pytest.warns(UserWarning, match=f"{name} is a tiny VAE of .* by its name"):
        _ = open_model(checkpoint(kind), vae=folder).config
    other = {"sd-1": "sdxl", "sdxl": "sd-1"}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = open_model(checkpoint(other), vae=folder).config


def test_a_pickle(checkpoint, tmp_path):
    (tmp_path / "taesd_decoder.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a pickle.*: take its \.safetensors file, or"):
        open_model(checkpoint("sd-1"), vae=tmp_path / "taesd_decoder.pth")


@pytest.mark.parametrize(("kind", "repo"), [("sd-1", "taesd"), ("sdxl", "taesdxl")])
def test_the_short_name(checkpoint, kind, repo):
    """It means the repository for the kind of model; the tests reach no Hub."""
    with pytest.raises(FileNotFoundError, match=f"^madebyollin/{repo} is neither a folder nor"):
        open_model(checkpoint(kind), vae="taesd")


def test_families():
    assert find_family("madebyollin/taesdxl") == "SDXL"
    assert find_family("a/taef1/diffusion_pytorch_model.safetensors") == "FLUX.1"
    assert find_family("taesd/models/sd-vae.safetensors") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("3.conv.0.weight"), "missing: layers.2.conv.0.weight"),
        (lambda t: t.update({"3.conv.4.weight": t["1.weight"]}), "wrong shape: 3.conv.4.weight"),
        (lambda t: t.update({"40.weight": t["1.weight"]}), "not expected: 40.weight"),
    ],
)
def test_damaged_files(checkpoint, tmp_path, change, message):
    file = write_half("decoder", tmp_path / "taesd_decoder.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file({key: value.clone() for key, value in tensors.items()}, file)
    model = open_model(checkpoint("sd-1"), vae=file)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(model)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("latent_channels", 0),
        ("num_decoder_blocks", []),
        ("num_decoder_blocks", [1, 1]),
        ("num_encoder_blocks", [1, 1, 1, 10**9]),
        ("encoder_block_out_channels", [8, 8, 8, 16]),
        ("upsampling_scaling_factor", 4),
        ("upsample_fn", "bilinear"),
        ("shift_factor", 0.1),
        ("scaling_factor", 0),
        ("act_fn", "tanh"),
        ("out_channels", 4),
        ("use_midblock", True),
    ],
)
def test_configs_that_are_not_supported(option, value):
    content = {**make_tiny_vae().config, "_class_name": "AutoencoderTiny"}
    assert isinstance(read_vae_config(dict(content), "x"), AutoencoderTinyConfig)
    with pytest.raises(ValueError, match=r"^x: .*"):
        read_vae_config({**content, option: value}, "x")
