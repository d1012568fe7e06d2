"""What files are that are given as a LoRA, by the names in them and by their metadata."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

FOREIGN = "only LoRAs of Stable Diffusion 1.x, 2.x and XL are supported"


@dataclass(frozen=True)
class Kind:
    """What a file is, and what to do with it, for messages."""

    what: str
    advice: str = "such files are not supported"


CONTROL = "give it with --control MODEL=IMAGE"
_N = r"[._]\d+[._]"  # the number of a block

# Files that are no LoRA of a model, by a part of a key that only they have. The first match counts.
ADAPTERS: dict[str, str | Kind] = {
    r"^lllite_": "a ControlNet-LLLite",
    r"^lora_controlnet$": "a control-LoRA",
    r"controlnet.*lora|^lora_(controlnet|cnet)_": "a LoRA of a ControlNet",
    r"motion_modules|temporal_transformer": "a motion LoRA or motion module of AnimateDiff",
    r"^control_model\.|controlnet_|(^|\.)zero_convs\.|input_hint_block": Kind(
        "a ControlNet", CONTROL
    ),
    r"(^|\.)(conv_first|rdb\d|RDB\d)\.": Kind("an upscaler", "give it with --upscale"),
    r"^(adapter\.)?body\.\d+\.": Kind("a T2I-Adapter", CONTROL),
    r"to_[kv]_ip\.|^ip_adapter|^image_proj\.": "an IP-Adapter",
    r"^id_encoder\.": "a PhotoMaker",
    r"_custom_diffusion\.": "an adapter of Custom Diffusion",
    r"^(unet|text_encoder):\d+:(up|down)$": "a LoRA with the names of lora_diffusion",
    r"boft_": "a BOFT adapter",
    r"(^|[._])oft_": "an OFT adapter",
    r"(token|position)_embedding[._](lora_|hada_|lokr_|diff$)": "an adapter of embeddings",
    r"\.ia3_l": "an (IA)³ adapter with PEFT's names",
    r"\.vera_lambda_": "a VeRA adapter",
    r"\.hra_": "an HRA adapter",
    r"\.lora_E": "an AdaLoRA adapter",
    r"\.lambda_layer$": "a T-LoRA adapter",
    r"\.(bone|miss)_": "a MiSS (Bone) adapter",
    r"fourierft_": "a FourierFT adapter",
    r"randlora_": "a RandLoRA adapter",
}
# The models that other LoRAs are for, by a part of a key. The first match counts.
MODELS = {
    r"lora_prior_|clip_txt_mapper|channelwise": "Stable Cascade",
    r"distilled_guidance_layer": "Chroma",
    r"(double|single)_stream_modulation": "FLUX.2",
    r"individual_token_refiner|token_refiner[._]refiner_blocks|img_mlp[._]fc1": "HunyuanVideo",
    rf"(double|single)_blocks{_N}|single_transformer_blocks{_N}": "FLUX",
    rf"transformer_blocks{_N}(img|txt)_(mlp|mod)": "Qwen-Image",
    rf"(double|single)_layers{_N}|joint_transformer_blocks": "AuraFlow",
    r"joint_blocks": "Stable Diffusion 3",
    r"attn[._]add_[qkv]_proj|ff_context|lora_te3_|t5xxl": "Stable Diffusion 3 or FLUX",
    rf"(layers|(noise|context)_refiner){_N}(attention|feed_forward)[._]": "Lumina 2 or Z-Image",
    rf"blocks{_N}attn[12][._](Wqkv|q_proj|kv_proj|out_proj)": "Hunyuan-DiT",
    r"(double|single)_stream_blocks": "HiDream",
    r"adaln_modulation": "Cosmos or Anima",
    rf"blocks{_N}cross_attn[._]kv_linear": "PixArt or Sana",
    rf"blocks{_N}(self_attn|cross_attn)[._]": "Wan or another video model",
    r"encoder_hid_proj": "Kolors",
    r"(^|model\.)layers\.\d+\.(self_attn|mlp)\.": "a language model",
    r"^((lora|lycoris)_)?transformer[._]|^(\w*model\.)*transformer_blocks\.|adaln_single": (
        "a transformer, such as PixArt, Sana or LTX-Video"
    ),
}
# By a part of `modelspec.architecture` or `ss_base_model_version`, in lower case. The order counts.
ARCHITECTURES = {
    "flux-2": "FLUX.2",
    "flux2": "FLUX.2",
    "chroma": "Chroma",
    "flux": "FLUX",
    "stable-diffusion-3": "Stable Diffusion 3",
    "sd3": "Stable Diffusion 3",
    "cascade": "Stable Cascade",
    "wurstchen": "Stable Cascade",
    "kolors": "Kolors",
    "hunyuan-dit": "Hunyuan-DiT",
    "hydit": "Hunyuan-DiT",
    "hunyuan": "HunyuanVideo or HunyuanImage",
    "pixart": "PixArt",
    "sana": "Sana",
    "lumina": "Lumina 2",
    "zimage": "Z-Image",
    "z-image": "Z-Image",
    "qwen": "Qwen-Image",
    "auraflow": "AuraFlow",
    "hidream": "HiDream",
    "ltx": "LTX-Video",
    "wan": "Wan",
    "anima": "Anima",
}
# Files of weights, by patterns of which each must match a key: what they are, and what takes them.
WEIGHTS = {
    (r"^model\.diffusion_model\.", r"^(first_stage_model|cond_stage_model|conditioner)\."): Kind(
        "a whole model", "give it with --model"
    ),
    (r"(^|\.)(time_embedding\.linear_1|time_embed\.0)\.weight$",): Kind(
        "a UNet", "give it with --unet"
    ),
    (r"^(first_stage_model\.)?decoder\.(conv_in|layers\.\d+\.conv\.0)\.weight$",): Kind(
        "a VAE", "give it with --vae"
    ),
    (r"^\d+\.conv\.0\.weight$",): Kind("a VAE", "give it with --vae"),  # TAESD, as published
    (r"^(vision_model|visual)\.",): Kind("an image encoder"),
    (r"encoder\.layers\.\d+\.self_attn\.q_proj\.weight$",): Kind("a text encoder"),
    (r"(^|\.)resblocks\.\d+\.attn\.in_proj_weight$",): Kind("a text encoder"),
}
_EMBEDDING = Kind("an embedding", "give it as --embedding NAME=FILE")
_EMBEDDING_KEYS = {"emb_params", "clip_l", "clip_g", "string_to_param.*"}


def identify_weights(shapes: Mapping[str, tuple[int, ...]]) -> Kind | None:
    """Return what a file is whose tensors are weights or embeddings, not changes of weights."""
    keys = shapes.keys()
    are_vectors = bool(keys) and all(len(shape) in (1, 2) for shape in shapes.values())
    # diffusers' embeddings have one tensor, whose key is the word.
    if are_vectors and (keys <= _EMBEDDING_KEYS or (len(keys) == 1 and not find(r"\.", keys))):
        return _EMBEDDING
    for patterns, kind in WEIGHTS.items():
        if all(find(pattern, keys) for pattern in patterns):
            return kind
    return None


def identify_adapter(keys: Collection[str]) -> Kind | None:
    """Return what a file is that is no LoRA of a model, or None."""
    found = next((kind for pattern, kind in ADAPTERS.items() if find(pattern, keys)), None)
    return Kind(found) if isinstance(found, str) else found


def identify_model(keys: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """Return the model that a LoRA is for, if it is none of Stable Diffusion 1.x, 2.x and XL."""
    said = " ".join(
        metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")
    ).lower()
    named = next((model for part, model in ARCHITECTURES.items() if part in said), None)
    return named or next((model for part, model in MODELS.items() if find(part, keys)), None)


def find(pattern: str, keys: Collection[str]) -> bool:
    """Return whether the pattern matches a part of any key."""
    compiled = re.compile(pattern)
    return any(compiled.search(key) for key in keys)
