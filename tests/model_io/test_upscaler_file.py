"""Files of upscalers: three generations of names, and one line for what is something else."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from ours import same
from safetensors.numpy import save_file
from upscalers import RENAMES, write_upscaler

from stable_diffusion.model_io.upscaler_file import open_upscaler


@pytest.mark.parametrize("names", [name for name in RENAMES if name != "new"])
def test_each_generation_of_names(tmp_path, names):
    write_upscaler(tmp_path / "new.safetensors", scale=4)
    write_upscaler(tmp_path / "old.safetensors", scale=4, names=names)
    new, old = (open_upscaler(name, tmp_path / f"{name}.safetensors") for name in ("new", "old"))
    assert old.config == new.config and old.scale == 4
    assert (old.config.num_block, old.config.num_feat, old.config.num_grow_ch) == (2, 8, 4)
    assert same(old.load(), new.load())


def test_the_averaged_weights_are_preferred(tmp_path):
    more = {"params.conv_last.bias": torch.zeros(3)}
    write_upscaler(tmp_path / "both.safetensors", names="params_ema", **more)
    network = open_upscaler("both", tmp_path / "both.safetensors").load()
    assert mx.abs(network.conv_last.bias).max().item() > 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("layers.0.residual_group.blocks.0.norm1.weight", "another kind, SwinIR: only those of"),
        ("layers.0.residual_group.overlap_attn.qkv.weight", "another kind, HAT"),
        ("layers.0.residual_group.td", "another kind, ATD"),
        ("layers.0.residual_group.blocks.0.attn.cpb_mlp.0.weight", "another kind, Swin2SR"),
        ("before_RG.1.weight", "another kind, DAT"),
        ("feats.1.channel_mixer.0.weight", "another kind, PLKSR"),
        ("feats.1.channe_mixer.0.weight", "another kind, PLKSR"),
        ("block_1.c1_r.sk.weight", "another kind, SPAN"),
        ("body.0.weight", r"another kind, the compact network of Real-ESRGAN \(SRVGGNet\)"),
        ("params.body.0.weight", "another kind, the compact network"),
        ("model.1.sub.0.RDB1.conv1x1.weight", r"another kind, ESRGAN\+"),
        ("m_head.0.weight", "another kind, SCUNet"),
        ("m_head.weight", r"not an upscaler of the ESRGAN family \(RRDBNet\)"),
        ("lora_unet_down_blocks_0.lora_up.weight", r"this is a LoRA: give it beside a model"),
        ("model.diffusion_model.input_blocks.0.0.weight", r"a model that draws \(--model\)"),
        ("something.weight", r"not an upscaler of the ESRGAN family \(RRDBNet\)"),
        ("conv_first.weight", r"not an upscaler of the ESRGAN family \(RRDBNet\)"),
        ("model.1.sub.0.RDB1.conv1.0.weight", "the upscaler's first or last layers are missing"),
    ],
)
def test_other_files(tmp_path, key, message):
    save_file({key: np.zeros((4, 3, 3, 3), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"^a\.safetensors.*{message}") as error:
        open_upscaler("a.safetensors", tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_broken_files(tmp_path):
    pickle = tmp_path / "a.pth"
    pickle.write_bytes(b"PK\x03\x04")
    with pytest.raises(
        ValueError, match=r"^a\.pth is a pickle, and pickles are never loaded: take"
    ):
        open_upscaler("a.pth", pickle)
    file = tmp_path / "a.safetensors"
    write_upscaler(file, **{"conv_first.weight": torch.zeros(8, 5, 3, 3)})
    with pytest.raises(
        ValueError, match=r"not supported: it takes 5 channels, not one of 3, 12, 4"
    ):
        open_upscaler("a", file)
    write_upscaler(file, **{"conv_last.weight": torch.zeros(1, 8, 3, 3), "conv_hr.bias": None})
    with pytest.raises(ValueError, match=r"missing: conv_hr\.bias; wrong shape: conv_last\.weight"):
        open_upscaler("a", file).load()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is cut short"):
        open_upscaler("a", file)
