"""Networks are detected by the names and shapes in a file of the original layout."""

import json
import os
from pathlib import Path

import diffusers
import numpy as np
import original_layout
import pytest
import torch
from kinds import PUBLISHED_KINDS
from original_layout import OPEN_CLIP
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.detect_text_encoder import detect_family, detect_text_encoder
from stable_diffusion.model_io.loaders import open_model
from stable_diffusion.model_io.safetensors_file import Header

SDXL = PUBLISHED_KINDS[-1]
WITH_VALUES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


@pytest.mark.parametrize(
    ("name", "unet", "heads", "texts"),
    [
        (
            "SD 1.5",
            {"cross_attention_dim": 768, "attention_head_dim": 8},
            (8, 8, 8, 8),
            [{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}],
        ),
        (
            "SD 2.1",
            {
                "cross_attention_dim": 1024,
                "attention_head_dim": [5, 10, 20, 20],
                "use_linear_projection": True,
            },
            (5, 10, 20, 20),
            [{"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16}],
        ),
        (
            "SDXL",
            {
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
                "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            (5, 10, 20),
            [
                {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
                {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
            ],
        ),
    ],
)
def test_published_models_at_full_size(tmp_path, name, unet, heads, texts):
    """Every shape of the published models is detected, in a file that takes no disk space."""
    file = write_holes(tmp_path / "x.safetensors", unet, texts)
    model = open_model(file, prediction_type="epsilon")
    assert model.source.family.name in name
    config = model.config
    assert config.unet.heads == heads
    assert config.unet.mid_depth == unet.get("transformer_layers_per_block", [1])[-1]
    assert config.unet.addition_time_embed_dim == unet.get("addition_time_embed_dim")
    assert config.autoencoder.block_out_channels == (128, 256, 512, 512)
    for detected, text in zip(config.text_encoders, texts, strict=True):
        assert text.items() <= vars(detected).items()
    for load in (loaders.load_unet, loaders.load_autoencoder, loaders.load_text_encoder):
        load(model)  # lazily: no weights are read, but all names and shapes are compared
    if len(texts) == 2:
        loaders.load_text_encoder(model, model_key="text_encoder_2")


def write_holes(file: Path, unet: dict, texts: list[dict]) -> Path:
    """Write a single file, with holes for weights, of a model of diffusers with these configs."""
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    first, *second = [
        CLIPTextConfig(**text, intermediate_size=4 * text["hidden_size"], projection_dim=1280)
        for text in texts
    ]
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        for layer in WITH_VALUES:  # shapes are enough, and drawing values takes half the time
            patch.setattr(layer, "reset_parameters", lambda _: None)
        networks = {
            "unet": diffusers.UNet2DConditionModel(**unet),
            "vae": diffusers.AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(first),
        }
        for config in second:
            networks["text_encoder_2"] = CLIPTextModelWithProjection(config)
    parts = {
        name: {key: np.zeros(value.shape, np.int8) for key, value in network.state_dict().items()}
        for name, network in networks.items()
    }
    header, end = {}, 0
    for key, value in original_layout.convert(parts).items():
        start, end = end, end + 2 * value.size
        header[key] = {"dtype": "F16", "shape": value.shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content)
    os.truncate(file, 8 + len(content) + end)
    return file


@pytest.mark.parametrize("n_layers", [23, 24])
def test_full_text_encoder_of_sd_2(tmp_path, n_layers):
    """Published files have 24 layers, of which 23 are used; converted ones have only those."""
    tensors = {
        f"{OPEN_CLIP}token_embedding.weight": np.zeros((9, 64), np.float32),
        f"{OPEN_CLIP}positional_embedding": np.zeros((77, 64), np.float32),
        f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight": np.zeros((8, 64), np.float32),
    }
    for i in range(n_layers):
        tensors[f"{OPEN_CLIP}transformer.resblocks.{i}.ln_1.weight"] = np.zeros(64, np.float32)
    file = original_layout.save(tensors, tmp_path / "x.safetensors")
    header = Header("x", file)
    family, layouts = detect_family(header)
    tower = family.text_towers["text_encoder"]
    config, layout = detect_text_encoder(header, tower, layouts["text_encoder"])
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (23, 1)
    used = [key for key in tensors if "ln_1" in key and layout.has(key)]
    assert len(used) == 23


def test_time_ids_of_another_number(spoil_file):
    key = "model.diffusion_model.label_emb.0.0.weight"
    file = spoil_file(SDXL, lambda tensors: tensors.update({key: tensors[key][:, 1:]}))
    with pytest.raises(ValueError, match="label_emb.0.0 takes 71 numbers, which are not the 24 of"):
        open_model(file)
