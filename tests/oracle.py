"""Run diffusers for comparison: in float64 for components, in float32 for pictures."""

import copy
import sys
import warnings
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers import scheduling_lms_discrete
from diffusers.utils import logging
from transformers import CLIPTokenizer



def _integrate(function, start, end, **_: object) -> tuple[float, float]:
    """Return the integral of a cubic polynomial, as `scipy.integrate.quad` does."""
    middle, half = (float(start) + float(end)) / 2, (float(end) - float(start)) / 2
    points = (middle - half / 3**0.5, middle + half / 3**0.5)
    return half * sum(float(function(point)) for point in points), 0.0


# Two schedulers need packages: one for Brownian trees, in place of which noise is given here, and
# one for an integral.
with mock.patch.dict(sys.modules, {"torchsde": ModuleType("torchsde")}):
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler
scheduling_lms_discrete.integrate = SimpleNamespace(quad=_integrate)

warnings.filterwarnings("ignore", module="diffusers|transformers|torch")
# The networks are too small for threads to help. On a busy machine, threads that wait for each
# other take fifty times as long.
torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()

SCHEDULERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-a": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lms": scheduling_lms_discrete.LMSDiscreteScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2-a": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpm++2s": diffusers.DPMSolverSinglestepScheduler,
    "dpm++2m-sde": diffusers.DPMSolverMultistepScheduler,
    "dpm++3m": diffusers.DPMSolverMultistepScheduler,
    "dpm++sde": DPMSolverSDEScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "tcd": diffusers.TCDScheduler,
}
# The options of diffusers' schedulers that make them these samplers.
SAMPLER_OPTIONS = {
    "ddim": {"clip_sample": False},  # latents are never clipped to [-1, 1]
    "ddpm": {"clip_sample": False},
    "dpm++2m-sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpm++3m": {"solver_order": 3},
    "pndm": {"skip_prk_steps": True},
}


def scheduler_options(sampler: str, schedule: str | None) -> dict:
    """Return the options of diffusers' scheduler for our names."""
    options = SAMPLER_OPTIONS.get(sampler, {})
    if schedule == "karras":
        return {**options, "use_karras_sigmas": True}
    return options if schedule is None else {**options, "timestep_spacing": schedule}


def relative_l2(ours, theirs) -> float:
    """Return the relative error of `ours` against `theirs`, both anything array-like."""
    ours, theirs = (np.asarray(a, dtype=np.float64) for a in (ours, theirs))
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the PSNR, in dB, of pictures with values from 0 to 255."""
    assert ours.shape == theirs.shape
    error = np.mean((ours.astype(np.float64) - theirs.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    """Convert [B, C, H, W] to [B, H, W, C]."""
    return x.permute(0, 2, 3, 1).numpy()


def channels_first(x: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Convert [B, H, W, C] to [B, C, H, W]."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).to(dtype)


_tokenizers: dict[tuple[bytes, ...], CLIPTokenizer] = {}  # by the contents of their files


def _read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer of a folder, which is not to be changed.

    Tokenizers with the same files are read once, because that takes as long as a picture.
    """
    contents = tuple(file.read_bytes() for file in sorted(folder.iterdir()))
    if contents not in _tokenizers:
        _tokenizers[contents] = CLIPTokenizer.from_pretrained(folder)
    return _tokenizers[contents]


class Oracle:
    """One checkpoint in diffusers. Its tokenizers are not to be changed."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def exact(self) -> DiffusionPipeline:
        """Return the pipeline in float64."""
        return self.make_copy().to(torch.float64)

    @cached_property
    def single(self) -> DiffusionPipeline:
        """Return the pipeline in float32, as users run it."""
        return self._read(**self._read_tokenizers())

    def read_text_parts(self) -> DiffusionPipeline:
        """Return a new pipeline in float32 that can only embed text, and may be changed."""
        copies = {name: copy.deepcopy(part) for name, part in self._read_tokenizers().items()}
        return self._read(unet=None, vae=None, **copies)

    def _read_tokenizers(self) -> dict[str, CLIPTokenizer]:
        folders = self.folder.glob("tokenizer*")
        return {folder.name: _read_tokenizer(folder) for folder in folders}

    def make_copy(self) -> DiffusionPipeline:
        """Return a new pipeline in float32, whose networks may be changed.

        Copying the networks is faster than reading them again.
        """
        parts = self.single.components
        networks = {
            name: copy.deepcopy(part)
            for name, part in parts.items()
            if isinstance(part, torch.nn.Module)
        }
        tokenizers = {name: part for name, part in parts.items() if name.startswith("tokenizer")}
        return self._read(**networks, **tokenizers)

    def _read(self, **parts: object) -> DiffusionPipeline:
        """Read the pipeline in float32, except the parts that are given."""
        pipeline = DiffusionPipeline.from_pretrained(
            self.folder, safety_checker=None, torch_dtype=torch.float32, **parts
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def scheduler(self, sampler: str | None = None, schedule: str | None = None, **options):
        """Return diffusers' scheduler for a sampler; by default the model's own, or Euler."""
        # From the file, because the pipelines' schedulers are replaced here.
        config = diffusers.EulerDiscreteScheduler.load_config(self.folder, subfolder="scheduler")
        if sampler is None:
            is_ancestral = config["_class_name"] == "EulerAncestralDiscreteScheduler"
            sampler = "euler-a" if is_ancestral else "euler"
        options = {**scheduler_options(sampler, schedule), **options}
        return SCHEDULERS[sampler].from_config(config, **options)

    @torch.no_grad()
    def pictures(
        self,
        prompt: str | list[str],
        *,
        seeds: list[int],
        sampler: str | None = None,
        schedule: str | None = None,
        **options,
    ) -> np.ndarray:
        """Return diffusers' pictures, uint8 [B, H, W, 3], one for each seed.

        `prompt` is one for all of them, or one for each.
        """
        pipeline = self.single
        pipeline.scheduler = self.scheduler(sampler, schedule)
        images = pipeline(
            prompt,
            num_images_per_prompt=1 if isinstance(prompt, list) else len(seeds),
            generator=_generators(seeds),
            output_type="np",
            **options,
        ).images
        return (images * 255).round().astype(np.uint8)

    @torch.no_grad()
    def pictures_from_image(
        self,
        image: np.ndarray,
        prompt: str,
        *,
        seeds: list[int],
        sampler: str | None = None,
        schedule: str | None = None,
        **options,
    ) -> np.ndarray:
        """Return diffusers' pictures from an image, starting at the mean of its latents.

        `image` is [H, W, 3] in [-1, 1].
        """
        is_xl = hasattr(self.single, "text_encoder_2")
        family = "StableDiffusionXL" if is_xl else "StableDiffusion"
        pipeline = getattr(diffusers, f"{family}Img2ImgPipeline")(**self.single.components)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = self.scheduler(sampler, schedule)
        with mock.patch.object(DiagonalGaussianDistribution, "sample", _mean):
            images = pipeline(
                prompt,
                image=channels_first(image[None], torch.float32),
                num_images_per_prompt=len(seeds),
                generator=_generators(seeds),
                output_type="np",
                **options,
            ).images
        return (images * 255).round().astype(np.uint8)


def _generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _mean(posterior: DiagonalGaussianDistribution, generator=None) -> torch.Tensor:
    return posterior.mean
