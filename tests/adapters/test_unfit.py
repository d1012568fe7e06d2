"""What does not fit is told as what it is."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stable_diffusion.adapters.unfit import (
    SD_1,
    SD_1_OR_2,
    SD_2,
    SDXL,
    explain_unfit,
    refuse_other_formats,
)
from stable_diffusion.config.networks import UNetConfig

FILE = Path("file.safetensors")
ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_{}_attn2_to_k"
LEVEL_0 = ATTENTION.replace("down_blocks_1", "down_blocks_0").format(0)
PROJECTION = "lora_unet_down_blocks_0_attentions_0_proj_in"
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
      "projection_class_embeddings_input_dim": 64}  # fmt: skip
# Of the sizes of the published models, and tiny ones, of which only the structure can be told.
MODELS = {
    "sd-1": UNetConfig(cross_attention_dim=768),
    "sd-2": UNetConfig(cross_attention_dim=1024, use_linear_projection=True),
    "sdxl": UNetConfig(cross_attention_dim=2048, use_linear_projection=True, **XL),
    "tiny sd-1": UNetConfig(cross_attention_dim=32),
    "tiny sd-2": UNetConfig(cross_attention_dim=48, use_linear_projection=True),
    "tiny sdxl": UNetConfig(cross_attention_dim=96, use_linear_projection=True, **XL),
}
OWN = {name: {"1": SD_1, "2": SD_2, "l": SDXL}[name[-1]] for name in MODELS}

ADVICE = {
    "an embedding": "give it as --embedding NAME=FILE",
    "a whole model": "give it with --model",
    "a UNet": "give it with --unet",
    "a VAE": "give it with --vae",
    "a ControlNet": "give it with --control MODEL=IMAGE",
    "a T2I-Adapter": "give it with --control MODEL=IMAGE",
    "an upscaler": "give it with --upscale",
}


def explain(
    shapes: dict, model: str = "sd-1", metadata: dict | None = None, unexpected: tuple = ()
) -> str | None:
    header = SimpleNamespace(shapes=shapes, metadata=metadata or {})
    return explain_unfit(FILE, header, {"unet": SimpleNamespace(config=MODELS[model])}, unexpected)


def pair(name: str, width: int = 32, dimensions: int = 2) -> dict:
    ones = (1,) * (dimensions - 2)
    shapes = {"lora_down.weight": (4, width, *ones), "lora_up.weight": (8, 4, *ones)}
    return {f"{name}.{part}": shape for part, shape in shapes.items()}


def kron(width: int) -> dict:
    name = ATTENTION.format(0)
    return {
        f"{name}.lokr_w1": (4, 4),
        f"{name}.lokr_w2_a": (2, 2),
        f"{name}.lokr_w2_b": (2, width // 4),
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("shapes", "metadata", "kind"),
    [
        # by the width of the text embeddings
        (pair(ATTENTION.format(0), 768), {}, SD_1),
        (pair(ATTENTION.format(0), 1024), {"ss_base_model_version": "sd_v1"}, SD_2),
        (pair("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", 2048), {}, SDXL),
        ({f"{ATTENTION.format(0)}.hada_w1_b": (4, 2048)}, {}, SDXL),
        ({f"{ATTENTION.format(0)}.diff": (320, 768)}, {}, SD_1),
        (kron(1024), {}, SD_2),
        # by structure
        (pair(ATTENTION.format(1)), {}, SDXL),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), {}, SDXL),
        (pair("clip_g.text_model.encoder.layers.0.mlp.fc1"), {}, SDXL),
        (pair("diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q"), {}, SDXL),
        (pair("lora_unet_add_embedding_linear_1"), {}, SDXL),
        (pair(PROJECTION, 32, 4), {}, SD_1),
        (pair(PROJECTION, 32, 2), {}, SD_2),
        (pair(LEVEL_0.replace("attn2", "attn1")), {}, SD_1_OR_2),
        # by metadata
        (pair("lora_unet_x"), {"ss_base_model_version": "sdxl_base_v1-0"}, SDXL),
        (pair("lora_unet_x"), {"ss_base_model_version": "sd_v1"}, SD_1),
        (pair("lora_unet_x"), {"ss_base_model_version": "sd_v2"}, SD_2),
        (pair("lora_unet_x"), {"ss_base_model_version": "sd_1.5"}, SD_1),
        (pair("lora_unet_x"), {"ss_v2": "True"}, SD_2),
        (pair("lora_unet_x"), {"modelspec.architecture": "stable-diffusion-v1/lora"}, SD_1),
        (pair("lora_unet_x"), {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, SD_2),
        (pair("lora_unet_x"), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, SDXL),
        (pair(LEVEL_0.replace("attn2", "attn1")), {"ss_base_model_version": "sd_v2"}, SD_2),
    ],
)  # fmt: skip
def test_every_pair_of_models(shapes, metadata, kind, model):
    """A file of the model's own kind gets no such message, whatever else is wrong with it."""
    message = explain(shapes, model, metadata) or ""
    own = OWN[model]
    is_other = kind != own and not (kind == SD_1_OR_2 and own != SDXL)
    expected = f"{FILE} is a LoRA for {kind}, and this model is {own}: use a LoRA for {own}"
    assert (message == expected) is is_other
    assert "and this model is" not in message or is_other


def test_another_width_of_the_text():
    message = explain(pair(ATTENTION.format(0), 48), "tiny sd-1")
    assert (
        "text embeddings have 48 numbers; those of this model, Stable Diffusion 1.x, have 32"
        in message
    )
    assert explain(pair(ATTENTION.format(0), 32), "tiny sd-1") is None


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight", "FLUX"),
        ("lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight", "HunyuanVideo"),
        ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight", "Stable Diffusion 3 or"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "Stable Diffusion 3"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", "Stable Diffusion 3"),
        ("lora_prior_unet_down_blocks_0_1_channelwise_0.lora_down.weight", "Stable Cascade"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a transformer, such as Pix"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("lora_unet_blocks_0_cross_attn_k.lora_down.weight", "Wan"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "Lumina 2 or Z-Image"),
        ("lora_unet_distilled_guidance_layer_layers_0.lora_down.weight", "Chroma"),
        ("lora_unet_double_layers_0_attn_w1q.lora_down.weight", "AuraFlow"),
        ("lora_unet_blocks_0_attn1_Wqkv.lora_down.weight", "Hunyuan-DiT"),
        ("unet.encoder_hid_proj.lora_A.weight", "Kolors"),
        ("diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight", "HiDream"),
        ("diffusion_model.blocks.0.adaln_modulation_mlp.1.lora_A.weight", "Cosmos or Anima"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "a language model"),
        ("base_model.model.adaln_single.linear.lora_A.weight", "a transformer, such as PixArt"),
        ("lycoris_transformer_blocks_0_attn1_to_q.lokr_w1", "a transformer, such as PixArt"),
    ],
)  # fmt: skip
def test_loras_of_other_models(key, what):
    message = explain({key: (4, 64)})
    assert message.startswith(f"{FILE} is a LoRA for {what}")
    assert message.endswith("only LoRAs of Stable Diffusion 1.x, 2.x and XL are supported")


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("flux-1-dev/lora", "FLUX"),
        ("Flux.1-AE", "FLUX"),
        ("flux-2-dev", "FLUX.2"),
        ("stable-diffusion-3-medium/lora", "Stable Diffusion 3"),
        ("hunyuan-video", "HunyuanVideo"),
        ("wan2.1-t2v", "Wan"),
        ("z-image-turbo/lora", "Z-Image"),
        ("qwen-image", "Qwen-Image"),
        ("chroma", "Chroma"),
        ("lumina-2/lora", "Lumina 2"),
    ],
)
def test_other_models_by_metadata(architecture, what):
    message = explain(
        {"x.lora_down.weight": (4, 64)}, "sdxl", {"modelspec.architecture": architecture}
    )
    assert message.startswith(f"{FILE} is a LoRA for {what}")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ("lllite_unet_mid_block_attentions_0_attn1_to_q.down.0", "a ControlNet-LLLite"),
        ("lora_controlnet input_blocks.0.0.weight", "a control-LoRA"),
        ("controlnet_down_blocks.0.lora_A.weight", "a LoRA of a ControlNet"),
        ("control_model.zero_convs.0.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("zero_convs.0.0.weight", "a ControlNet"),
        ("adapter.body.0.resnets.0.block1.weight", "a T2I-Adapter"),
        ("body.0.in_conv.weight", "a T2I-Adapter"),
        ("ip_adapter.1.to_k_ip.weight image_proj.norm.weight", "an IP-Adapter"),
        ("down_blocks.0.motion_modules.0.to_q.lora_A.weight", "a motion LoRA or motion module"),
        ("lora_unet_x.oft_blocks lora_unet_x.alpha", "an OFT adapter"),
        ("oft_unet_x.oft_blocks", "an OFT adapter"),
        ("base_model.model.x.boft_R", "a BOFT adapter"),
        ("base_model.model.x.ia3_l", "an (IA)³ adapter"),
        ("clip_l.text_model.embeddings.token_embedding.diff", "an adapter of embeddings"),
        ("unet:0:up unet:0:down", "a LoRA with the names of lora_diffusion"),
        ("down.attn2.processor.to_k_custom_diffusion.weight", "an adapter of Custom Diffusion"),
        ("emb_params", "an embedding"),
        ("clip_l clip_g", "an embedding"),
        ("<cat-toy>", "an embedding"),
        ("model.diffusion_model.a first_stage_model.decoder.conv_in.weight", "a whole model"),
        ("model.diffusion_model.time_embed.0.weight", "a UNet"),
        ("time_embedding.linear_1.weight conv_in.weight", "a UNet"),
        ("decoder.conv_in.weight encoder.conv_in.weight", "a VAE"),
        ("decoder.layers.0.weight decoder.layers.2.conv.0.weight", "a VAE"),
        ("1.weight 3.conv.0.weight", "a VAE"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "a text encoder"),
        ("transformer.resblocks.0.attn.in_proj_weight", "a text encoder"),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "an image encoder"),
        ("conv_first.weight body.0.rdb1.conv1.weight", "an upscaler"),
        ("lycoris_x.q_layer.weight lycoris_x.p_layer.weight lycoris_x.lambda_layer", "a T-LoRA"),
    ],
)  # fmt: skip
def test_files_that_are_no_lora(keys, what):
    message = explain(dict.fromkeys(keys.split(), (2, 8)), "sdxl")
    assert message.startswith(f"{FILE} is {what}") and "not a LoRA of a model: " in message
    assert message.endswith(ADVICE.get(what, "such files are not supported"))


def test_layers_that_a_distilled_model_does_not_have():
    shapes = pair(ATTENTION.replace("attn2", "attn1").format(9))
    message = explain(shapes, "sdxl", {}, tuple(shapes))
    assert "is a LoRA for a UNet with other blocks: 2 of its 2 tensors are for layers" in message
    assert explain(shapes, "sdxl", {}, (*shapes, "unknown.lora_A.weight")) is None


@pytest.mark.parametrize("model", MODELS)
def test_unknown_files(model):
    for shapes in ({}, {"x.y": (3,)}, {"lora_unet_x.alpha": ()}, pair("x")):
        assert explain(shapes, model) is None


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04", "is a pickle, not a safetensors file: pickles are never loaded; if you tr"),
        (b"\x80\x02}q", "is a pickle, not a safetensors file: .*save_file"),
        (b"\x80\x05\x95", "is a pickle"),
        (b"GGUF\x03", "is a GGUF file"),
        (b"SQLite format 3\0", "is a file of Draw Things"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>", "is a web page, not a safetensors file: download the file again"),
    ],
)
def test_other_formats(tmp_path, start, message):
    file = tmp_path / "lora.safetensors"
    file.write_bytes(start + b"\0" * 100)
    with pytest.raises(ValueError, match=message) as caught:
        refuse_other_formats(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    file.write_bytes((0x280).to_bytes(8, "little") + b"{}" + start)  # begins as pickles may
    refuse_other_formats(file)
