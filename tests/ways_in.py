"""Compare pictures of each kind and format of checkpoint with diffusers, for a table in the docs.

PYTHONPATH=. python tests/ways_in.py
"""

import stable_diffusion  # noqa: F401  isort: skip  (before mlx, for its BLAS)

import tempfile
from pathlib import Path

import diffusers
import numpy as np
from checkpoints import write_checkpoint
from kinds import PUBLISHED_KINDS
from oracle import Oracle, psnr
from original_layout import write_single_file
from ours import pictures

from stable_diffusion.cli import convert
from stable_diffusion.model_io.loaders import open_model
from stable_diffusion.pipeline import pipeline_class

PROMPT = "a photo of a café, at night!"
# Single files of SD 2 do not say it unless their metadata do.
PREDICTION = dict(zip(PUBLISHED_KINDS, (None, "epsilon", "v_prediction", None), strict=True))
WAYS = {  # options of convert, by the title of a column
    "converted": (),
    "`--fp16`": ("--fp16",),
    "8 bits": ("-q8", "--group-size=32"),
    "6 bits": ("-q6", "--group-size=32"),
    "4 bits": ("-q4", "--group-size=32"),
}


def from_diffusers(oracle: Oracle) -> np.ndarray:
    """Return diffusers' picture, uint8 [1, 64, 64, 3]."""
    return oracle.pictures(
        PROMPT, seeds=[7], num_inference_steps=2, guidance_scale=5, height=64, width=64
    )


def from_single_file(file: Path, folder: Path) -> np.ndarray:
    """Return diffusers' picture from a single file, with the configs of the folder."""
    oracle = Oracle(folder)
    family = "StableDiffusionXLPipeline" if "sdxl" in folder.name else "StableDiffusionPipeline"
    oracle.single = getattr(diffusers, family).from_single_file(
        str(file), config=str(folder), local_files_only=True
    )
    oracle.single.set_progress_bar_config(disable=True)
    return from_diffusers(oracle)


def drawn(model: Path | str, **options) -> np.ndarray:
    """Return our picture; `options` are those of `open_model`."""
    opened = open_model(str(model), **options)
    sd = pipeline_class(opened.config)(opened)
    options = {"num_steps": 2, "cfg_weight": 5, "latent_size": (8, 8), "seed": 7}
    return pictures(sd, sd.generate_latents(PROMPT, **options))


def row(kind: str, at: Path) -> list[float]:
    """Return the PSNR in dB for the folder, the single file and each conversion."""
    folder = write_checkpoint(kind, at / kind)
    file = write_single_file(folder, at / f"{kind}.safetensors")
    theirs = from_diffusers(Oracle(folder))
    ratios = [
        psnr(drawn(folder), theirs),
        psnr(drawn(file, prediction_type=PREDICTION[kind]), from_single_file(file, folder)),
    ]
    for i, options in enumerate(WAYS.values()):
        converted = at / f"{kind}-{i}"
        if convert.main([str(folder), str(converted), *options]):
            raise SystemExit(f"{kind} {options} was not converted")
        ratios.append(psnr(drawn(converted), theirs))
    return ratios


def main() -> None:
    """Print the table."""
    titles = ["folder", "single file", *WAYS]
    print(f"| PSNR in dB | {' | '.join(titles)} |\n{'|---' * (len(titles) + 1)}|")
    for kind in PUBLISHED_KINDS:
        with tempfile.TemporaryDirectory() as at:
            cells = " | ".join(f"{ratio:.0f}" for ratio in row(kind, Path(at)))
        print(f"| {kind.removesuffix('-published')} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
