"""The tasks that are measured, and the inputs that all programs get."""

from dataclasses import dataclass
from functools import partial

import numpy as np

PROMPT = "A photo of an astronaut riding a horse on Mars."
LATENTS = (64, 64, 4)  # of 512×512 pixels; channels last
TIMESTEP = 601
PIXELS = 8  # of a picture for each latent, along each side


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        model: the checkpoint, `sd` (SD 2.1 base), `sdxl` (SDXL-turbo) or `sd15` (SD 1.5 with a
            ControlNet).
        part: what runs: "load", "text", "unet", "control" (the UNet with a ControlNet), "decode",
            "encode" or "picture".
        batch: number of pictures, or of latents for the UNet.
        precision: of the products, one of those in programs.py; workers set it.
        programs: the names of the programs that run it; empty for every one that can. The last one
            is what the others are compared with.
        is_quick: whether `--quick` runs it.
    """

    title: str
    model: str
    part: str
    batch: int = 1
    steps: int = 0
    guidance: float = 0.0
    precision: str = "float32"
    programs: tuple[str, ...] = ()
    is_quick: bool = False

    @property
    def is_picture(self) -> bool:
        """Return whether the task makes whole pictures."""
        return self.part == "picture"

    @property
    def reference(self) -> str:
        """Return the name of the program that the others are compared with."""
        return self.programs[-1] if self.programs else "diffusers"


_picture = partial(Task, part="picture")

_quantized = partial(Task, programs=("quantized", "ours"))

# In the order of running: a run that is cut off has measured the first ones.
TASKS = {
    "unet": Task("UNet step, SD 2.1", "sd", "unet", is_quick=True),
    "decode": Task("VAE decode, 512×512", "sd", "decode", is_quick=True),
    "text": Task("text encoder, SD 2.1", "sd", "text", is_quick=True),
    "unet2": Task("UNet step, SD 2.1, batch 2", "sd", "unet", batch=2),
    "xl-unet": Task("UNet step, SDXL-turbo", "sdxl", "unet"),
    "xl-load-q": Task("load, SDXL-turbo, `-q`", "sdxl", "load", programs=("quantized",)),
    "xl-picture": _picture("picture, SDXL-turbo, 2 steps", "sdxl", steps=2),
    "encode": Task("VAE encode, 512×512", "sd", "encode"),
    "picture": _picture("picture, SD 2.1, 10 steps", "sd", steps=10, guidance=7.5),
    "control": Task("UNet step with a ControlNet, SD 1.5, batch 2", "sd15", "control", batch=2),
    "load": Task("load, SD 2.1 base", "sd", "load"),
    # This program with `-q`, and in float32.
    "q1": _quantized("one picture, SD 2.1, 4 steps", "sd", "picture", steps=4, guidance=7.5),
    "q4": _quantized(
        "four pictures, SD 2.1, 2 steps", "sd", "picture", steps=2, guidance=7.5, batch=4
    ),
}

# Checkpoint and size of the pictures for which the script's peak resident size is measured, and the
# ControlNet if there is one.
MEMORY: dict[str, tuple[str, int, str | None]] = {
    "SD 2.1 base, `-q`, 512×512": ("sd", 512, None),
    "SDXL-turbo, `-q`, 512×512": ("sdxl", 512, None),
    "SDXL-turbo, `-q`, 1024×1024": ("sdxl", 1024, None),
    "SDXL-turbo, `-q`, 1024×1024, with a ControlNet": ("sdxl", 1024, "sdxl-controlnet"),
}


def random_normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return float32 numbers, the same for all programs; pictures and latents are channels last."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_picture() -> np.ndarray:
    """Return a picture [1, 512, 512, 3] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 512, 512, 3)).astype(np.float32)


def control_picture(height: int, width: int) -> np.ndarray:
    """Return a picture [1, H, W, 3] in [0, 1] for latents of a height and width."""
    shape = (1, PIXELS * height, PIXELS * width, 3)
    return np.random.default_rng(3).random(shape, dtype=np.float32)


def token_ids() -> np.ndarray:
    """Return ids [1, 77]: the length of a usual prompt, then padding."""
    ids = np.full((1, 77), 49407)
    ids[0, 0] = 49406
    ids[0, 1:12] = np.random.default_rng(1).integers(1, 49406, 11)
    return ids


def pooled_width(config) -> int:
    """Return the width of the pooled text of SDXL's UNet, for a config of any program."""
    return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
