"""Print a digest of the latents of every kind of model, to compare two versions of this program.

    python tools/same_latents.py CHECKPOINTS > after.txt
    diff before.txt after.txt

`CHECKPOINTS` is a folder; the tiny checkpoints of `tests/checkpoints.py` are written there if they
are missing, which needs the tests' requirements. To compare with another commit, run this file with
`PYTHONPATH` set to a checkout of it, and with the same folder.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

import stable_diffusion  # noqa: E402, F401  isort: skip  # before mlx

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from kinds import KINDS, PUBLISHED_KINDS  # noqa: E402

from stable_diffusion import StableDiffusion, StableDiffusionXL  # noqa: E402

SAMPLERS = (
    *(("euler", None), ("euler", "karras"), ("euler-a", None), ("ddim", None)),
    *(("dpm++2m", None), ("dpm++2m", "karras"), ("lcm", None)),
)
PROMPT = "a red circle on (blue:1.3), the [sky], a lighthouse at dusk"
LONG_PROMPT = ", ".join([PROMPT] * 12)
# Further cases: options of the generators.
VARIANTS: dict[str, dict[str, Any]] = {
    "long prompt": {"text": LONG_PROMPT, "long_prompt": True, "prompt_weights": True},
    "clip skip": {"clip_skip": 1},
    "rescale": {"guidance_rescale": 0.7, "cfg_weight": 6.0},
}


def main(folder: Path) -> None:
    """Print one line for each case: the case, and the digest of its latents."""
    warnings.simplefilter("ignore")
    kinds = (*KINDS, *PUBLISHED_KINDS)
    models = {"tiny": "tiny"} | {kind: write(kind, folder / kind) for kind in kinds}
    for kind, model in models.items():
        for case, latents in cases(kind, model, folder):
            print(f"{kind}, {case}: {digest(latents)}", flush=True)


def write(kind: str, folder: Path) -> str:
    """Write the tiny checkpoint of a kind, unless it exists; return its name."""
    if not folder.exists():
        from checkpoints import write_checkpoint

        write_checkpoint(kind, folder)
    return str(folder)


def cases(kind: str, model: str, folder: Path) -> Iterator[tuple[str, mx.array]]:
    """Yield each case of a model, and its last latents [B, h, w, C].

    Models are loaded as seldom as possible, which takes longer than a case.
    """
    plain = load(kind, model)
    for sampler, schedule in SAMPLERS:
        for way, generate in ways_to_generate(plain).items():
            options = {"sampler": sampler, "schedule": schedule, "cfg_weight": 3.0}
            try:
                latents = generate(**options)
            except ValueError as error:
                print(f"{kind}, {sampler}: refused: {error}")
                break
            yield f"{sampler} {schedule}, {way}", compute_last(latents)
    for name, sd, options in variants(kind, model, folder, plain):
        for way, generate in ways_to_generate(sd).items():
            yield f"{name}, {way}", compute_last(generate(**options))


def variants(
    kind: str, model: str, folder: Path, plain: StableDiffusion
) -> Iterator[tuple[str, StableDiffusion, dict[str, Any]]]:
    """Yield the name of each variant, its model, and the options of its generators.

    Args:
        plain: the model without changes.
    """
    for name, options in VARIANTS.items():
        yield name, plain, options
    sd = load(kind, model)
    sd.load_lora(write_lora(kind, sd, folder), 0.8)
    yield "LoRA", sd, {}
    sd = load(kind, model)
    sd.quantize()
    yield "quantized", sd, {}
    sd.load_lora(write_lora(kind, sd, folder), 0.8)
    yield "quantized, LoRA", sd, {}
    yield "float16", load(kind, model, float16=True), {}


def load(kind: str, model: str, **options: Any) -> StableDiffusion:
    """Return the model, as the class that runs it."""
    return (StableDiffusionXL if "xl" in kind else StableDiffusion)(model, **options)


def ways_to_generate(sd: StableDiffusion) -> dict[str, Callable]:
    """Return both generators, each with a small picture and few steps."""
    factor = sd.config.autoencoder.factor
    side = 8 * factor
    image = np.random.default_rng(0).random((side, side, 3), np.float32) * 2 - 1

    def from_text(text: str = PROMPT, **options: Any) -> Iterator[mx.array]:
        return sd.generate_latents(
            text, n_images=2, num_steps=4, latent_size=(8, 8), seed=3, **options
        )

    def from_image(text: str = PROMPT, **options: Any) -> Iterator[mx.array]:
        return sd.generate_latents_from_image(
            image, text, n_images=2, strength=0.6, num_steps=5, seed=3, **options
        )

    return {"text": from_text, "picture": from_image}


def compute_last(latents: Iterator[mx.array]) -> mx.array:
    """Return the last latents, computed step by step."""
    for x_t in latents:
        mx.eval(x_t)
    return x_t


def digest(x: mx.array) -> str:
    """Return the first digits of the SHA-256 of the numbers."""
    return hashlib.sha256(np.array(x.astype(mx.float32)).tobytes()).hexdigest()[:16]


def write_lora(kind: str, sd: StableDiffusion, folder: Path) -> str:
    """Write a LoRA of every attention of the UNet, in kohya's names, unless it exists."""
    file = folder / f"{kind}-lora.safetensors"
    if not file.exists():
        generator = np.random.default_rng(1)
        tensors = {}
        for path, module in sd.unet.named_modules():
            if path.endswith("query_proj"):
                name = "lora_unet_" + path.replace("query_proj", "to_q").replace(".", "_")
                width = len(module.weight)
                for part, shape in (("lora_down", (4, width)), ("lora_up", (width, 4))):
                    values = generator.standard_normal(shape, np.float32) * 0.1
                    tensors[f"{name}.{part}.weight"] = mx.array(values)
        mx.save_safetensors(str(file), tensors)
    return str(file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/same_latents.py CHECKPOINTS")
    main(Path(sys.argv[1]))
