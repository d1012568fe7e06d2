"""The layout in which CompVis and Stability published Stable Diffusion: one file for all networks.

These are its names, and what the models of a family have in common. The modules `detect_…` do the
rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .layouts import TEXT_ENCODER, Layout

UNET_ROOT, VAE_ROOT = "model.diffusion_model.", "first_stage_model."
# The starts of the text encoder's keys, and of SDXL's two: as CompVis published SD 1 and 2, as
# Stability's later programs (SGM) wrote SDXL and SD 2 Turbo, and as ComfyUI names them.
TEXT_ROOTS = (
    *("cond_stage_model.", "conditioner.embedders.0."),
    *("text_encoders.clip_l.", "text_encoders.clip_h."),
)
XL_TEXT_ROOTS = (
    ("conditioner.embedders.0.", "conditioner.embedders.1."),
    ("text_encoders.clip_l.", "text_encoders.clip_g."),
)

# Starts of keys that programs leave in or beside a network: the state of the training, averaged
# weights, the noise schedule, and markers.
LEFTOVERS = (
    *("model_ema.", "ema.", "loss.", "discriminator.", "denoiser.", "embedding_manager."),
    *("optimizer", "lr_scheduler", "state", "epoch", "iteration", "global_step", "callbacks"),
    *("alphas_cumprod", "betas", "log_one_minus_alphas_cumprod", "posterior_", "sqrt_", "logvar"),
    *("lvlb_weights", "scale_factor", "v_pred", "ztsnr"),
)

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
# The attention of a VAE as later programs name it: diffusers of 2023, and before.
VAE_OLD_PARTS = {
    f"mid.attn_1.{theirs}": f"mid.attn_1.{ours}"
    for ours, names in {
        "norm": ("group_norm",),
        "q": ("to_q", "query"),
        "k": ("to_k", "key"),
        "v": ("to_v", "value"),
        "proj_out": ("to_out.0", "proj_attn"),
    }.items()
    for theirs in names
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
    buffers=frozenset({"logit_scale", "attn_mask"}),
    # CLIP's other half, and foreign buffers.
    leftovers=("visual.", "transformer.text_model.", *LEFTOVERS),
)
# The same under the names of transformers, which nest the network in `text_model`.
CLIP = replace(
    TEXT_ENCODER,
    renames={
        f"text_model.{theirs}" if theirs.startswith(("embeddings.", "encoder.")) else theirs: ours
        for theirs, ours in TEXT_ENCODER.renames.items()
    }
    | {"text_model.final_layer_norm": "final_layer_norm"},
    prefix="",
    leftovers=("vision_model.", "visual_projection.", *LEFTOVERS),
)


@dataclass(frozen=True)
class TextTower:
    """A text encoder of a family."""

    hidden_act: str
    pad_token: str  # fills short prompts
    skips_last_layer: bool = False
    has_projection: bool = False


@dataclass(frozen=True)
class Family:
    """What is the same for all models of a kind, but not visible in the shapes of the tensors."""

    name: str
    text_towers: Mapping[str, TextTower]  # by component
    scaling_factor: float  # of the VAE
    sample_size: int  # of the UNet, in latents
    v_sample_size: int  # the same, if it predicts the velocity
    heads: int | None  # of the UNet; None if it depends on the width
    prediction_type: str | None  # if the file does not say; None if its weights have to
    timestep_spacing: str | None  # None for `DiffusionConfig`'s, as the published folders say none


SD_1 = Family(
    name="SD 1",
    text_towers={"text_encoder": TextTower("quick_gelu", "<|endoftext|>")},
    scaling_factor=0.18215,
    sample_size=64,
    v_sample_size=64,
    heads=8,
    prediction_type="epsilon",
    timestep_spacing=None,
)
SD_2 = Family(
    name="SD 2",
    text_towers={"text_encoder": TextTower("gelu", "!", skips_last_layer=True)},
    scaling_factor=0.18215,
    sample_size=64,
    v_sample_size=96,
    heads=None,
    prediction_type=None,
    timestep_spacing=None,
)
SDXL = Family(
    name="SDXL",
    text_towers={
        "text_encoder": TextTower("quick_gelu", "<|endoftext|>"),
        "text_encoder_2": TextTower("gelu", "!", has_projection=True),
    },
    scaling_factor=0.13025,
    sample_size=128,
    v_sample_size=128,
    heads=None,
    prediction_type="epsilon",
    timestep_spacing="leading",
)
