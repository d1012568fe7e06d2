"""What files are that hold no Stable Diffusion model, by a part of a key that only such files have.

The tables have regular expressions; `^` is the start of a key, and the first match counts.
"""

# Models with a UNet in the layout of Stable Diffusion, which nevertheless are others.
RELATIVES = {
    r"^control_model\.": "a ControlNet, which goes beside a model (--control)",
    r"motion_modules\.": "a motion module of AnimateDiff",
    r"\.time_stack\.|\.time_mixer\.|temporal_transformer_blocks\.": "Stable Video Diffusion",
    r"^conditioner\.embedders\.\d\.open_clip\.": "Stable Video Diffusion",
    r"^edm_vpred\.": "CosXL",
    r"^edm_mean$": "Playground v2.5",
    r"^noise_augmentor\.": "Stable unCLIP",
    r"^cc_projection\.": "Zero123",
    r"^low_scale_model\.": "an upscaler",
    r"add_embedding\.image_(norm|proj)\.": "Kandinsky",
    r"add_embedding\.pool\.|encoder_pooling\.": "DeepFloyd IF",
    r"encoder_hid_proj\.": "Kolors",
}

# Other models. Those whose names are contained in the names of others come last.
FAMILIES = {
    r"joint_blocks\.": "Stable Diffusion 3",
    r"distilled_guidance_layer\.": "Chroma",
    r"individual_token_refiner\.|token_refiner\.refiner_blocks\.": "HunyuanVideo",
    r"single_stream_modulation\.": "FLUX.2",
    r"double_stream_blocks\.|caption_projection\.0\.linear\.": "HiDream",
    r"double_blocks\.|single_transformer_blocks\.": "FLUX",
    r"double_layers\.|joint_transformer_blocks\.": "AuraFlow",
    r"clip_txt_mapper\.|clip_mapper\.|\.channelwise\.|effnet_mapper\.": "Stable Cascade",
    r"mlp_t5\.0\.|text_embedding_padding": "Hunyuan-DiT",
    r"t5_yproj\.": "Mochi",
    r"patchify_proj\.": "LTX-Video",
    r"txt_norm\.": "Qwen-Image",
    r"time_caption_embed\.": "OmniGen",
    r"cap_embedder\.": "Lumina 2 or Z-Image",
    r"cross_attn\.kv_linear\.|adaln_single\.": "Sana or PixArt",
    r"head\.modulation|blocks\.\d+\.cross_attn\.norm_[qk]\.": "Wan",
    r"x_embedder\.proj\.1\.|extra_pos_embedder\.": "Cosmos",
    r"rotary_pos_emb\.inv_freq": "Stable Audio",
    r"patch_embed\.text_proj\.": "CogVideoX",
    r"attn\.add_[qkv]_proj\.": "Stable Diffusion 3 or another transformer",
}

UNET_ALONE = (
    r"^((model\.)?diffusion_model\.|unet\.|(model\.){1,2}|net\.)?"
    r"(time_embedding\.linear_1|input_blocks\.0\.0)\."
)
CONTROL_ADVICE = "give it beside a model (--control)"
# Files that are no model by themselves: what they are, and what to do.
PARTS = {
    r"^lllite_": ("a ControlNet-LLLite", "such files are not supported"),
    r"^lora_controlnet$": ("a control-LoRA", "such files are not supported"),
    r"to_[kv]_ip\.|^ip_adapter\.|^image_proj\.": (
        "an IP-Adapter",
        "such files are not supported",
    ),
    r"^(adapter\.)?body\.\d+\.(in_conv|block1|resnets)\.": (
        "a T2I-Adapter",
        CONTROL_ADVICE,
    ),
    r"controlnet_(cond_embedding|down_blocks)\.|zero_convs\.|input_hint_block\.": (
        "a ControlNet",
        CONTROL_ADVICE,
    ),
    r"string_to_param|^emb_params$|^clip_[lg]$": (
        "a textual-inversion embedding",
        "give it beside a model (--embedding NAME=FILE)",
    ),
    r"(^|[._])(lora|hada|lokr|oft|boft)_|\.lora\.|dora_scale|lora_linear_layer": (
        "a LoRA",
        "give it beside a model (--lora)",
    ),
    UNET_ALONE: (
        "a UNet alone",
        "give it beside a model (--unet)",
    ),
    r"^(transformer\.)?text_model\.|^encoder\.layers\.\d+\.self_attn\.|^transformer\.resblocks\.": (
        "a text encoder alone",
        "give a whole model",
    ),
    r"^(vision_model|visual)\.": ("an image encoder", "such files are not supported"),
    r"^shared\.weight$|^encoder\.block\.\d+\.layer\.": (
        "the text encoder T5",
        "Stable Diffusion 1.x, 2.x and XL have none",
    ),
    r"^model\.layers\.\d+\.self_attn\.": ("a language model", "give a model that draws"),
    r"^model\.(0\.weight|1\.sub\.)|^(params(_ema)?\.)?(conv_first|body\.0\.rdb1)\.": (
        "a model that only enlarges pictures, such as ESRGAN",
        "such files are not supported",
    ),
}
