"""A second pass at a larger size equals two calls of diffusers with the same generators."""

import warnings
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import DiagonalGaussianDistribution, Oracle, psnr
from ours import pictures
from PIL import Image
from torch.nn.functional import interpolate

from stable_diffusion import StableDiffusion
from stable_diffusion.control import Control
from stable_diffusion.hires import (
    compute_size,
    continue_streams,
    count_steps,
    enlarge_latents,
    start_second_pass,
)
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.utils.size import Size

PROMPT = "a photo of a café, at night"
SAME = 50  # dB at least between equal pictures
SEEDS = [7, 8]
STEPS, CFG = 4, 3.0
X_0 = mx.zeros((1, 4, 4, 8))  # latents of the embedded model


@torch.no_grad()
def make_expected(
    oracle: Oracle, sampler: str, size: Size, upscale: str, strength: float, n: int | None
) -> np.ndarray:
    """Return diffusers' pictures of a text at 64×48, made again from them at a larger size."""
    text = oracle.single
    text.scheduler = oracle.scheduler(sampler)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    common = {"generator": generators, "guidance_scale": CFG}
    latents = text(
        [PROMPT] * 2,
        output_type="latent",
        num_inference_steps=STEPS,
        **{"width": 64, "height": 48, **common},
    ).images
    if upscale == "latent":
        image = interpolate(latents, (size.height // 8, size.width // 8), mode="bilinear")
    else:
        decoded = text.vae.decode(latents / text.vae.config.scaling_factor).sample
        first = text.image_processor.postprocess(decoded, output_type="pil")
        image = [each.resize(size, Image.Resampling.LANCZOS) for each in first]
    again = oracle.make_other("Img2Img", sampler)
    total = STEPS
    if n is not None:
        total = int(n / strength)
        strength = min((n + 0.5) / total, 1)  # so that diffusers runs n steps
    with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, _: self.mean):
        images = again(
            [PROMPT] * 2,
            image=image,
            strength=strength,
            num_inference_steps=total,
            output_type="np",
            **common,
        ).images
    return (images * 255).round().astype(np.uint8)


def make_first(sd: StableDiffusion, **options):
    """Return the finished first pass of two pictures at 64×48, and its last latents."""
    options = {"num_steps": STEPS, "cfg_weight": CFG, "latent_size": (6, 8), **options}
    first = sd.generate_latents(PROMPT, n_images=2, seed=SEEDS, **options)
    for x_t in first:
        mx.eval(x_t)
    return first, x_t


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return StableDiffusion("tiny")


def test_controls_of_the_second_pass(tiny):
    """They are those of the first one, unless others are given."""
    network = tiny.load_control("outline")
    controls = [Control(network, mx.zeros((8, 8, 3))) for _ in range(2)]
    first = tiny.generate_latents("a ring", num_steps=1, latent_size=(4, 4), controls=controls[:1])
    for given, expected in ((None, controls[:1]), (controls[1:], controls[1:]), ([], [])):
        second = start_second_pass(tiny, first, X_0, 1.5, controls=given)
        assert second.origin.generation.controls == tuple(expected)
    with pytest.raises(TypeError, match="controls must be a list of Control, got one alone"):
        start_second_pass(tiny, first, X_0, 1.5, controls=controls[0])


def load(folder) -> StableDiffusion:
    return pipeline_class(load_model_config(folder))(folder)


@pytest.mark.parametrize(
    ("kind", "sampler", "upscale", "strength", "n"),
    [
        ("sd-1", "euler-a", "latent", 0.5, None),
        ("sd-1", "dpm++2m", "lanczos", 0.7, 3),
        ("sdxl", "euler-a", "lanczos", 1.0, 2),
    ],
)
def test_it_equals_two_calls_of_diffusers(checkpoint, oracle, kind, sampler, upscale, strength, n):
    """euler-a draws noise in each step, after which the second pass goes on."""
    sd = load(checkpoint(kind))
    first, x_0 = make_first(sd, sampler=sampler)
    size = compute_size(Size(64, 48), 1.5, 8)
    sd.free_text_encoders()  # they are not needed
    second = start_second_pass(sd, first, x_0, 1.5, strength, n, upscale)
    assert len(second) == (n or int(STEPS * strength)) == count_steps(first, strength, n)
    ours = pictures(sd, second)
    assert ours.shape == (2, size.height, size.width, 3)
    expected = make_expected(oracle(kind), sampler, size, upscale, strength, n)
    assert psnr(ours, expected) >= SAME
    assert expected.std() >= 30

    # One picture alone, whose embeddings are other rows, and whose noise is another stream's.
    part = start_second_pass(sd, first, x_0, 1.5, strength, n, upscale, pictures=range(1, 2))
    assert psnr(pictures(sd, part), ours[1:]) >= SAME
    part.restart()
    assert psnr(pictures(sd, part), ours[1:]) >= SAME


@pytest.mark.parametrize(("sampler", "n_drawn"), [("euler-a", 3), ("lcm", 2), ("euler", 1)])
def test_the_noise_goes_on(tiny, sampler, n_drawn):
    """It is drawn for the first latents, and for each step that adds it: not for LCM's last one."""
    options = {"num_steps": 2, "seed": 3, "latent_size": (4, 4), "sampler": sampler}
    first = tiny.generate_latents("a red circle", **options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(n_drawn):
        torch.randn(8, 4, 4, generator=generator)
    (stream,) = continue_streams(first.origin, (4, 4, 8), range(1))
    expected = torch.randn(8, 6, 6, generator=generator).numpy()
    assert np.abs(stream.normal((8, 6, 6)) - expected).max() < 1e-5


@pytest.mark.parametrize("size", [Size(13, 9), Size(8, 6), Size(5, 17)])
def test_latents_are_enlarged_as_by_pytorch(size):
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 4)).astype(np.float32)
    theirs = interpolate(
        torch.from_numpy(x).double().permute(0, 3, 1, 2), (size.height, size.width), mode="bilinear"
    )
    ours = np.array(enlarge_latents(mx.array(x), size))
    assert np.abs(ours - theirs.permute(0, 2, 3, 1).numpy()).max() < 1e-5


def test_sizes():
    assert compute_size(Size(512, 768), 2, 8) == (1024, 1536)
    assert compute_size(Size(512, 512), 1.3, 8) == (664, 664)  # 665.6, in whole latents
    assert compute_size(Size(800, 800), 1.15, 8) == (920, 920)  # 919.9999999999999 in floats
    with pytest.raises(ValueError, match=r"^64x64 times 1\.1 is 64x64, as sides are multiples"):
        compute_size(Size(64, 64), 1.1, 8)
    with pytest.raises(ValueError, match=r"times 3 is 6144x6144, more than 16777216 pixels$"):
        compute_size(Size(2048, 2048), 3, 8)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"scale": 1}, ValueError, "scale must be above 1, got 1"),
        ({"scale": float("nan")}, ValueError, r"scale must be in \[1, 4\], got nan"),
        ({"scale": "2"}, TypeError, "scale must be a number, got '2', a str"),
        ({"strength": 0}, ValueError, "strength must be above 0, got 0"),
        ({"strength": 1.5}, ValueError, r"strength must be in \[0, 1\], got 1.5"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        (
            {"num_steps": 900, "strength": 0.5},
            ValueError,
            "900 steps at strength 0.5 are the last of 1800: steps must be from 1 to 1000",
        ),
        ({"upscale": "nearest"}, ValueError, "upscale must be one of latent, lanczos, or an RRD"),
        ({"upscale": 3}, TypeError, "upscale must be one of latent, lanczos, or an RRDBNet, got 3"),
        ({"pictures": range(3)}, ValueError, r"pictures must be a part of range\(1\)"),
        ({"pictures": [0]}, TypeError, r"pictures must be a range or None, got \[0\], a list"),
        ({"x_0": mx.zeros((1, 4, 5, 8))}, ValueError, r"x_0 must be the last latents of first"),
        ({"first": 1}, TypeError, "first must be what generate_latents returned, got 1, an int"),
    ],
)
def test_arguments_are_checked_when_called(tiny, options, kind, message):
    first = tiny.generate_latents("a red circle", num_steps=1, latent_size=(4, 4))
    arguments = {"first": first, "x_0": X_0, **options}
    with pytest.raises(kind, match=message):
        start_second_pass(tiny, **arguments)


def test_a_picture_that_overflows(tiny, monkeypatch):
    """Its latents are not finite, so that the VAE is loaded again; bytes would be a black picture.

    The other picture is not affected.
    """
    first, x_0 = make_first(tiny, num_steps=1)
    decode = StableDiffusion.decode
    pictures_before = iter([mx.nan, 0])

    def overflow(self, x, tiled=None):
        return decode(self, x, tiled) + next(pictures_before)

    monkeypatch.setattr(StableDiffusion, "decode", overflow)
    second = start_second_pass(tiny, first, x_0, 1.5, 0.5, upscale="lanczos")
    is_finite = mx.isfinite(second.inputs[0]).reshape(2, -1)
    assert not is_finite[0].any().item() and is_finite[1].all().item()


def test_calls_without_a_second_pass(tiny):
    sd = tiny
    first = sd.generate_latents_from_image(np.zeros((32, 32, 3), np.float32), "a", strength=0)
    with pytest.raises(ValueError, match="^first must be what generate_latents returned"):
        start_second_pass(sd, first, X_0)
    timed = sd.generate_latents("a", latent_size=(4, 4), sampler="euler", timesteps=[999, 499, 9])
    assert len(start_second_pass(sd, timed, X_0, strength=0.7)) == 2
    with pytest.raises(ValueError, match="^num_steps and timesteps: leave one out"):
        start_second_pass(sd, timed, X_0, num_steps=2)
    with pytest.warns(UserWarning, match="3 timesteps at strength 0.1 are less than one"):
        start_second_pass(sd, timed, X_0, strength=0.1)
    with warnings.catch_warnings(action="error"):
        assert count_steps(timed, 0.1, None) == 1
