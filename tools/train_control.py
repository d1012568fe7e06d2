"""Train the ControlNet of the `tiny` model, which puts shapes where an outline says.

    python -m tools.train_control --out stable_diffusion/tiny/controlnet --work runs/control

It draws its own data (`outlines.py`): scenes of one or two shapes at random places, and their
outlines, white on black. The embedded model stays as it is. If the training was interrupted, the
same command continues from the last checkpoint in `--work`. `--quick` does all of it with small
settings. The result is scored on held-out scenes (`control_scores.py`) with diffusers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from tools.control_scores import evaluate
from tools.tiny_control import build_control, train_control
from tools.tiny_scores import table

TINY = Path(__file__).parents[1] / "stable_diffusion" / "tiny"


class Budget(NamedTuple):
    """Steps of the training, and outlines that score the result."""

    steps: int
    outlines: int


FULL = Budget(steps=20500, outlines=200)
QUICK = Budget(steps=30, outlines=8)


def save(control: ControlNetModel, out: Path) -> None:
    """Write the network as float16 safetensors in diffusers' layout."""
    control.half().save_pretrained(out, safe_serialization=True)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # diffusers makes weights private to their owner


def main() -> None:
    """Parse the command line, train, save, score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the network")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="other than the full number of steps")
    parser.add_argument("--quick", action="store_true", help="everything in miniature, two minutes")
    args = parser.parse_args()
    budget = QUICK if args.quick else FULL
    if args.quick:
        args.work = args.work / "quick"  # neither resumes nor overwrites the full training
    args.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(args.seed)
    pipe = StableDiffusionPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    control = build_control(pipe.unet)
    train_control(pipe, control, args.steps or budget.steps, args.work, args.seed)
    save(control, args.out)
    # Score what was saved: the float16 weights, computed in float32.
    saved = ControlNetModel.from_pretrained(args.out, torch_dtype=torch.float32)
    print(table(evaluate(saved, budget.outlines)))
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.1f} MB, {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
