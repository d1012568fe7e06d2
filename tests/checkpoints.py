"""Tiny checkpoints of every kind of model, written by diffusers, with weights that tell.

Biases and norms are random, so that a forgotten layer shows; times, text and noise all move the
picture, so that a wrong one shows; and the pictures have contrast.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from clip_vocabulary import write_tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PAD_EOS, PAD_BANG = "<|endoftext|>", "!"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
KINDS = ("sd-1", "sd-2", "sd-2-v", "sdxl", "sdxl-turbo", "unusual")
# Tiny as well, but with what the published models have and no config is needed to know: the
# groups of the norms, the number or width of the heads.
PUBLISHED = {
    "text": {"hidden_size": 128, "num_attention_heads": 2},
    "vae": {"block_out_channels": [32, 32, 64, 64], "norm_num_groups": 32},
    "unet": {
        "block_out_channels": [64, 64, 64, 128],
        "norm_num_groups": 32,
        "cross_attention_dim": 128,
    },
}
PUBLISHED_KINDS = ("sd-1-published", "sd-2-published", "sd-2-v-published", "sdxl-published")


def make_pipeline(kind: str, folder: Path) -> DiffusionPipeline:
    """A pipeline of diffusers in float32; `folder` is for its tokenizers."""
    torch.manual_seed(10 + (KINDS + PUBLISHED_KINDS).index(kind))
    return {
        "sd-1-published": _sd_1_published,
        "sd-2-published": _sd_2_published,
        "sd-2-v-published": _sd_2_v_published,
        "sdxl-published": _sdxl_published,
        "sd-1": _sd_1,
        "sd-2": _sd_2,
        "sd-2-v": _sd_2_v,
        "sdxl": _sdxl,
        "sdxl-turbo": _sdxl_turbo,
        "unusual": _unusual,
    }[kind](folder)


def write_checkpoint(kind: str, folder: Path, **options) -> Path:
    """Save a checkpoint as diffusers does; `options` go to its `save_pretrained`."""
    make_pipeline(kind, folder / "made").save_pretrained(folder, **options)
    return folder


def edit(file: Path, change: Callable[[dict], dict | None]) -> None:
    """Let `change` rework the tensors of a file, in place or by returning others."""
    tensors = load_file(file)
    tensors = change(tensors) or tensors
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, file)


def _sd_1(folder: Path) -> StableDiffusionPipeline:
    """1×1-convolution projections, one number of heads, quick GELU, PNDM."""
    return _sd(
        folder,
        text={"hidden_size": 32, "hidden_act": "quick_gelu"},
        unet={"cross_attention_dim": 32, "attention_head_dim": 4},
        scheduler=PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
    )


def _sd_2(folder: Path) -> StableDiffusionPipeline:
    """Linear projections, a number of heads a block, GELU, padding with `!`."""
    return _sd(
        folder,
        text={"hidden_size": 48, "hidden_act": "gelu", "eos_token_id": 2},
        unet={
            "cross_attention_dim": 48,
            "attention_head_dim": [2, 4, 8, 8],
            "use_linear_projection": True,
        },
        scheduler=PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
        pad_token=PAD_BANG,
    )


def _sd_2_v(folder: Path) -> StableDiffusionPipeline:
    """The 768 model: predicts the velocity."""
    return _sd(
        folder,
        text={"hidden_size": 48, "hidden_act": "gelu"},
        unet={
            "cross_attention_dim": 48,
            "attention_head_dim": [2, 4, 8, 8],
            "use_linear_projection": True,
            "upcast_attention": True,
            "sample_size": 12,
        },
        scheduler=DDIMScheduler(**BETAS, steps_offset=1, prediction_type="v_prediction"),
        pad_token=PAD_BANG,
    )


def _unusual(folder: Path) -> StableDiffusionPipeline:
    """Everything that the real models have in common, otherwise."""
    return _sd(
        folder,
        text={"hidden_size": 32, "hidden_act": "gelu", "layer_norm_eps": 1e-4},
        unet={
            "in_channels": 6,
            "out_channels": 6,
            "sample_size": 10,
            "block_out_channels": [24, 48],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": [1, 2],
            "transformer_layers_per_block": [2, 1],
            "attention_head_dim": [3, 4],
            "norm_num_groups": 6,
            "norm_eps": 1e-3,
            "act_fn": "gelu",
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "cross_attention_dim": 32,
        },
        vae={
            "latent_channels": 6,
            "block_out_channels": [16, 32, 32],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "act_fn": "mish",
            "scaling_factor": 0.5,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": False,
        },
        scheduler=EulerDiscreteScheduler(
            num_train_timesteps=500, beta_start=0.001, beta_end=0.02, timestep_spacing="linspace"
        ),
    )


def _sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Two text encoders, time ids, transformers of unequal depth."""
    return _xl(
        folder,
        EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    )


def _sdxl_turbo(folder: Path) -> StableDiffusionXLPipeline:
    """As SDXL, to be run in few steps."""
    return _xl(folder, EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"))


def _sd_1_published(folder: Path) -> StableDiffusionPipeline:
    return _sd(
        folder,
        text={**PUBLISHED["text"], "hidden_act": "quick_gelu"},
        unet={**PUBLISHED["unet"], "attention_head_dim": 8},
        vae=PUBLISHED["vae"],
        scheduler=_silent(PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True)),
    )


def _sd_2_published(
    folder: Path, prediction_type: str = "epsilon", **unet
) -> StableDiffusionPipeline:
    heads = {"attention_head_dim": [1, 1, 1, 2], "use_linear_projection": True}
    options = {**BETAS, "steps_offset": 1, "prediction_type": prediction_type}
    return _sd(
        folder,
        text={**PUBLISHED["text"], "hidden_act": "gelu"},
        unet={**PUBLISHED["unet"], **heads, **unet},
        vae=PUBLISHED["vae"],
        scheduler=_silent(PNDMScheduler(**options, skip_prk_steps=True)),
        pad_token=PAD_BANG,
    )


def _sd_2_v_published(folder: Path) -> StableDiffusionPipeline:
    return _sd_2_published(folder, "v_prediction", upcast_attention=True)


def _sdxl_published(folder: Path) -> StableDiffusionXLPipeline:
    return _xl(
        folder,
        EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        text={"hidden_size": 64, "num_attention_heads": 1},
        text_2=PUBLISHED["text"],
        vae=PUBLISHED["vae"],
        unet={
            "block_out_channels": [64, 64, 128],
            "norm_num_groups": 32,
            "attention_head_dim": [1, 1, 2],
            "cross_attention_dim": 64 + 128,
        },
    )


def _silent(scheduler: SchedulerMixin) -> SchedulerMixin:
    """With the spacing that is taken here where a config is silent, as the published ones are."""
    scheduler.register_to_config(timestep_spacing="trailing")
    return scheduler


def _sd(
    folder: Path,
    *,
    text: dict,
    unet: dict,
    scheduler,
    vae: dict | None = None,
    pad_token: str = PAD_EOS,
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(**(vae or {})),
        text_encoder=_text_encoder(CLIPTextModel, **text),
        tokenizer=_tokenizer(folder / "tokenizer", pad_token),
        unet=_unet(**unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _xl(
    folder: Path,
    scheduler,
    *,
    text: Mapping = MappingProxyType({"hidden_size": 32}),
    text_2: Mapping = MappingProxyType({"hidden_size": 48}),
    unet: Mapping = MappingProxyType({}),
    vae: Mapping = MappingProxyType({}),
) -> StableDiffusionXLPipeline:
    options = {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4, 8],
        "transformer_layers_per_block": [1, 2, 3],
        "cross_attention_dim": 32 + 48,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
    }
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, **vae),
        text_encoder=_text_encoder(CLIPTextModel, hidden_act="quick_gelu", **text),
        text_encoder_2=_text_encoder(
            CLIPTextModelWithProjection, hidden_act="gelu", projection_dim=24, **text_2
        ),
        tokenizer=_tokenizer(folder / "tokenizer", PAD_EOS),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", PAD_BANG),
        unet=_unet(**{**options, **unet}),
        scheduler=scheduler,
    )


def _tokenizer(folder: Path, pad_token: str) -> CLIPTokenizer:
    write_tokenizer(folder, pad_token)
    return AutoTokenizer.from_pretrained(folder)


def _text_encoder(kind: type, **options):
    sizes = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPTextConfig(**{**sizes, **options})
    return _perturb(kind(config)).eval()


def _unet(**options) -> UNet2DConditionModel:
    options = {
        "sample_size": 8,
        "block_out_channels": [32, 32, 64, 64],
        "norm_num_groups": 8,
        "layers_per_block": 2,
        **options,
    }
    unet = _perturb(UNet2DConditionModel(**options)).eval()
    for name, parameter in unet.named_parameters():
        if "time_emb_proj" in name or "attn2.to_" in name:  # let time and text be heard
            parameter.data *= 6 if "time_emb_proj" in name else 2
    # Of the time, let what changes be heard above what is always there; but the quick sinusoids
    # no louder, for their rounding would be heard too.
    first = unet.time_embedding.linear_1
    first.weight.data *= 2
    n = first.in_features // 2
    first.weight.data[:, n // 4 : n] *= 4
    first.weight.data[:, n + n // 4 :] *= 4
    usual = unet.time_proj(torch.arange(1000)).mean(dim=0)
    first.bias.data = -(first.weight.data @ usual)

    x = torch.randn(4, unet.config.in_channels, 8, 8)
    inputs = {"encoder_hidden_states": torch.randn(4, 77, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type:
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(4, 24),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 4),
        }
    times = torch.tensor([10, 200, 400, 499])
    _standardize(unet.conv_out, lambda: unet(x, times, **inputs).sample, std=2.0)
    return unet


def _vae(**options) -> AutoencoderKL:
    options = {
        "block_out_channels": [16, 16, 32, 32],
        "layers_per_block": 2,
        "norm_num_groups": 8,
        **options,
    }
    n_blocks = len(options["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * n_blocks,
        up_block_types=["UpDecoderBlock2D"] * n_blocks,
        **options,
    )
    vae = _perturb(vae).eval()
    z = torch.randn(4, vae.config.latent_channels, 8, 8) / vae.config.scaling_factor
    _standardize(vae.decoder.conv_out, lambda: vae.decode(z).sample, std=0.5)
    return vae


def _perturb(network: torch.nn.Module) -> torch.nn.Module:
    """Biases off zero and norms off one."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return network


@torch.no_grad()
def _standardize(conv_out: torch.nn.Conv2d, output: Callable[[], torch.Tensor], std: float) -> None:
    """Give a network an output of mean 0 and deviation `std` through its last layer."""
    for _ in range(2):  # the scale, then the bias
        x = output()
        gain = std / x.std()
        conv_out.weight.data *= gain
        conv_out.bias.data = (conv_out.bias.data - x.mean(dim=(0, 2, 3))) * gain
