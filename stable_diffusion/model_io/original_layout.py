"""The layout in which CompVis and Stability published Stable Diffusion: one file for all networks.

These are its names, and what the models of a family have in common. `detect_networks` does the
rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .layouts import Layout

UNET_ROOT, VAE_ROOT = "model.diffusion_model.", "first_stage_model."
CLIP_ROOT, OPEN_CLIP_ROOT = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP_ROOT = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP_ROOT = "conditioner.embedders.1.model."

# The files' names for the parts of a network, and this package's.
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_PARTS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_PARTS = {
    "down": "down_blocks",
    "block": "resnets",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.query_proj",
    "mid.attn_1.k": "mid_block.attentions.0.key_proj",
    "mid.attn_1.v": "mid_block.attentions.0.value_proj",
    "mid.attn_1.proj_out": "mid_block.attentions.0.out_proj",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
}
OPEN_CLIP = Layout(
    renames={
        "positional_embedding": "position_embedding.weight",
        "transformer.resblocks": "layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn": "attention",
        "mlp.c_fc": "linear1",
        "mlp.c_proj": "linear2",
        "ln_final": "final_layer_norm",
        "text_projection": "text_projection.weight",
    },
    fused={
        f"attention.in_proj_{kind}": tuple(
            f"attention.{part}_proj.{kind}" for part in ("query", "key", "value")
        )
        for kind in ("weight", "bias")
    },
    transposed=frozenset({"text_projection.weight"}),
    unused=("logit_scale", "attn_mask"),  # for the training of CLIP
)


@dataclass(frozen=True)
class TextTower:
    """A text encoder in the files of a family."""

    root: str  # the start of its keys
    hidden_act: str
    pad_token: str  # fills short prompts
    is_open_clip: bool
    skips_last_layer: bool = False


@dataclass(frozen=True)
class Family:
    """What is the same for all models of a kind, but not visible in the shapes of the tensors."""

    name: str
    text_towers: Mapping[str, TextTower]  # by component
    scaling_factor: float  # of the VAE
    sample_size: int  # of the UNet, in latents
    v_sample_size: int  # the same, if it predicts the velocity
    heads: int | None  # of the UNet; None if it depends on the width
    prediction_type: str | None  # if the file does not say; None: the file or the user must
    timestep_spacing: str | None  # None for `DiffusionConfig`'s, as the published folders say none


FAMILIES = (
    Family(
        name="SD 1",
        text_towers={
            "text_encoder": TextTower(CLIP_ROOT, "quick_gelu", "<|endoftext|>", is_open_clip=False)
        },
        scaling_factor=0.18215,
        sample_size=64,
        v_sample_size=64,
        heads=8,
        prediction_type="epsilon",
        timestep_spacing=None,
    ),
    Family(
        name="SD 2",
        text_towers={
            "text_encoder": TextTower(
                OPEN_CLIP_ROOT, "gelu", "!", is_open_clip=True, skips_last_layer=True
            )
        },
        scaling_factor=0.18215,
        sample_size=64,
        v_sample_size=96,
        heads=None,
        prediction_type=None,
        timestep_spacing=None,
    ),
    Family(
        name="SDXL",
        text_towers={
            "text_encoder": TextTower(
                XL_CLIP_ROOT, "quick_gelu", "<|endoftext|>", is_open_clip=False
            ),
            "text_encoder_2": TextTower(XL_OPEN_CLIP_ROOT, "gelu", "!", is_open_clip=True),
        },
        scaling_factor=0.13025,
        sample_size=128,
        v_sample_size=128,
        heads=None,
        prediction_type="epsilon",
        timestep_spacing="leading",
    ),
)
