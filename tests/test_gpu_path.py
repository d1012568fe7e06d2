"""Pictures as a GPU makes them: no kernels of the CPU, half precision, and compiled functions.

The float32 pictures are compared with diffusers', and those in half precision with the float32
ones. `mx.compile` does all of its work except fusing, see `gpu.without_fusing`; one test fuses.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from gpu import as_on, without_fusing
from kinds import KINDS
from oracle import psnr
from ours import pictures

from stable_diffusion import StableDiffusion
from stable_diffusion.config.networks import UNetConfig
from stable_diffusion.denoising import Denoising
from stable_diffusion.device import memory
from stable_diffusion.device.backend import Backend
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.unet import UNetModel

PROMPTS, SEEDS = ["a photo of a café, at night", "a fire"], [7, 3]
SAME = 50  # dB at least between equal pictures
HALF = 45  # dB at least between pictures in half and in single precision
METAL, CUDA = Backend.METAL, Backend.CUDA

Load = Callable[..., StableDiffusion]


@pytest.fixture(scope="module")
def load(checkpoint) -> Load:
    """Return a function that loads a kind of model for a backend, once. Not to be changed."""

    @cache
    def load_once(kind: str, backend: Backend, float16: bool = False) -> StableDiffusion:
        with as_on(backend):
            return open_kind(kind if kind == "tiny" else checkpoint(kind), float16)

    return load_once


def open_kind(model: Path | str, float16: bool = False) -> StableDiffusion:
    """Return a new pipeline of a folder, or of the embedded model."""
    return pipeline_class(load_model_config(model))(model, float16=float16)


def draw(sd: StableDiffusion, backend: Backend, start: Callable[..., Denoising]) -> np.ndarray:
    """Return the pictures of `start(sd)` as that backend makes them, uint8 [B, H, W, 3]."""
    with as_on(backend), without_fusing():
        return pictures(sd, start(sd))


class Case(NamedTuple):
    """How pictures are made, each of its own prompt with its own seed."""

    kind: str
    backend: Backend
    sampler: str
    guidance: float = 4.0
    size: tuple[int, int] = (4, 4)  # height and width in latents
    rescale: float = 0.0
    steps: int = 2
    n_images: int = 2

    def start(self, sd: StableDiffusion) -> Denoising:
        """Begin the pictures."""
        return sd.generate_latents(
            PROMPTS[: self.n_images],
            n_images=self.n_images,
            num_steps=self.steps,
            cfg_weight=self.guidance,
            latent_size=self.size,
            seed=SEEDS[: self.n_images],
            sampler=self.sampler,
            guidance_rescale=self.rescale,
        )


# The kinds whose networks differ. Only from 256 tokens on, some widths of heads are padded.
CASES = [
    Case("sd-1", METAL, "dpm++2m", guidance=6.0, size=(5, 9), steps=3),
    Case("sd-2", METAL, "ddim", rescale=0.7),
    Case("sd-2-v", CUDA, "euler", size=(6, 5)),
    Case("sdxl", CUDA, "euler-a", guidance=1.0),
    Case("unusual", METAL, "euler", guidance=6.0, size=(6, 10)),
    Case("sd-1-published", METAL, "lcm", size=(16, 17), guidance=1.0, steps=1, n_images=1),
    Case("sdxl-published", METAL, "dpm++2m"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_text_to_picture(load, oracle, case):
    """`test_single_file.py` compares the CPU's pictures of the published kinds with diffusers."""
    sd = load(case.kind, case.backend)
    ours = draw(sd, case.backend, case.start)
    factor = sd.config.autoencoder.factor
    if case.kind in KINDS:
        expected = oracle(case.kind).pictures(
            PROMPTS[: case.n_images],
            seeds=SEEDS[: case.n_images],
            sampler=case.sampler,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            guidance_rescale=case.rescale,
            height=case.size[0] * factor,
            width=case.size[1] * factor,
        )
    else:
        expected = draw(load(case.kind, Backend.CPU), Backend.CPU, case.start)
    assert psnr(ours, expected) >= SAME
    assert expected.std() >= 30  # of 255: they show something
    half = draw(load(case.kind, case.backend, float16=True), case.backend, case.start)
    assert psnr(half, ours) >= HALF


@pytest.mark.parametrize(("kind", "backend"), [("sd-1", METAL), ("sdxl", CUDA), ("unusual", METAL)])
def test_picture_to_picture(load, oracle, kind, backend):
    y, x = np.mgrid[-1:1:32j, -1:1:48j]
    image = np.stack([x, y, x * y], axis=-1).astype(np.float32)
    start = lambda sd: sd.generate_latents_from_image(  # noqa: E731
        image, PROMPTS[0], n_images=2, strength=0.7, num_steps=3, cfg_weight=3, seed=7
    )
    ours = draw(load(kind, backend), backend, start)
    theirs = oracle(kind).pictures_from_image(
        image, PROMPTS[0], seeds=[7, 8], strength=0.7, num_inference_steps=3, guidance_scale=3
    )
    assert psnr(ours, theirs) >= SAME
    assert psnr(draw(load(kind, backend, float16=True), backend, start), ours) >= HALF


def begin(sd: StableDiffusion, seed: int = 7, **options) -> Denoising:
    """Begin a small picture with guidance; `options` are those of `generate_latents`."""
    options = {"num_steps": 2, "cfg_weight": 4.0, "latent_size": (4, 4), **options}
    return sd.generate_latents(options.pop("text", PROMPTS[0]), seed=seed, **options)


# How a picture is made otherwise, and the kinds that are made so.
WAYS = {
    "tiny": ("tiny", {"latent_size": (8, 8)}),
    "long prompts": ("sdxl", {"text": "a [red] (round:1.3) circle, " * 20, "long_prompt": True}),
    "weights": ("sd-2", {"text": "a [red] (round:1.3) circle", "prompt_weights": True}),
    "clip skip": ("sdxl", {"clip_skip": 1}),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_make_pictures(load, way):
    """The pictures equal those of the CPU, which other tests compare with diffusers."""
    kind, options = WAYS[way]
    start = lambda sd: begin(sd, **options)  # noqa: E731
    expected = draw(load(kind, Backend.CPU), Backend.CPU, start)
    ours = draw(load(kind, METAL), METAL, start)
    assert psnr(ours, expected) >= SAME
    assert psnr(draw(load(kind, METAL, float16=True), METAL, start), ours) >= HALF


def test_little_memory(checkpoint, monkeypatch):
    """Strips, and attention in chunks, make the same picture.

    On CUDA in float32 attention stores its scores.
    """
    y, x = np.mgrid[-1:1:56j, -1:1:72j]
    image = np.stack([x, y, x * y], axis=-1).astype(np.float32)
    start = lambda sd: sd.generate_latents_from_image(  # noqa: E731
        image, PROMPTS[0], strength=0.5, num_steps=2, cfg_weight=3, seed=7
    )
    folder = checkpoint("sd-1")
    expected = draw(open_kind(folder), Backend.CPU, start)
    monkeypatch.setattr(memory, "read_total_memory", lambda: 4e6)
    assert psnr(draw(open_kind(folder), CUDA, start), expected) >= SAME


def test_half_precision_is_for_the_networks_alone(load, monkeypatch):
    """Guidance and the steps of the samplers are computed in float32."""
    sd, types = load("sd-1", METAL, float16=True), []
    predict = UNetModel.__call__

    def note_type(unet: UNetModel, x: mx.array, *rest) -> mx.array:
        prediction = predict(unet, x, *rest)
        types.extend([x.dtype, prediction.dtype])
        return prediction

    monkeypatch.setattr(UNetModel, "__call__", note_type)
    with as_on(METAL), without_fusing():
        latents = begin(sd, guidance_rescale=0.5, latent_size=(3, 4))
        for x_t in latents:
            assert {x_t.dtype, latents.estimate.dtype, latents.prediction.dtype} == {mx.float32}
    assert set(types) == {mx.float16}
    assert latents.inputs[0].dtype == mx.float32 and latents.inputs[1].dtype == mx.float16


def test_guidance_exceeds_half_precision(load, monkeypatch):
    """The difference of the two predictions exceeds it, and so does the result."""
    sd = load("sd-1", METAL, float16=True)

    def predict(unet: UNetModel, x: mx.array, *_) -> mx.array:
        ones = mx.ones_like(x[: len(x) // 2])
        return mx.concatenate([4e4 * ones, -4e4 * ones])

    monkeypatch.setattr(UNetModel, "__call__", predict)
    with as_on(METAL), without_fusing():
        latents = begin(sd, cfg_weight=4.0)
        next(latents)
    assert (latents.prediction == -4e4 + 4 * 8e4).all().item()


def test_a_fused_step(checkpoint):
    """`mx.compile` with fusing gives the same numbers, to the bit, in half precision.

    A CPU compiles 15 fused kernels for a UNet of one block whose norms are of two sizes, and more
    than twice as many for a UNet of the other tests.
    """
    config = UNetConfig(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=4,
        norm_eps=1e-6,
    )

    def run() -> mx.array:
        """Return the last latents that a new network gives."""
        mx.random.seed(0)
        sd.unet = UNetModel(config)
        sd.unet.set_dtype(mx.float16)
        for x_t in begin(sd, cfg_weight=1.0, latent_size=(2, 2)):
            mx.eval(x_t)
        return x_t

    with as_on(METAL):
        sd = open_kind(checkpoint("sd-1"), float16=True)
        with without_fusing():
            expected = run()
        assert mx.array_equal(run(), expected).item()
