"""The configs of the real models' networks, to make networks of real size without any file.

The sizes that diffusers and transformers need, too, are dictionaries by their names.
"""

from typing import Any, NamedTuple

from stable_diffusion.config.networks import AutoencoderConfig, CLIPTextConfig, UNetConfig


class RealModel(NamedTuple):
    """The configs of a model's networks.

    Attributes:
        title: the name of the model in tables.
        text_encoders: one config, or two for SDXL, in the order of its pipeline.
        size: width and height, in pixels, of the pictures that the model was trained on.
    """

    title: str
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text_encoders: tuple[CLIPTextConfig, ...]
    size: int


Sizes = dict[str, Any]

AUTOENCODER: Sizes = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SDXL_SCALING_FACTOR = 0.13025  # of the latents
SD_1_UNET: Sizes = {"sample_size": 64, "cross_attention_dim": 768}
SD_2_UNET: Sizes = {
    "sample_size": 64,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_UNET: Sizes = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# OpenAI's CLIP ViT-L/14, which SD 1.x and SDXL read with.
CLIP_L: Sizes = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
# OpenCLIP's ViT-H/14 without its last layer, of SD 2.x.
CLIP_H: Sizes = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
# OpenCLIP's ViT-bigG/14, the second text encoder of SDXL.
CLIP_BIG_G: Sizes = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

MODELS = {
    "sd-1.5": RealModel(
        title="SD 1.5",
        unet=UNetConfig(**SD_1_UNET),
        autoencoder=AutoencoderConfig(**AUTOENCODER),
        text_encoders=(CLIPTextConfig(**CLIP_L),),
        size=512,
    ),
    "sd-2.1": RealModel(  # "base"; the model for 768×768 has the same sizes
        title="SD 2.1",
        unet=UNetConfig(**SD_2_UNET),
        autoencoder=AutoencoderConfig(**AUTOENCODER),
        text_encoders=(CLIPTextConfig(**CLIP_H),),
        size=512,
    ),
    "sdxl": RealModel(
        title="SDXL",
        unet=UNetConfig(**SDXL_UNET, sample_size=128),
        autoencoder=AutoencoderConfig(**AUTOENCODER, scaling_factor=SDXL_SCALING_FACTOR),
        text_encoders=(
            CLIPTextConfig(**CLIP_L),
            CLIPTextConfig(**CLIP_BIG_G, architectures=("CLIPTextModelWithProjection",)),
        ),
        size=1024,
    ),
}
