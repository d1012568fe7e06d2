"""Whole pictures of `tiny`, which has trained weights, against the same pictures of the CPU."""

import mlx.core as mx
import numpy as np

from stable_diffusion import StableDiffusion

from .devices import evaluate, on_cpu, on_device
from .findings import Findings, Limits, Options

PROMPT = "a small red circle left of a big blue star on a yellow background"
NUM_STEPS = 8
SAMPLERS = ("euler", "euler-a", "ddim", "dpm++2m", "lcm")
# Steps multiply differences.
LIMITS = {"float32": Limits(1e-2, 60), "float16": Limits(3e-2, 45)}


def check_pictures(options: Options) -> Findings:
    """Check two pictures with each sampler, with guidance, and one that starts from a picture."""
    findings = Findings()
    samplers = SAMPLERS[:2] if options.is_quick else SAMPLERS
    with on_cpu():
        sd = StableDiffusion("tiny")
        right = {sampler: evaluate(make_pictures, sd, sampler) for sampler in samplers}
        start = right[samplers[0]][0]
        right_second = evaluate(make_from_picture, sd, start)
    for name in LIMITS:
        with on_device():
            sd = StableDiffusion("tiny", float16=name == "float16")
            for sampler in samplers:
                pictures = evaluate(make_pictures, sd, sampler)
                findings.compare(f"{sampler}, {name}", pictures, right[sampler], LIMITS[name])
            pictures = evaluate(make_from_picture, sd, start)
        findings.compare(f"from a picture, {name}", pictures, right_second, LIMITS[name])
    return findings


def make_pictures(sd: StableDiffusion, sampler: str) -> mx.array:
    """Return two pictures [2, H, W, 3] in [0, 1], as the scripts make them."""
    latents = sd.generate_latents(PROMPT, 2, NUM_STEPS, 4.0, seed=1, sampler=sampler)
    return _finish(sd, latents)


def make_from_picture(sd: StableDiffusion, picture: np.ndarray) -> mx.array:
    """Return a picture [1, H, W, 3] in [0, 1] that starts from another."""
    image = 2 * picture - 1
    latents = sd.generate_latents_from_image(image, PROMPT, 1, 0.6, NUM_STEPS, 4.0, seed=1)
    return _finish(sd, latents)


def _finish(sd: StableDiffusion, latents) -> mx.array:
    for x_t in latents:
        mx.eval(x_t)
    return sd.decode(x_t)
