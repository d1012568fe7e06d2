"""Folders that `convert` writes: the memory that they take, and how strictly they are read."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from diffusers import DiffusionPipeline
from kinds import PUBLISHED_KINDS
from safetensors.numpy import load_file, save_file

from stable_diffusion import StableDiffusion
from stable_diffusion.model_io import convert, convert_model, loaders
from stable_diffusion.model_io.weight_files import NATIVE
from stable_diffusion.quantize import quantize_unet

SD_1 = PUBLISHED_KINDS[0]
UNET = f"unet/{NATIVE}"
AS_SCRIPTS = ("--text-encoder-bits", "4", "--unet-bits", "8")  # with -q in the scripts


@pytest.fixture
def spoilt(converted, tmp_path) -> Path:
    """Copy a quantized folder, so that it may be changed."""
    return shutil.copytree(converted(SD_1, *AS_SCRIPTS), tmp_path / "spoilt")


def test_the_library_prints_nothing(checkpoint, tmp_path):
    """It passes messages and progress to callbacks."""
    messages, progress, output = [], [], io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        convert_model("tiny", tmp_path / "silent")
        convert_model(
            checkpoint("sdxl"),
            tmp_path / "told",
            unet_bits=8,
            on_message=messages.append,
            on_progress=lambda *call: progress.append(call),
        )
    assert output.getvalue() == ""
    assert len(messages) == 1 and re.match(r"unet: \d+ layers stay as they are", messages[0])
    components = ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert list(dict.fromkeys(component for component, _, _ in progress)) == components
    for component in components:
        calls = [(written, total) for name, written, total in progress if name == component]
        written, totals = zip(*calls, strict=True)
        assert len(set(totals)) == 1 and list(written) == sorted(written)
        assert (written[0], written[-1]) == (0, totals[0])
        content = (tmp_path / "told" / component / NATIVE).read_bytes()
        header = int.from_bytes(content[:8], "little")
        assert totals[0] == len(content) - 8 - header


@pytest.mark.parametrize("quantize", [None, quantize_unet])
def test_memory_to_convert(checkpoint, tmp_path, quantize):
    """A few tensors are in memory at a time, not the network."""
    shutil.copytree(checkpoint(SD_1) / "unet", tmp_path / "unet")
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    source = loaders.open_model(checkpoint(SD_1))
    network = convert._Network("unet", loaders.load_unet, quantize)
    convert._write_network(source, network, False, tmp_path, print, lambda *_: None)
    assert mx.get_peak_memory() - before < 0.4 * (tmp_path / UNET).stat().st_size


def test_memory_to_load(tmp_path):
    """Opening a model reads no tensor, and then each is read once."""
    convert_model("tiny", tmp_path / "t", text_encoder_bits=4, unet_bits=8)
    sizes = [file.stat().st_size for file in (tmp_path / "t").glob(f"*/{NATIVE}")]
    mx.synchronize()
    before = mx.get_active_memory()
    sd = StableDiffusion(str(tmp_path / "t"))
    assert mx.get_active_memory() - before < 1e5
    mx.reset_peak_memory()
    sd.ensure_models_are_loaded()
    kept, peak = mx.get_active_memory() - before, mx.get_peak_memory() - before
    assert abs(kept - sum(sizes)) < 0.01 * sum(sizes)
    assert peak < 1.01 * kept


@pytest.mark.parametrize("options", [(), AS_SCRIPTS])
def test_diffusers_refuses_it(converted, options):
    """It would take random weights otherwise."""
    with pytest.raises(OSError):
        DiffusionPipeline.from_pretrained(converted(SD_1, *options), safety_checker=None)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_strict_loading(spoilt, component):
    """Tensors that are missing, surplus or of another shape are all in one line."""
    file = spoilt / component / NATIVE
    tensors = load_file(file)
    missing, misshapen = [key for key in tensors if "norm1." in key][:2]
    del tensors[missing]
    tensors[misshapen] = tensors[misshapen][1:]
    tensors["surplus"] = np.zeros(1, np.float32)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        StableDiffusion(spoilt)
    message = str(caught.value)
    assert f"{component}/{NATIVE} does not hold what the model asks for" in message
    assert f"missing: {missing}; not expected: surplus; wrong shape: {misshapen} [" in message
    assert "\n" not in message


def test_other_kinds_of_numbers(spoilt):
    tensors = load_file(spoilt / UNET)
    packed = "mid_block.attentions.0.proj_in.weight"
    tensors[packed] = tensors[packed].astype(np.float32)
    tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(np.int32)
    save_file(tensors, spoilt / UNET)
    with pytest.raises(ValueError) as caught:
        loaders.load_unet(spoilt)
    assert f"{packed} [128, 32], not [128, 32] of packed bits" in str(caught.value)
    assert "conv_in.bias [64] of mlx.core.int32, not [64]" in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (8, "quantization = 8 is of the wrong type"),
        ({}, "quantization: bits = None is not supported, only 4, 6, 8"),
        ({"bits": 3, "group_size": 32}, "quantization: bits = 3 is not supported"),
        ({"bits": 8.0, "group_size": 32}, "quantization: bits = 8.0 is of the wrong type"),
        ({"bits": 8, "group_size": 7}, "group_size = 7 is not supported, only 32, 64, 128"),
        ({"bits": 8, "group_size": 32, "mode": "mxfp8"}, "mode = 'mxfp8' is not supported"),
        ({"bits": 8, "group_size": 32, "unquantized": [1]}, "unquantized = .* wrong type"),
        ({"bits": 8, "group_size": 32, "unquantized": ["x.y"]}, "unquantized names x.y"),
        (
            {"bits": 8, "group_size": 128},
            "has 64 inputs, which is not a multiple of group_size = 128",
        ),
        ({"bits": 4, "group_size": 32}, r"\[64, 16\] of packed bits, not \[64, 8\]"),
        (None, "not expected: .*scales"),
    ],
)
def test_absurd_configs(spoilt, quantization, message):
    file = spoilt / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": quantization}))
    with pytest.raises(ValueError, match=message) as caught:
        StableDiffusion(spoilt)
    assert "unet/" in str(caught.value) and "\n" not in str(caught.value)


def test_quantized_by_the_config_only(copy):
    folder = copy("sd-1")
    file = folder / "unet/config.json"
    quantization = {"bits": 8, "group_size": 32}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": quantization}))
    with pytest.raises(FileNotFoundError, match=f"has no unet/{NATIVE}"):
        loaders.load_unet(folder)
