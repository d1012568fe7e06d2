"""The benchmark's tasks in stable-diffusion.cpp, through its Python package `cyllama`.

It makes whole pictures only. Its log and its progress tell the seconds of each part.
"""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from convert_checkpoints import find_single_file
from cyllama import sd
from processor import count_cores
from tasks import PIXELS, PROMPT, TIMESTEP, Task

SIZE = 512  # pixels, width and height
CHECKED_LATENTS = 16  # height and width of the latents that are compared with diffusers
SEED = 1
TYPES = {"float32": "F32", "float16": "F16"}
# Lines of its log with the seconds of a part.
PART_LINES = {
    "text": re.compile(r"get_learned_condition completed, taking ([\d.]+)s"),
    "decode": re.compile(r"decode_first_stage completed, taking ([\d.]+)s"),
}


class Recorder:
    """Takes the times of a picture's parts from what the library says."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.parts: dict[str, float] = {}
        self.step_ends: list[float] = []  # and the beginning of the first step

    def record_line(self, _level: object, text: str) -> None:
        """Take the seconds of a part from a line of the log."""
        for part, pattern in PART_LINES.items():
            if match := pattern.search(text):
                self.parts[part] = float(match[1])

    def record_step(self, step: int, steps: int, _seconds: float) -> None:
        """Take the time of a progress report; loading reports progress, too, of other numbers."""
        if steps == self.steps and step == len(self.step_ends):
            self.step_ends.append(time.perf_counter())


def measure_parts(task: Task, folder: Path, repeats: int) -> dict[str, Any]:
    """Return the seconds to load, and of each part of one picture; the first step warms up."""
    steps = 1 + repeats
    recorder = Recorder(steps)
    sd.set_log_callback(recorder.record_line)
    sd.set_progress_callback(recorder.record_step)  # without it, progress bars go to the output
    start = time.perf_counter()
    context = _open(task, folder)
    report: dict[str, Any] = {"load": time.perf_counter() - start}
    _draw(context, SIZE, _make_sigmas(steps))
    seconds = np.diff(recorder.step_ends).tolist()
    missing = PART_LINES.keys() - recorder.parts.keys()
    if missing or len(seconds) != steps:
        raise SystemExit("the log of stable-diffusion.cpp does not tell the times of its parts")
    report["parts"] = {part: [seconds] for part, seconds in recorder.parts.items()}
    report["parts"]["unet"] = seconds[1:]
    context.close()
    return report


def check(task: Task, folder: Path) -> dict[str, float]:
    """Compare one picture of one step with diffusers', and return the relative L2.

    The picture is small, to be quick. It has 8 bits: rounding alone is about 2e-3.
    """
    context = _open(task, folder)
    size = CHECKED_LATENTS * PIXELS
    picture = _draw(context, size, _make_sigmas(1)) / 255
    context.close()
    expected = _draw_with_diffusers(folder)
    return {"error": float(np.linalg.norm(picture - expected) / np.linalg.norm(expected))}


def _open(task: Task, folder: Path) -> sd.SDContext:
    """Load the model with weights of the task's precision."""
    options = sd.SDContextParams(model_path=str(find_single_file(folder)))
    options.n_threads = count_cores()
    options.wtype = sd.SDType[TYPES[task.precision]]
    options.prediction = sd.Prediction.EPS
    options.rng_type = sd.RngType.CPU  # torch's noise
    return sd.SDContext(options)


def _draw(context: sd.SDContext, size: int, sigmas: list[float]) -> np.ndarray:
    """Return a picture of bytes [H, W, 3], drawn by Euler's method without guidance."""
    request = sd.SDImageGenParams(prompt=PROMPT, width=size, height=size, seed=SEED)
    sample = request.sample_params
    sample.sample_steps = len(sigmas) - 1
    sample.cfg_scale = 1.0
    sample.sample_method = sd.SampleMethod.EULER
    sample.custom_sigmas = sigmas
    return context.generate_with_params(request)[0].to_numpy()


def _make_sigmas(steps: int) -> list[float]:
    """Return the noise levels of a number of steps; the first one is that of `TIMESTEP`."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)  # "alphas_cumprod"
    sigma = np.sqrt((1 - kept[TIMESTEP]) / kept[TIMESTEP])
    return np.linspace(sigma, 0, steps + 1).tolist()


def _draw_with_diffusers(folder: Path) -> np.ndarray:
    """Return the picture [H, W, 3] in [0, 1] that `check` wants."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        folder, safety_checker=None, torch_dtype=torch.float32
    )
    sigma = _make_sigmas(1)[0]
    with torch.no_grad():
        text = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
        shape = (1, 4, CHECKED_LATENTS, CHECKED_LATENTS)
        x = sigma * torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        eps = pipeline.unet(x / (sigma**2 + 1) ** 0.5, TIMESTEP, text).sample
        latents = (x - sigma * eps) / pipeline.vae.config.scaling_factor
        picture = pipeline.vae.decode(latents).sample
    return (picture / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
