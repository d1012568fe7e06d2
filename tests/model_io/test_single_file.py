"""One file in the original layout gives diffusers' pictures; errors say what is wrong with it."""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np
import original_layout
import pytest
import torch
from kinds import PUBLISHED_KINDS
from mlx.utils import tree_flatten
from oracle import psnr
from original_layout import OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP, original_tensors, write_single_file
from ours import same
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from ways_in import PREDICTION, PROMPT, drawn, from_single_file

import txt2image
from stable_diffusion import StableDiffusion
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.loaders import load_model_config, open_model

SAME, OTHER = 50, 25  # dB
SD_1, SD_2, SD_2_V, SDXL = PUBLISHED_KINDS


@pytest.fixture(scope="module")
def theirs(single, checkpoint) -> Callable[[str], np.ndarray]:
    """Return a function that gives diffusers' picture from a single file and a folder's configs."""

    @cache
    def draw(kind: str) -> np.ndarray:
        return from_single_file(single(kind), checkpoint(kind))

    return draw


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_picture_equals_that_of_diffusers(single, theirs, kind):
    expected = theirs(kind)
    assert expected.std() >= 30  # of 255: the picture shows something
    assert psnr(drawn(str(single(kind)), prediction_type=PREDICTION[kind]), expected) >= SAME


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_networks_equal_those_of_the_folder(single, checkpoint, kind):
    file, folder = str(single(kind)), checkpoint(kind)
    assert same(loaders.load_unet(file), loaders.load_unet(folder))
    assert same(loaders.load_autoencoder(file), loaders.load_autoencoder(folder))
    for name in [path.name for path in folder.glob("text_encoder*")]:
        one, other = (loaders.load_text_encoder(m, model_key=name) for m in (file, folder))
        assert same(one, other)
    for name in [path.name for path in folder.glob("tokenizer*")]:
        keys = (f"{name}_vocab", f"{name}_merges")
        one, other = (loaders.load_tokenizer(m, *keys) for m in (file, folder))
        assert one.encode(PROMPT) == other.encode(PROMPT)
        assert one.pad_id == other.pad_id


def test_half_precision_file(checkpoint, tmp_path):
    file = write_single_file(checkpoint(SDXL), tmp_path / "x.safetensors", dtype=np.float16)
    for load in (loaders.load_unet, loaders.load_text_encoder, loaders.load_autoencoder):
        half = load(file, float16=True)
        if load is not loaders.load_autoencoder:  # which is always in float32
            assert same(half, load(checkpoint(SDXL), float16=True))
        full = load(file)
        assert all(value.dtype == mx.float32 for _, value in tree_flatten(full.parameters()))
        half.set_dtype(mx.float32)
        assert same(full, half)


@pytest.mark.parametrize(
    ("metadata", "predicts", "size"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction", 768),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon", 512),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction", 768),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon", 512),
    ],
)
def test_prediction_type_by_the_metadata(checkpoint, tmp_path, metadata, predicts, size):
    file = tmp_path / "x.safetensors"
    original_layout.save(original_tensors(checkpoint(SD_2)), file, metadata)
    config = load_model_config(file)
    assert config.diffusion.prediction_type == predicts
    assert config.defaults.size == (size, size)
    other = "epsilon" if predicts == "v_prediction" else "v_prediction"
    config = load_model_config(open_model(file, prediction_type=other))
    assert config.diffusion.prediction_type == other


def test_prediction_type_that_nothing_says(single):
    """Networks load without it, but not the schedule, and so not the model."""
    file = str(single(SD_2))
    assert loaders.load_unet(file).conv_in.weight.shape[0] == 64
    with pytest.raises(ValueError, match=r"does not say .* SD 2 .* \(--prediction-type\), v_pred"):
        StableDiffusion(file)
    assert StableDiffusion(file, prediction_type="epsilon").config.diffusion.steps_offset == 1
    with pytest.raises(ValueError, match="prediction_type = 'v' is not supported, only epsilon"):
        StableDiffusion(file, prediction_type="v")


def test_prediction_type_of_a_folder(checkpoint):
    config = load_model_config(open_model(checkpoint(SD_1), prediction_type="v_prediction"))
    assert config.diffusion.prediction_type == "v_prediction"


def test_marker_keys_of_velocity(spoil_file):
    """Some SDXL fine-tunes have an empty tensor that says that they predict the velocity."""
    file = spoil_file(SDXL, lambda tensors: tensors.update(v_pred=np.zeros(0, np.float32)))
    config = load_model_config(file)
    assert config.diffusion.prediction_type == "v_prediction"
    assert config.defaults.size == (1024, 1024)
    assert not config.diffusion.rescale_betas_zero_snr


def test_marker_key_of_zero_snr(spoil_file):
    """Zero terminal SNR: the schedule ends in pure noise, where only trailing spacing begins."""
    file = spoil_file(SDXL, lambda tensors: tensors.update(ztsnr=np.zeros(0, np.float32)))
    config = load_model_config(file).diffusion
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"


def test_wrong_prediction_type_shows(single, theirs):
    """This shows that the comparison of pictures above can fail."""
    assert psnr(drawn(single(SD_2), prediction_type="v_prediction"), theirs(SD_2)) < OTHER


def test_text_encoder_of_older_and_other_writers(spoil_file, checkpoint):
    """Some lack CLIP's `text_model.`, or store OpenCLIP's projection as a linear layer."""
    old = spoil_file(
        SD_1, lambda tensors: {k.replace("text_model.", ""): v for k, v in tensors.items()}
    )
    assert same(loaders.load_text_encoder(old), loaders.load_text_encoder(checkpoint(SD_1)))

    def as_linear(tensors):
        key = f"{XL_OPEN_CLIP}text_projection"
        tensors[f"{key}.weight"] = tensors.pop(key).T
        tensors[f"{XL_CLIP}text_projection.weight"] = np.eye(64)
        tensors["conditioner.embedders.0.logit_scale"] = np.ones(())

    linear = spoil_file(SDXL, as_linear)
    one, other = (
        loaders.load_text_encoder(m, model_key="text_encoder_2") for m in (linear, checkpoint(SDXL))
    )
    assert same(one, other)


def test_all_problems_of_a_network_in_one_message(spoil_file):
    """The message has the names of the file; a tensor of several parameters is named once."""
    block = "model.diffusion_model.output_blocks.5"
    attention = f"{OPEN_CLIP}transformer.resblocks.0.attn."

    def spoil(tensors):
        del tensors[f"{block}.0.in_layers.0.bias"]
        tensors[f"{block}.7.weight"] = np.zeros(3)
        tensors[f"{block}.2.conv.weight"] = tensors[f"{block}.2.conv.weight"][:, :3]
        del tensors[f"{attention}in_proj_bias"]
        tensors[f"{attention}in_proj_weight"] = tensors[f"{attention}in_proj_weight"][:-1]

    file = spoil_file(SD_2, spoil)
    with pytest.raises(ValueError) as caught:
        loaders.load_unet(file)
    message = str(caught.value)
    assert f"missing: {block}.0.in_layers.0.bias;" in message
    assert f"not expected: {block}.7.weight;" in message
    assert f"wrong shape: {block}.2.conv.weight [64, 3, 3, 3], not [64, 64, 3, 3]" in message
    with pytest.raises(ValueError) as caught:
        loaders.load_text_encoder(file)
    message = str(caught.value)
    assert f"missing: {attention}in_proj_bias; wrong" in message
    assert message.endswith(f"{attention}in_proj_weight [383, 128], not [384, 128]")


def test_misshapen_projection(spoil_file):
    key = f"{XL_OPEN_CLIP}text_projection"
    file = spoil_file(SDXL, lambda tensors: tensors.update({key: tensors[key][1:]}))
    with pytest.raises(ValueError, match=r"text_projection \[127, 24\], not \[128, 24\]"):
        loaders.load_text_encoder(file, model_key="text_encoder_2")


def test_unexpected_keys(spoil_file):
    file = spoil_file(SD_1, lambda tensors: tensors.update(extra=np.zeros(1), more=np.zeros(1)))
    with pytest.raises(ValueError, match=r"recognized as SD 1: not expected: extra, more$"):
        open_model(file)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("first_stage_model.", r"x.safetensors has no VAE: give one \(--vae\)"),
        ("cond_stage_model.", "has no text encoder of SD 1.x, 2.x or XL"),
        (
            "model.diffusion_model.",
            "not a Stable Diffusion checkpoint in one file: no keys begin with model.d",
        ),
        (
            "model.diffusion_model.out.2",
            "is not clear, because model.diffusion_model.out.2.weight is",
        ),
    ],
)
def test_missing_networks(spoil_file, start, message):
    def drop(tensors):
        return {key: value for key, value in tensors.items() if not key.startswith(start)}

    with pytest.raises((ValueError, OSError), match=message):
        load_model_config(spoil_file(SD_1, drop))


def run(model, *options) -> int:
    return txt2image.main(["a photo", "--model", str(model), *map(str, options)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.ckpt", b"PK\x03\x04", "is a pickle, and pickles are never loaded: convert it in diff"),
        ("x.pt", b"PK\x03\x04", "is a pickle"),
        ("x.safetensors", None, "there is no file"),
        ("x.ckpt", None, "there is no file"),
        ("x.safetensors", b"", "is not a readable safetensors file"),
        ("x.safetensors", b"\xff" * 100, "is not a readable safetensors file"),
        ("x.safetensors", b"\x02\0\0\0\0\0\0\0[]", "is not a readable safetensors file"),
        ("x.safetensors", b"\x0d\0\0\0\0\0\0\0" + b'{"a":{"b":1}}', "is not a readable"),
    ],
)
def test_files_that_are_not_models(tmp_path, capsys, name, content, message):
    """The error is one line, with status 1, for a model and for a VAE."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name) == 1
    assert run("tiny", "--vae", tmp_path / name) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(message in line and str(tmp_path / name) in line for line in lines)


def test_file_that_is_cut_short(single, tmp_path):
    file = tmp_path / "x.safetensors"
    content = single(SD_1).read_bytes()
    file.write_bytes(content[:-1])
    sizes = f"it has {len(content) - 1} of {len(content)} bytes"
    with pytest.raises(ValueError, match=f"x.safetensors is cut short: {sizes}; download it again"):
        open_model(file)


def test_eight_bit_floats(tmp_path):
    file = tmp_path / "x.safetensors"
    save_torch_file({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(ValueError, match=r"has 8-bit floats \(F8_E4M3\), which are not supported"):
        open_model(file)


def test_script_with_a_single_file(single, tmp_path, capsys):
    output = tmp_path / "o.png"
    options = ["--steps", 1, "--width", 64, "--height", 64, "--n_images", 1, "--output", output]
    assert run(single(SD_2_V), *options) == 1
    assert "--prediction-type" in capsys.readouterr().err
    assert run(single(SD_2_V), *options, "--prediction-type", "v_prediction") == 0
    assert output.exists()


@pytest.mark.parametrize("layout", ["original", "diffusers", "bare folder", "folder", "model"])
def test_another_vae(single, checkpoint, tmp_path, layout):
    """File or folder, alone or in a model, for a model that is a file or a folder."""
    folder = checkpoint(SD_2)
    vae = {
        "original": tmp_path / "x.safetensors",
        "diffusers": folder / "vae" / original_layout.WEIGHTS["vae"],
        "bare folder": folder / "vae",
        "folder": folder,
        "model": single(SD_2),
    }[layout]
    if layout == "original":
        loss = {"loss.logvar": np.zeros(()), "model_ema.decay": np.zeros(())}
        original_layout.save({**original_layout.vae_tensors(folder), **loss}, vae)
    expected = loaders.load_autoencoder(folder)
    for model in (checkpoint(SD_1), single(SD_1)):
        opened = open_model(model, vae=vae)
        assert same(loaders.load_autoencoder(opened), expected)
        assert opened.config.autoencoder.scaling_factor == 0.18215
        assert same(loaders.load_unet(opened), loaders.load_unet(checkpoint(SD_1)))
    assert not same(loaders.load_autoencoder(single(SD_1)), expected)


def test_vae_alone_takes_the_scale_of_the_model(checkpoint, tmp_path):
    """So it does if the model is a file without a VAE."""
    tensors = original_tensors(checkpoint(SDXL))
    without = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    file = original_layout.save(without, tmp_path / "model.safetensors")
    vae = original_layout.save(
        original_layout.vae_tensors(checkpoint(SD_1)), tmp_path / "vae.safetensors"
    )
    for model in (file, checkpoint(SDXL)):
        autoencoder = loaders.load_autoencoder(open_model(model, vae=vae))
        assert autoencoder.config.scaling_factor == 0.13025
        assert same(autoencoder, loaders.load_autoencoder(checkpoint(SD_1)))


def test_vae_that_does_not_fit(single, checkpoint, tmp_path):
    wrong = r"scales latents by 0.13025, .* by 0.18215: it is the VAE of another kind of model"
    for model in (checkpoint(SD_1), single(SD_1)):
        for vae in (checkpoint(SDXL), checkpoint(SDXL) / "vae", single(SDXL)):
            with pytest.raises(ValueError, match=wrong):
                load_model_config(open_model(model, vae=vae))
    tensors = original_layout.vae_tensors(checkpoint(SD_1))
    tensors["decoder.conv_in.weight"] = np.zeros((64, 16, 3, 3))
    wide = original_layout.save(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="takes 4 channels .* the VAE has 16: they do not fit"):
        load_model_config(open_model(single(SD_1), vae=wide))
    none = tmp_path / "none.safetensors"
    save_file({"a": np.zeros(1)}, none)
    with pytest.raises(ValueError, match="holds no VAE"):
        open_model(single(SD_1), vae=none)
    with pytest.raises(ValueError, match=r"it is a VAE \(--vae\)"):
        open_model(wide)
