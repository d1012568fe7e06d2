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
from PIL import Image
from transformers import CLIPTokenizer

from stable_diffusion.config.diffusion import LEVEL_OPTIONS, OWN_SCHEDULES
from stable_diffusion.sampler.noise_levels import invert_beta


def _integrate(function, start, end, **_: object) -> tuple[float, float]:
    """Return the integral of a cubic polynomial, as `scipy.integrate.quad` does."""
    middle, half = (float(start) + float(end)) / 2, (float(end) - float(start)) / 2
    points = (middle - half / 3**0.5, middle + half / 3**0.5)
    return half * sum(float(function(point)) for point in points), 0.0


# Two schedulers need packages: one for Brownian trees, in place of which noise is given here, and
# one for an integral.
sys.modules.setdefault("torchsde", ModuleType("torchsde"))
from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler  # noqa: E402

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
    if schedule in LEVEL_OPTIONS:
        return {**options, LEVEL_OPTIONS[schedule]: True}
    if schedule is None or schedule in OWN_SCHEDULES:
        return options
    return {**options, "timestep_spacing": schedule}


def provide_beta_quantiles(scheduler: type) -> None:
    """Give the module of a scheduler the one function of SciPy that it calls for beta levels.

    `tests/sampler/test_noise_levels.py` compares it with an independent one.
    """
    module = sys.modules[scheduler.__module__]
    if hasattr(module, "is_scipy_available"):
        beta = SimpleNamespace(ppf=lambda p, a, _: float(invert_beta(np.array(p), a)))
        module.scipy = SimpleNamespace(stats=SimpleNamespace(beta=beta))
        module.is_scipy_available = lambda: True


for _scheduler in SCHEDULERS.values():
    provide_beta_quantiles(_scheduler)

# "Align your steps", 10 steps of SD 1.5, with the level that a longer or shorter table ends at.
AYS_SD = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def published_levels(schedule: str, n: int, sigmas: np.ndarray, table: list[float]) -> list[float]:
    """Return the noise levels of n steps as ComfyUI and the web UI compute them, without the 0.

    Args:
        sigmas: of every training timestep.
        table: of "align your steps".
    """
    if schedule == "simple":
        return [float(sigmas[-(1 + int(i * (len(sigmas) / n)))]) for i in range(n)]
    if schedule == "sgm-uniform":
        times = np.linspace(len(sigmas) - 1, 0, n + 1)[:-1]
        below = np.floor(times).astype(int)
        above, part = np.ceil(times).astype(int), times - below
        logs = np.log(sigmas.astype(np.float64))
        return np.exp((1 - part) * logs[below] + part * logs[above]).tolist()
    old, new = np.linspace(0, 1, len(table)), np.linspace(0, 1, n + 1)
    return np.exp(np.interp(new, old, np.log(np.array(table)))).tolist()[:-1]


def make_scheduler(sampler: str, config: dict):
    """Return diffusers' scheduler for a sampler, which has no timesteps yet."""
    with mock.patch.object(SCHEDULERS[sampler], "set_timesteps", set_no_timesteps):
        return SCHEDULERS[sampler].from_config(config)


def set_no_timesteps(scheduler, *_: object) -> None:
    """Take the place of `set_timesteps` while a scheduler is made.

    Some of them set all timesteps of the training then, which takes a second.
    """
    scheduler.sigmas = torch.zeros(1)


def set_timesteps(theirs, schedule: str | None, n: int, timesteps: list[int] | None = None) -> None:
    """Set the steps of diffusers' scheduler; levels that it lacks are put into it."""
    if timesteps is not None:
        theirs.set_timesteps(timesteps=timesteps)
        return
    theirs.set_timesteps(n)
    if schedule not in OWN_SCHEDULES:
        return
    sigmas = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).numpy() ** 0.5
    levels = published_levels(schedule, n, sigmas, AYS_SD)
    if theirs.order == 2:  # it adds levels in between
        theirs.register_to_config(use_exponential_sigmas=True)
        theirs._convert_to_exponential = lambda *_, **__: np.array(levels)
        theirs.set_timesteps(n)
        return
    times = np.interp(np.log(levels), np.log(sigmas), np.arange(len(sigmas)))
    has_whole_times = not theirs.timesteps.is_floating_point()
    is_deis = isinstance(theirs, diffusers.DEISMultistepScheduler)
    theirs.sigmas = torch.tensor([*levels, float(sigmas[0]) if is_deis else 0.0])
    theirs.timesteps = torch.tensor(times.round() if has_whole_times else times).to(
        theirs.timesteps.dtype
    )


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

    def make_other(
        self, task: str, sampler: str | None = None, schedule: str | None = None
    ) -> DiffusionPipeline:
        """Return diffusers' pipeline for another task, such as Inpaint, with these networks."""
        parts = self.single.components
        family = "StableDiffusionXL" if "text_encoder_2" in parts else "StableDiffusion"
        pipeline = getattr(diffusers, f"{family}{task}Pipeline")(**parts)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = self.scheduler(sampler, schedule)
        return pipeline

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
        return _draw(pipeline, prompt, seeds, **options)

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
        pipeline = self.make_other("Img2Img", sampler, schedule)
        with mock.patch.object(DiagonalGaussianDistribution, "sample", _mean):
            return _draw(
                pipeline, prompt, seeds, image=channels_first(image[None], torch.float32), **options
            )

    @torch.no_grad()
    def inpainted_pictures(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        prompt: str,
        *,
        seeds: list[int],
        sampler: str | None = None,
        schedule: str | None = None,
        **options,
    ) -> np.ndarray:
        """Return diffusers' pictures of which the part that `mask` covers is painted again.

        Args:
            image: [H, W, 3] in [-1, 1].
            mask: [H, W] in [0, 1].
        """
        pipeline = self.make_other("Inpaint", sampler, schedule)
        with mock.patch.object(DiagonalGaussianDistribution, "sample", _mean):
            return _draw(
                pipeline,
                prompt,
                seeds,
                image=channels_first(image[None], torch.float32),
                mask_image=torch.from_numpy(mask.astype(np.float32))[None],
                height=image.shape[0],
                width=image.shape[1],
                **options,
            )

    @torch.no_grad()
    def painted_part(
        self, picture: np.ndarray, mask: np.ndarray, prompt: str, *, seed: int, **options
    ) -> np.ndarray:
        """Return diffusers' picture with a part drawn in another size, uint8 [H, W, 3].

        Args:
            picture: uint8 [H, W, 3].
            mask: uint8 [H, W].
            options: of the pipeline, among them `padding_mask_crop`, width and height.
        """
        pipeline = self.make_other("Inpaint")
        images = {"image": Image.fromarray(picture), "mask_image": Image.fromarray(mask)}
        with mock.patch.object(DiagonalGaussianDistribution, "sample", _mean):
            made = pipeline(prompt, **images, generator=_generators([seed]), **options).images
        return np.asarray(made[0])

    @torch.no_grad()
    def pictures_edited(
        self,
        image: np.ndarray,
        prompt: str,
        *,
        seeds: list[int],
        sampler: str | None = None,
        **options,
    ) -> np.ndarray:
        """Return diffusers' pictures of InstructPix2Pix; `image` is [H, W, 3] in [-1, 1]."""
        pipeline = self.single
        pipeline.scheduler = self.scheduler(sampler)
        if hasattr(pipeline, "text_encoder_2"):
            options |= {"height": image.shape[0], "width": image.shape[1]}
        return _draw(
            pipeline, prompt, seeds, image=channels_first(image[None], torch.float32), **options
        )


def _draw(
    pipeline: DiffusionPipeline, prompt: str | list[str], seeds: list[int], **options
) -> np.ndarray:
    """Return a picture of a pipeline for each seed, uint8 [B, H, W, 3]."""
    images = pipeline(
        prompt,
        num_images_per_prompt=1 if isinstance(prompt, list) else len(seeds),
        generator=_generators(seeds),
        output_type="np",
        **options,
    ).images
    return (images * 255).round().astype(np.uint8)


def _generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _mean(posterior: DiagonalGaussianDistribution, generator=None) -> torch.Tensor:
    return posterior.mean
