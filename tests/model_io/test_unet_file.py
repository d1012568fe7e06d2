"""UNets from files, folders and the Hub, in place of a model's own."""

import mlx.core as mx
import numpy as np
import original_layout
import pytest
from hub_files import REPO
from ours import same
from safetensors.numpy import load_file
from unet_kinds import to_numpy, write_unet

from stable_diffusion.cli.convert import main as convert_main
from stable_diffusion.model_io.loaders import load_model_config, load_unet, open_model


def test_sources_of_a_unet(checkpoint, tmp_path):
    """A UNet is taken from a file, from a model as a folder or a file, and from its own folder."""
    folder, other = checkpoint("sd-1-published"), checkpoint("sd-1-published")
    expected = load_unet(other)
    bare = tmp_path / "bare"
    bare.symlink_to(other / "unet")
    weights = load_file(other / original_layout.WEIGHT_FILE)
    half = {f"diffusion_model.{k}": v for k, v in original_layout.original_unet(weights).items()}
    half = original_layout.save(half, tmp_path / "half.safetensors", dtype=np.float16)
    single = original_layout.write_single_file(other, tmp_path / "single.safetensors")
    for source in (other, bare, single, open_model(other)):
        model = open_model(folder, unet=source)
        assert model.config.unet.heads == (8, 8, 8, 8)
        assert same(load_unet(model), expected)
    narrow = load_unet(open_model(folder, unet=half)).conv_in.weight
    wanted = expected.conv_in.weight.astype(mx.float16).astype(mx.float32)
    assert narrow.dtype == mx.float32
    assert mx.array_equal(narrow, wanted)


@pytest.mark.parametrize(
    ("metadata", "marker", "expected"),
    [
        ({}, False, "epsilon"),  # as the model's scheduler says
        ({"modelspec.prediction_type": "v"}, False, "v_prediction"),
        ({}, True, "v_prediction"),
    ],
)
def test_prediction_type(checkpoint, tmp_path, metadata, marker, expected):
    tensors = to_numpy("lcm")
    if marker:
        tensors["v_pred"] = np.zeros(0, np.float32)
    file = original_layout.save(tensors, tmp_path / "unet.safetensors", metadata)
    model = open_model(checkpoint("sd-1-published"), unet=file)
    assert model.config.diffusion.prediction_type == expected
    load_unet(model)  # the marker is not a weight
    model = open_model(checkpoint("sd-1-published"), unet=file, prediction_type="sample")
    assert model.config.diffusion.prediction_type == "sample"


def test_unet_of_another_family(checkpoint, tmp_path):
    file = write_unet("ssd-1b", tmp_path / "xl.safetensors")
    message = (
        "xl.safetensors is the UNet of SDXL with text embeddings of 192, and .* is Stable "
        "Diffusion with text embeddings of 128: they do not fit together"
    )
    with pytest.raises(ValueError, match=message):
        open_model(checkpoint("sd-1-published"), unet=file)
    with pytest.raises(ValueError, match="UNet of SDXL .* they do not fit together"):
        load_unet(open_model(checkpoint("sd-1-published"), unet=checkpoint("sdxl-published")))


def test_files_that_are_no_unet(checkpoint, tmp_path):
    vae = original_layout.save(
        original_layout.vae_tensors(checkpoint("sd-1-published")), tmp_path / "vae.safetensors"
    )
    lora = original_layout.save({"lora_unet_x.lora_up.weight": np.ones(1)}, tmp_path / "l.st")
    nothing = original_layout.save({"x": np.ones(1)}, tmp_path / "x.safetensors")
    empty = {"conv_in.weight": np.ones((4, 4, 3, 3)), "conv_norm_out.weight": np.ones(4)}
    empty = original_layout.save(empty, tmp_path / "empty.safetensors")
    for file, message in (
        (empty, "not clear, because down_blocks.0.resnets.0.conv1.weight is missing"),
        (vae, "cannot replace a UNet: it is a VAE"),
        (lora, "this is a LoRA: give it beside a model"),
        (nothing, "cannot replace a UNet: it holds no UNet"),
        (tmp_path / "missing.safetensors", "there is no file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            open_model(checkpoint("sd-1-published"), unet=file)


def test_refiner_is_named(checkpoint, tmp_path):
    """Its time ids are five, so its embedding fits no six."""
    tensors = to_numpy("koala-700m")
    wide = {
        key: np.zeros((len(value), 1280), np.float32)
        for key, value in tensors.items()
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    file = original_layout.save(tensors | wide, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="this is the SDXL refiner"):
        open_model(checkpoint("sdxl-published"), unet=file)


def test_unet_of_a_repository(hub, checkpoint, tmp_path):
    """It is one file of many, or the UNet of a repository of nothing else."""
    file = write_unet("lcm", tmp_path / "unet.safetensors").read_bytes()
    commit = hub.add(REPO, {"lcm_unet.safetensors": file, "other.safetensors": b"x"})
    lines: list[str] = []
    model = open_model(
        checkpoint("sd-1-published"), unet=f"{REPO}/lcm_unet.safetensors", on_message=lines.append
    )
    assert model.config.unet.embeds_guidance
    assert model.unet.commit == (f"{REPO}/lcm_unet.safetensors", commit)
    assert len(lines) == 1 and lines[0].startswith(f"Downloading {REPO}, ")
    with pytest.raises(ValueError, match="has 2 safetensors files: name one of them"):
        open_model(checkpoint("sd-1-published"), unet=REPO)

    folder = checkpoint("sd-1-published") / "unet"
    hub.add("org/unet", {path.name: path.read_bytes() for path in folder.iterdir()})
    model = open_model(checkpoint("sd-1-published"), unet="org/unet")
    assert same(load_unet(model), load_unet(checkpoint("sd-1-published")))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sdxs-0.9", "sd-2-published"), ("ssd-1b", "sdxl-published"), ("lcm", "sd-1-published")],
)
def test_whole_models_with_small_unets(checkpoint, tmp_path, name, kind):
    """A single file of such a model is the model with this UNet."""
    folder = checkpoint(kind)
    parts = {
        component: load_file(folder / component / file)
        for component, file in original_layout.WEIGHTS.items()
        if (folder / component).exists()
    }
    tensors = original_layout.convert(parts | {"unet": to_numpy(name)})
    whole = original_layout.save(tensors, tmp_path / "whole.safetensors")
    expected = open_model(folder, unet=write_unet(name, tmp_path / "unet.safetensors"))
    model = open_model(whole, prediction_type="epsilon")
    for option in ("heads", "mid_block_type", "down_depths", "up_depths", "has_self_attention"):
        assert getattr(model.config.unet, option) == getattr(expected.config.unet, option)
    assert same(load_unet(model), load_unet(expected))
    assert model.config.few_step == expected.config.few_step


def test_conversion_keeps_the_unet(checkpoint, tmp_path):
    """A converted model has the other UNet, with all that is unusual about it."""
    file = write_unet("lcm", tmp_path / "unet.safetensors")
    folder = tmp_path / "converted"
    convert_main([str(checkpoint("sd-1-published")), str(folder), f"--unet={file}"])
    config = load_model_config(folder).unet
    assert config == load_model_config(open_model(folder, unet=file)).unet
    assert config.embeds_guidance
    assert same(load_unet(folder), load_unet(open_model(folder, unet=file)))
