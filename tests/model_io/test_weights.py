"""Weight files are read strictly, with the names of every version of the libraries."""

import json
import threading

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import UNET_FILE, edit
from ours import same
from safetensors.numpy import load_file

from stable_diffusion.model_io import loaders, safetensors_file
from stable_diffusion.model_io.layouts import AUTOENCODER, TEXT_ENCODER, UNET

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


def test_renames_match_whole_segments():
    assert UNET.parameters("mid.attn1.to_out.0.bias") == ("mid.attn1.out_proj.bias",)
    assert UNET.parameters("a.to_out.00.bias") == ("a.to_out.00.bias",)
    assert UNET.parameters("xto_q.to_qx.weight") == ("xto_q.to_qx.weight",)
    assert AUTOENCODER.parameters("attentions.0.proj_attn.bias") == ("attentions.0.out_proj.bias",)
    key = "text_model.encoder.layers.3.self_attn.q_proj.weight"
    assert TEXT_ENCODER.parameters(key) == ("layers.3.attention.query_proj.weight",)


@pytest.mark.parametrize(
    ("layout", "kind", "file"),
    [(UNET, "sdxl", UNET_FILE), (AUTOENCODER, "sd-1", VAE_FILE), (TEXT_ENCODER, "sd-2", TEXT_FILE)],
)
def test_every_key_can_be_named_back(checkpoint, layout, kind, file):
    """Errors name missing tensors as the files do."""
    for key in load_file(checkpoint(kind) / file):
        assert layout.key(*layout.parameters(key)) == key.removeprefix(layout.prefix)


def test_all_problems_in_one_message(copy):
    folder = copy("sd-1")

    def spoil(tensors):
        del tensors["mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias"]
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3]
        tensors["extra.weight"] = np.zeros(3, np.float32)

    edit(folder / UNET_FILE, spoil)
    with pytest.raises(ValueError) as caught:
        loaders.load_unet(folder)
    message = str(caught.value)
    assert UNET_FILE in message
    assert "missing: mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias;" in message
    assert "not expected: extra.weight;" in message
    assert "wrong shape: conv_in.weight [32, 3, 3, 3], not [32, 4, 3, 3]" in message
    assert "\n" not in message


@pytest.mark.parametrize("form", ["linear", "convolution"])
def test_old_vae_attention_names(copy, checkpoint, form):
    folder = copy("sd-1")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors):
        aged = {}
        for key, value in tensors.items():
            if "attentions" in key:
                for new_name, old_name in old.items():
                    key = key.replace(new_name, old_name)
                if form == "convolution" and value.ndim == 2:
                    value = value[..., None, None]
            aged[key] = value
        assert any("proj_attn" in key for key in aged)
        return aged

    edit(folder / VAE_FILE, age)
    assert same(loaders.load_autoencoder(folder), loaders.load_autoencoder(checkpoint("sd-1")))


def test_clip_with_and_without_its_prefix(copy, checkpoint):
    """Older files have the prefix, and position ids; those of transformers 5 have neither."""
    folder = copy("sd-1")
    prefixed = "text_model.embeddings.token_embedding.weight" in load_file(folder / TEXT_FILE)

    def change(tensors):
        if prefixed:
            return {key.removeprefix("text_model."): value for key, value in tensors.items()}
        tensors = {f"text_model.{key}": value for key, value in tensors.items()}
        return {**tensors, "text_model.embeddings.position_ids": np.arange(77)[None]}

    edit(folder / TEXT_FILE, change)
    ours = loaders.load_text_encoder(folder)
    assert same(ours, loaders.load_text_encoder(checkpoint("sd-1")))


def test_sharded_files(oracle, checkpoint, tmp_path):
    oracle("sdxl").single.unet.save_pretrained(tmp_path / "unet", max_shard_size="300KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert same(loaders.load_unet(tmp_path), loaders.load_unet(checkpoint("sdxl")))


def test_fp16_variant(oracle, checkpoint, tmp_path):
    oracle("sd-2").single.save_pretrained(tmp_path)
    half = oracle("sd-2").make_copy().to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    edit(tmp_path / UNET_FILE, lambda tensors: tensors.clear())  # reading it would fail
    unet = loaders.load_unet(tmp_path, float16=True)
    assert unet.conv_in.weight.dtype == mx.float16
    assert same(unet, loaders.load_unet(checkpoint("sd-2"), float16=True))


def test_half_precision_files_stay_half(oracle, tmp_path):
    """Loading in float16 needs about the memory of the weights in float16."""
    oracle("sdxl").make_copy().to(torch.float16).unet.save_pretrained(tmp_path / "unet")
    size = (tmp_path / UNET_FILE).stat().st_size
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    unet = loaders.load_unet(tmp_path, float16=True)
    mx.eval(unet.parameters())
    assert mx.get_peak_memory() - before < 1.2 * size


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_broken_file(copy, content):
    folder = copy("sd-1")
    (folder / UNET_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{UNET_FILE} is not a readable safetensors file"):
        loaders.load_unet(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_broken_config(copy, content):
    folder = copy("sd-1")
    (folder / "unet" / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"unet/config.json.*JSON"):
        loaders.load_unet(folder)


def test_config_that_does_not_fit_the_weights(copy):
    """Errors name every tensor of another shape than the config asks for."""
    folder = copy("sd-1")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": 40}))
    with pytest.raises(ValueError, match=r"attn2.to_k.weight \[32, 32\], not \[32, 40\]"):
        loaders.load_unet(folder)


def test_no_memory_for_the_threads_that_read(monkeypatch):
    """There is an error, where MLX alone would wait forever or end the process."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    safetensors_file._start_readers.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        loaders.load_autoencoder("tiny")
    monkeypatch.undo()
    loaders.load_autoencoder("tiny")
