"""Train the `tiny` model: a latent diffusion model that draws coloured shapes from a prompt.

    python -m tools.train_tiny --out stable_diffusion/tiny --work runs/tiny

It renders its own data, trains a VAE, a text encoder, a UNet and the VAE's decoder once more,
scores the result with diffusers and saves it in diffusers' layout as float16. If it was
interrupted, the same command continues from the last checkpoints in `--work`. `--quick` does all of
it with small settings and reports that the result beats an untrained model.

Data: scenes of one or two shapes on a plain background (`shapes.py`), worded in many ways
(`wording.py`); a tenth of the combinations of shape, colour, background and relation is held out.
Sizes: VAE 64×64×3 → 8×8×8, 0.7 million parameters; text encoder 6.7 million, 6.3 of them CLIP's
token table; UNet 4.0 million; 24 MB in float16 together.
Losses: L1, squares and gradients of pixels with a slight KL (VAE, then its decoder on noisy
latents); cross-entropy of what the prompt says, read off the tokens after it (text encoder);
v-prediction with a tenth of the prompts empty (UNet).

Scores of the shipped weights over 200 held-out prompts of each kind, 20 Euler steps, guidance 2,
with diffusers: one shape right in background, colour and shape 96.5%; two shapes right in these and
their relation 93.5%. The guidance was chosen on other prompts. This package scores the same.

The shipped weights were not made by one run of this command, but by its parts in several runs with
other numbers of steps: the VAE, the text encoder and a UNet that saw 250,000 samples with small
shapes of 8.5 pixels; then this UNet for 12,000 steps at today's 10 pixels and with mislabelled
captions, and the decoder for 3,000 steps. Of scenes that the VAE redraws from a little noise, the
checker accepts 100% with one shape and 96.5% with two. One run of today's numbers of steps takes
two to three hours on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from tools import tiny_model
from tools.tiny_scores import prompts, score, table
from tools.tiny_text import Vocabulary, train_text
from tools.tiny_training import train_decoder, train_vae
from tools.tiny_unet import (
    denoising_loss,
    encode_scenes,
    standardise,
    train_unet,
)


class Budget(NamedTuple):
    """Steps of every training, captions that make the vocabulary, prompts that score the result."""

    vae: int
    text: int
    unet: int
    decoder: int
    captions: int
    prompts: int


FULL = Budget(vae=4000, text=760, unet=20000, decoder=3000, captions=20000, prompts=200)
QUICK = Budget(vae=260, text=60, unet=60, decoder=20, captions=5000, prompts=16)
STEPS = 20  # Euler steps
GUIDANCE = 2.0


def draw(pipe: StableDiffusionPipeline, texts: list[str], guidance: float) -> np.ndarray:
    """Return pictures [B, 64, 64, 3] in [0, 1], picture i from seed i."""
    return pipe(
        texts,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(texts))],
        output_type="np",
    ).images


def evaluate(
    pipe: StableDiffusionPipeline, count: int, guidance: float = GUIDANCE
) -> dict[str, dict[str, float]]:
    """Return the scores on `count` held-out prompts of one shape and `count` of two."""
    return {
        name: score(lambda texts: draw(pipe, texts, guidance), prompts(items, count))
        for items, name in ((1, "one shape"), (2, "two shapes"))
    }


def train(budget: Budget, work: Path, seed: int) -> StableDiffusionPipeline:
    """Train every part, or continue from the checkpoints in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    words = Vocabulary(
        tiny_model.load_tokenizer(), np.random.default_rng([seed, 9]), budget.captions
    )
    torch.manual_seed(seed)
    vae, encoder, unet = tiny_model.build_vae(), words.compact(), tiny_model.build_unet()
    train_vae(vae, budget.vae, work, seed)
    train_text(encoder, words, budget.text, work, seed)
    latents, _ = encode_scenes(vae, encoder, words, 512, np.random.default_rng([seed, 4]))
    standardise(vae, latents / vae.config.scaling_factor)
    data = encode_scenes(vae, encoder, words, 128, np.random.default_rng([seed, 6]))
    before = probe(unet, data)
    train_unet(unet, vae, encoder, words, budget.unet, work, seed)
    print(f"denoising loss: untrained {before:.3f}, trained {probe(unet, data):.3f}", flush=True)
    train_decoder(vae, budget.decoder, work, seed)
    return tiny_model.assemble(vae, words.expand(encoder), unet)


def probe(unet: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the denoising loss on fixed latents, captions, timesteps and noise."""
    with torch.no_grad():
        return denoising_loss(unet, *data, generator=torch.Generator().manual_seed(0)).item()


def main() -> None:
    """Parse the command line, train, save, score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="everything in miniature, three minutes"
    )
    args = parser.parse_args()
    budget = QUICK if args.quick else FULL
    if args.quick:
        args.work = args.work / "quick"  # neither resumes nor overwrites the full training
    started = time.monotonic()
    tiny_model.save(train(budget, args.work, args.seed), args.out)
    # Score what was saved: the float16 weights, computed in float32.
    pipe = StableDiffusionPipeline.from_pretrained(args.out, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(table(evaluate(pipe, budget.prompts)))
    if args.quick:
        pipe.unet = tiny_model.build_unet().eval()
        print("untrained UNet:\n" + table(evaluate(pipe, budget.prompts)))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
