"""Build the untrained parts of the `tiny` model, and write its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# CLIP's vocabulary as OpenAI published it (the MIT licence is beside it).
TOKENIZER = Path(__file__).parents[1] / "stable_diffusion" / "tiny" / "tokenizer"
VOCABULARY = 49408  # CLIP's: 2 x 256 bytes, 48894 merges, start, end
START, END = 49406, 49407
POSITIONS = 77
WIDTH = 128  # of the text encoder; its embedding is most of the model's bytes
LATENT_CHANNELS = 8
LATENT_SIZE = 8  # 64 pixels / 2^3


def build_vae() -> AutoencoderKL:
    """Build a VAE: 64 × 64 × 3 pixels to 8 × 8 × 8 latents; few channels at high resolution."""
    channels = (16, 32, 64, 128)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
    )
    # Start with little noise in the latents (log variance -6): with the usual unit variance the
    # decoder first learns to ignore them, and training is several times slower.
    with torch.no_grad():
        vae.quant_conv.bias[LATENT_CHANNELS:] -= 6
    return vae


def build_text_encoder() -> CLIPTextModel:
    """Build a causal CLIP text encoder of three layers, 77 positions and width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_act="quick_gelu",
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


def build_unet(channels: tuple[int, int] = (96, 128)) -> UNet2DConditionModel:
    """Build a UNet of two levels: 8 × 8 without attention, 4 × 4 with self- and cross-attention.

    SDXL's first level has no attention either. At 8 × 8 it would take half as much time again, and
    improve little.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, as in Stable Diffusion 1
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Build a scheduler with Stable Diffusion's betas; the UNet predicts v (arXiv:2202.00512)."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # no effect with trailing; diffusers warns without it
    )


def load_tokenizer() -> CLIPTokenizer:
    """Load CLIP's tokenizer from the files of the embedded model."""
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], length: int) -> torch.Tensor:
    """Return token ids, padded with the end token to `length`: [B, length]."""
    batch = tokenizer(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return batch.input_ids


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Assemble diffusers' own pipeline from the parts."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: StableDiffusionPipeline, out: Path) -> None:
    """Write `pipe` as float16 safetensors in diffusers' layout, with the plain vocabulary files."""
    # Read before anything is written: `out` may be the model's own folder.
    vocabulary = {path.name: path.read_bytes() for path in TOKENIZER.iterdir()}
    pipe.to(torch.float16).save_pretrained(out, safe_serialization=True)
    # transformers 5 writes only tokenizer.json; write the original two files instead.
    for path in (out / "tokenizer").iterdir():
        path.unlink()
    for name, content in vocabulary.items():
        (out / "tokenizer" / name).write_bytes(content)
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # transformers and diffusers make weights private to their owner
