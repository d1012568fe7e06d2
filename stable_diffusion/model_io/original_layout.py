"""The layout in which Stable Diffusion was first published, by CompVis and Stability: one file.

Such a file has weights only. What the config files of a folder say is told here from the names and
shapes of the tensors; what those cannot tell is the same for all models of a family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .layouts import AUTOENCODER, TEXT_ENCODER, UNET, Layout
from .safetensors_file import Header

HEAD_WIDTH = 64  # of the text encoders, and of the UNets of SD 2.x and XL

UNET_ROOT, VAE_ROOT = "model.diffusion_model.", "first_stage_model."
CLIP_ROOT, OPEN_CLIP_ROOT = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP_ROOT = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP_ROOT = "conditioner.embedders.1.model."

# What the files call the parts of a network → what this package calls them.
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
    unused=("logit_scale", "attn_mask"),  # of CLIP's training
)


@dataclass(frozen=True)
class TextTower:
    """A text encoder in the files of a family."""

    root: str  # what its keys begin with
    hidden_act: str
    pad_token: str  # what its tokenizer pads with
    is_open_clip: bool
    skips_last_layer: bool = False


@dataclass(frozen=True)
class Family:
    """What the shapes do not tell."""

    name: str
    text_towers: Mapping[str, TextTower]  # by component
    scaling_factor: float  # of the VAE
    sample_size: int  # of the UNet, in latents
    v_sample_size: int  # the same where it predicts the velocity
    heads: int | None  # of the UNet; None where their width is `HEAD_WIDTH`
    prediction_type: str | None  # where the file is silent; None: it, or the user, has to say
    timestep_spacing: str | None  # None as in the published folders, which are silent


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

# Layers of SD 2's text encoder that are used. The published files have one more; those made from
# a folder of diffusers have not.
SD_2_LAYERS = 23
TIME_IDS = 6  # of SDXL: original size, crop, target size


def tell_text_encoder(header: Header, tower: TextTower) -> tuple[dict[str, Any], Layout]:
    """The config of a text encoder, and how the file names its tensors.

    Raises:
        ValueError: a tensor that tells the architecture is missing.
    """
    if tower.is_open_clip:
        layout = replace(OPEN_CLIP, root=tower.root)
        if header.has(f"{tower.root}text_projection.weight"):  # as a linear layer has it
            renames = {k: v for k, v in layout.renames.items() if k != "text_projection"}
            layout = replace(layout, renames=renames, transposed=frozenset())
    else:  # very old files lack the second part
        inner = "text_model." if header.has(f"{tower.root}text_model.") else ""
        layout = replace(TEXT_ENCODER, root=tower.root + inner, prefix="")
    n_layers = header.count(layout.key("layers.{}.layer_norm1.weight"))
    if tower.skips_last_layer:
        n_layers = n_layers if n_layers == SD_2_LAYERS else n_layers - 1
        unused = (*layout.unused, f"transformer.resblocks.{n_layers}.", "text_projection")
        layout = replace(layout, unused=unused)

    def size(parameter: str, axis: int) -> int:
        return header.size(layout.key(parameter), axis)

    config = {
        "hidden_act": tower.hidden_act,
        "vocab_size": size("token_embedding.weight", 0),
        "hidden_size": (width := size("token_embedding.weight", 1)),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": size("position_embedding.weight", 0),
        "intermediate_size": size("layers.0.linear1.weight", 0),
        "num_hidden_layers": n_layers,
    }
    if tower.is_open_clip and not tower.skips_last_layer:
        config["architectures"] = ["CLIPTextModelWithProjection"]
        config["projection_dim"] = size("text_projection.weight", 1 if layout.transposed else 0)
    return config, layout


def tell_unet(
    header: Header, family: Family, text_configs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], Layout]:
    """The same for the UNet; `text_configs` are those of the text encoders, by component.

    Raises:
        ValueError: as `tell_text_encoder`.
    """
    renames = {**UNET.renames, **UNET_PARTS}
    for i, place in enumerate(("middle_block.0", "middle_block.2")):
        renames |= _resnet(place, f"mid_block.resnets.{i}")

    def depth(place: str) -> int:
        return header.count(f"{UNET_ROOT}{place}.transformer_blocks.{{}}.norm1.weight")

    channels, layers, depths = [0], [0], [0]  # of each level
    n = 1
    while header.has(f"{UNET_ROOT}{(place := f'input_blocks.{n}')}."):
        ours = f"down_blocks.{len(layers) - 1}"
        if header.has(f"{UNET_ROOT}{place}.0.op."):  # halves the size: a level ends
            renames[f"{place}.0.op"] = f"{ours}.downsample.conv"
            for values in (channels, layers, depths):
                values.append(0)
        else:
            renames |= _resnet(f"{place}.0", f"{ours}.resnets.{layers[-1]}")
            renames[f"{place}.1"] = f"{ours}.attentions.{layers[-1]}"
            channels[-1] = header.size(f"{UNET_ROOT}{place}.0.out_layers.3.weight", 0)
            depths[-1] = depth(f"{place}.1")
            layers[-1] += 1
        n += 1
    n = 0
    for up, level in enumerate(reversed(range(len(layers)))):
        for layer in range(layers[level] + 1):
            place, ours = f"output_blocks.{n}", f"up_blocks.{up}"
            renames |= _resnet(f"{place}.0", f"{ours}.resnets.{layer}")
            renames[f"{place}.1"] = f"{ours}.attentions.{layer}"
            n += 1
        if level > 0:  # the last layer of the level doubles the size
            renames[f"{place}.{2 if depths[level] else 1}.conv"] = f"{ours}.upsample.conv"
    attends = [depth > 0 for depth in depths]
    if not attends[-1]:
        depths[-1] = depth("middle_block.1")  # the bottom of the U attends on its own

    context = header.size(
        f"{UNET_ROOT}middle_block.1.transformer_blocks.0.attn2.to_k.weight", axis=1
    )
    config = {
        "in_channels": header.size(f"{UNET_ROOT}input_blocks.0.0.weight", 1),
        "out_channels": header.size(f"{UNET_ROOT}out.2.weight", 0),
        "sample_size": family.sample_size,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "transformer_layers_per_block": depths,
        "num_attention_heads": family.heads or [width // HEAD_WIDTH for width in channels],
        "cross_attention_dim": context,
    }
    if "text_encoder_2" in text_configs:
        n_inputs = header.size(f"{UNET_ROOT}label_emb.0.0.weight", 1)
        n_text = text_configs["text_encoder_2"]["projection_dim"]
        if (n_inputs - n_text) % TIME_IDS:
            raise ValueError(
                f"{header.name}: label_emb takes {n_inputs} numbers, which are not the {n_text} of "
                f"the text and those of {TIME_IDS} sizes"
            )
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (n_inputs - n_text) // TIME_IDS,
            "projection_class_embeddings_input_dim": n_inputs,
        }
    return config, Layout(renames, root=UNET_ROOT)


def tell_vae(header: Header, root: str) -> tuple[dict[str, Any], Layout]:
    """The same for a VAE, whose keys begin with `root`; also one with the names of diffusers.

    Raises: as `tell_text_encoder`.
    """
    if header.has(f"{root}encoder.down_blocks."):
        layout = replace(AUTOENCODER, root=root)
    else:
        n_levels = header.count(f"{root}decoder.up.{{}}.block.0.norm1.weight")
        ups = {f"up.{i}": f"up_blocks.{n_levels - 1 - i}" for i in range(n_levels)}
        layout = Layout({**VAE_PARTS, **ups}, root=root, unused=("loss.", "model_ema."))

    def count(parameter: str) -> int:
        return header.count(layout.key(parameter))

    def size(parameter: str, axis: int) -> int:
        return header.size(layout.key(parameter), axis)

    n_levels = count("encoder.down_blocks.{}.resnets.0.norm1.weight")
    return {
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "latent_channels": size("decoder.conv_in.weight", 1),
        "block_out_channels": [
            size(f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 0)
            for level in range(n_levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * n_levels,
        "up_block_types": ["UpDecoderBlock2D"] * n_levels,
        "layers_per_block": count("encoder.down_blocks.0.resnets.{}.norm1.weight"),
        "use_quant_conv": header.has(f"{root}quant_conv."),
        "use_post_quant_conv": header.has(f"{root}post_quant_conv."),
        "mid_block_add_attention": header.has(
            layout.key("encoder.mid_block.attentions.0.group_norm.weight")
        ),
    }, layout


def _resnet(place: str, ours: str) -> dict[str, str]:
    """The renames of a residual block."""
    return {f"{place}.{part}": f"{ours}.{name}" for part, name in RESNET.items()}
