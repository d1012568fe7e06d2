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
from stable_diffusion.model_io.loaders import load_model_config, open_model

SD_1, *_, SDXL = PUBLISHED_KINDS


@pytest.mark.parametrize("channels", [5, 7])
@pytest.mark.parametrize("way_in", ["single file", "folder"])
def test_unets_that_take_more_than_latents(spoil_file, checkpoint, tmp_path, channels, way_in):
    if way_in == "single file":
        key = "model.diffusion_model.input_blocks.0.0.weight"
        shape = (64, channels, 3, 3)
        model = spoil_file(SD_1, lambda tensors: tensors.update({key: np.zeros(shape)}))
    else:
        model = copy_configs(checkpoint(SD_1), tmp_path, "unet/config.json", in_channels=channels)
    names = {5: "a depth-to-image", 7: "an upscaler"}
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
        ("model_index.json", {"_class_name": "KolorsPipeline"}, "Kolors"),
        ("model_index.json", {"is_cosxl_edit": True}, "CosXL"),
        ("model_index.json", {"_class_name": "StableDiffusionUpscalePipeline"}, "an upscaler"),
    ],
)
def test_other_models_in_folders(checkpoint, tmp_path, path, changes, name):
    folder = copy_configs(checkpoint(SDXL), tmp_path, path, **changes)
    with pytest.raises(
        ValueError, match=f"this is {name}.*; only Stable Diffusion 1.x, 2.x and XL"
    ):
        load_model_config(folder)


RELATIVES = {
    "control_model.zero_convs.0.0.weight": "a ControlNet",
    "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": "Stable Video Diffusion",
    "edm_vpred.sigma_max": "CosXL",
    "edm_mean": "Playground v2.5",
    "noise_augmentor.betas": "Stable unCLIP",
    "cc_projection.weight": "Zero123",
    "model.diffusion_model.encoder_hid_proj.weight": "Kolors",
}
FAMILIES = {
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    "distilled_guidance_layer.in_proj.weight": "Chroma",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": "HunyuanVideo",
    "double_blocks.0.img_attn.norm.key_norm.scale": "FLUX",
    "model.diffusion_model.double_layers.0.attn.w1q.weight": "AuraFlow",
    "clip_txt_mapper.weight": "Stable Cascade",
    "mlp_t5.0.weight": "Hunyuan-DiT",
    "patchify_proj.weight": "LTX-Video",
    "txt_norm.weight": "Qwen-Image",
    "cap_embedder.1.weight": "Lumina 2 or Z-Image",
    "head.modulation": "Wan",
    "double_stream_blocks.0.block.attn1.to_q.weight": "HiDream",
    "transformer_blocks.0.attn.add_q_proj.weight": "Stable Diffusion 3 or another transformer",
}
PARTS = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "a LoRA: .*--lora",
    "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": "a LoRA: .*--lora",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": "a LoRA: .*--lora",
    "lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight": "a ControlNet-LLLite: such",
    "lora_controlnet": "a control-LoRA: such",
    "image_proj.proj.weight": "an IP-Adapter: such",
    "adapter.body.0.in_conv.weight": "a T2I-Adapter: such",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet: such",
    "emb_params": "a textual-inversion embedding: .*--embedding NAME=FILE",
    "time_embedding.linear_1.weight": "a UNet alone: .*--unet",
    "input_blocks.0.0.weight": "a UNet alone: .*--unet",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a text encoder alone: give a whole model",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "the text encoder T5: ",
    "vision_model.embeddings.class_embedding": "an image encoder: such",
    "model.1.sub.0.RDB1.conv1.0.weight": "a model that only enlarges pictures, such as ESRGAN:",
    "params_ema.conv_first.weight": "a model that only enlarges pictures",
}


@pytest.mark.parametrize("key", RELATIVES | FAMILIES)
def test_other_models_in_files(tmp_path, capsys, key):
    """The error is one line, with status 1."""
    file = original_layout.save({key: np.zeros(1)}, tmp_path / "x.safetensors")
    assert txt2image.main(["a photo", "--model", str(file)]) == 1
    model = (RELATIVES | FAMILIES)[key]
    line = f"error: {file}: this is {model}; only Stable Diffusion 1.x, 2.x and XL are run\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("key", PARTS)
def test_files_that_are_no_models(tmp_path, key):
    """Each is told with what it is, and what to do with it."""
    file = original_layout.save({key: np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"x.safetensors: this is {PARTS[key]}"):
        open_model(file)


@pytest.mark.parametrize("key", [*RELATIVES, "lora_unet_x.lora_down.weight", "txt_norm.weight"])
def test_keys_beside_a_whole_model(spoil_file, key):
    """What shows another model is refused; what may be left over from anything is not."""
    file = spoil_file(SD_1, lambda tensors: tensors.update({key: np.zeros(1)}))
    if key in RELATIVES:
        with pytest.raises(ValueError, match=f"this is {RELATIVES[key]}; only"):
            open_model(file)
    else:
        with pytest.warns(UserWarning, match=key):
            open_model(file)
