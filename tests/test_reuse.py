"""`--reuse`: deep features are reused as by the published DeepCache, on diffusers."""

import gc
from collections.abc import Callable
from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest
import torch
from controls import make_adapter, make_controlnet, make_picture, save, their_pictures, to_pil
from deep_cache import CountingHelper, EditingHelper, deep_cache, guided_steps
from gpu import as_on, without_fusing
from kinds import EDITING
from oracle import Oracle, _generators, channels_last, psnr, relative_l2
from ours import pictures

from stable_diffusion import StableDiffusion, compiled, prediction
from stable_diffusion.control import Control
from stable_diffusion.device.backend import Backend
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.overflow import evaluate_steps
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.prediction import Shortcuts, make_predict

PROMPT, SEEDS = "a photo of a café, at night", [7, 8]
SAME = 1e-5  # relative L2 at most between equal latents
OTHER = 1e-2  # at least between others
SIZE = (4, 4)  # latents


@pytest.fixture(scope="module")
def load(checkpoint) -> Callable[[str], StableDiffusion]:
    """Return a function that loads a kind of model once; not to be changed."""
    loaded: dict[str, StableDiffusion] = {}

    def load_once(kind: str) -> StableDiffusion:
        if kind not in loaded:
            folder = checkpoint(kind)
            loaded[kind] = pipeline_class(load_model_config(folder))(folder)
        return loaded[kind]

    return load_once


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    """Return the model of this repository; not to be changed."""
    return StableDiffusion("tiny")


def begin(sd: StableDiffusion, **options):
    """Begin two small pictures."""
    options = {"num_steps": 5, "latent_size": SIZE, "seed": SEEDS[0], **options}
    return sd.generate_latents(PROMPT, 2, **options)


@torch.no_grad()
def their_latents(oracle: Oracle, sampler: str, guidance: float, steps: int = 5) -> np.ndarray:
    """Return the last latents of diffusers' pipeline, [B, h, w, C]."""
    pipeline = oracle.single
    pipeline.scheduler = oracle.scheduler(sampler)
    factor = pipeline.vae_scale_factor
    latents = pipeline(
        PROMPT,
        num_images_per_prompt=len(SEEDS),
        generator=_generators(SEEDS),
        output_type="latent",
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIZE[0] * factor,
        width=SIZE[1] * factor,
    ).images
    return channels_last(latents)


@pytest.mark.parametrize(
    ("kind", "interval", "sampler", "guidance"),
    [
        ("sd-1", 2, "dpm++2m", 5.0),
        ("sd-1", 5, "euler", 1.0),
        ("sd-2-v", 3, "ddim", 4.0),
        ("sdxl", 2, "euler-a", 4.0),
        ("sdxl", 3, "unipc", 1.0),
    ],
)
def test_latents_equal_deep_cache(load, oracle, kind, interval, sampler, guidance):
    with deep_cache(oracle(kind).single, interval):
        expected = their_latents(oracle(kind), sampler, guidance)
    options = {"sampler": sampler, "cfg_weight": guidance, "reuse": interval}
    assert relative_l2(evaluate_steps(begin(load(kind), **options)), expected) <= SAME


def test_skipping_changes_latents(load):
    """So the comparisons with diffusers would see if nothing was skipped, there or here."""
    options = {"sampler": "euler", "cfg_weight": 6.0}
    plain, *others = (
        evaluate_steps(begin(load("sd-1"), **options, **more))
        for more in ({}, {"reuse": 2}, {"cfg_range": (0, 0.6)})
    )
    assert all(relative_l2(each, np.array(plain)) >= OTHER for each in others)


@pytest.mark.parametrize("sampler", ["heun", "pndm"])
def test_samplers_of_two_calls(load, oracle, sampler):
    """Each call of the network counts, whatever its timestep."""
    with deep_cache(oracle("sd-1").single, 2, CountingHelper):
        expected = their_latents(oracle("sd-1"), sampler, 4.0, steps=3)
    options = {"sampler": sampler, "cfg_weight": 4.0, "num_steps": 3}
    assert relative_l2(evaluate_steps(begin(load("sd-1"), reuse=2, **options)), expected) <= SAME


@pytest.mark.parametrize(
    ("kind", "reuse", "cfg_range", "guided"),
    [
        ("sd-1", 1, (0, 0.6), {0, 1, 2}),
        ("sd-1", 3, (0, 0.2), {0}),
        ("sd-1", 3, (0.4, 1), {2, 3, 4}),
        ("sdxl", 2, (0.2, 0.6), {1, 2}),
    ],
)
def test_guidance_in_a_range(load, oracle, kind, reuse, cfg_range, guided):
    """If features are kept for the prompt alone, a step with guidance is a whole one."""
    theirs, options = oracle(kind), {"sampler": "euler", "cfg_weight": 6.0}
    cache = deep_cache(theirs.single, reuse, CountingHelper) if reuse > 1 else nullcontext()
    with cache, guided_steps(theirs.single, guided):
        expected = their_latents(theirs, "euler", 6.0)
    ours = evaluate_steps(begin(load(kind), reuse=reuse, cfg_range=cfg_range, **options))
    assert relative_l2(ours, expected) <= SAME


def test_from_a_picture(load, oracle):
    """The first step that is run is a whole one."""
    theirs, sd = oracle("sd-1"), load("sd-1")
    image = np.linspace(-1, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    with deep_cache(theirs.single, 3, CountingHelper):
        expected = theirs.pictures_from_image(
            image,
            PROMPT,
            seeds=SEEDS[:1],
            sampler="ddim",
            num_inference_steps=6,
            strength=0.7,
            guidance_scale=4.0,
        )
    options = {"num_steps": 6, "strength": 0.7, "cfg_weight": 4.0, "sampler": "ddim", "seed": 7}
    draw = lambda **more: pictures(  # noqa: E731
        sd, sd.generate_latents_from_image(image, PROMPT, **options, **more)
    )
    assert psnr(draw(reuse=3), expected) >= 50
    assert psnr(draw(), expected) < 50


def test_editing(load, oracle):
    """InstructPix2Pix has three parts of rows, of which the prompt's is the first.

    Of four steps the first is whole, the second has guidance, and the last two have none.
    """
    kind = f"sd-1{EDITING}"
    theirs, sd = oracle(kind), load(kind)
    image = np.linspace(-1, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    with (
        deep_cache(theirs.single, 4, EditingHelper),
        guided_steps(theirs.single, {0, 1}, n_parts=3),
    ):
        expected = theirs.pictures_edited(
            image,
            PROMPT,
            seeds=SEEDS[:1],
            sampler="euler",
            num_inference_steps=4,
            guidance_scale=7.0,
            image_guidance_scale=1.5,
        )
    options = {"num_steps": 4, "cfg_weight": 7.0, "sampler": "euler", "seed": 7}
    draw = lambda **more: pictures(  # noqa: E731
        sd, sd.generate_latents_from_image(image, PROMPT, **options, **more)
    )
    assert psnr(draw(reuse=4, cfg_range=(0, 0.5)), expected) >= 50
    assert psnr(draw(), expected) < 50


@pytest.mark.parametrize("pooled", [False, True])
def test_control_networks(load, oracle, tmp_path, pooled, monkeypatch):
    """Between whole steps only the first residual is computed, and it is added."""
    theirs, sd = oracle("sd-1"), StableDiffusion(load("sd-1").model)
    control = make_controlnet(theirs, 1, global_pool_conditions=pooled)
    picture = make_picture(1, (32, 32))
    with deep_cache(theirs.single, 2, CountingHelper):
        expected = their_pictures(
            theirs,
            "ControlNetPipeline",
            control,
            seeds=SEEDS[:1],
            prompt=PROMPT,
            sampler="euler",
            image=to_pil(picture),
            num_inference_steps=4,
            guidance_scale=5.0,
            control_guidance_end=0.75,
        )
    network = sd.load_control(save(control, tmp_path))
    calls = []
    whole = type(network.network).__call__
    monkeypatch.setattr(
        type(network.network), "__call__", lambda *args: (calls.append(1), whole(*args))[1]
    )
    controls = [Control(network, picture, end=0.75)]
    options = {"num_steps": 4, "cfg_weight": 5.0, "sampler": "euler", "seed": 7, "reuse": 2}
    latents = sd.generate_latents(PROMPT, latent_size=SIZE, controls=controls, **options)
    assert psnr(pictures(sd, latents), expected) >= 50
    assert len(calls) == 2


def test_an_adapter_acts_through_what_is_kept(load, oracle, tmp_path):
    theirs, sd = oracle("sd-1"), StableDiffusion(load("sd-1").model)
    adapter, picture = make_adapter(theirs), make_picture(2, (32, 32))
    with deep_cache(theirs.single, 2, CountingHelper):
        expected = their_pictures(
            theirs,
            "AdapterPipeline",
            adapter,
            seeds=SEEDS[:1],
            prompt=PROMPT,
            sampler="euler",
            image=to_pil(picture),
            num_inference_steps=3,
            guidance_scale=5.0,
        )
    controls = [Control(sd.load_control(save(adapter, tmp_path)), picture)]
    options = {"num_steps": 3, "cfg_weight": 5.0, "sampler": "euler", "seed": 7}
    latents = sd.generate_latents(PROMPT, latent_size=SIZE, controls=controls, reuse=2, **options)
    assert psnr(pictures(sd, latents), expected) >= 50


def begin_tiny(sd: StableDiffusion, seed: int = 1, **options):
    options = {"num_steps": 3, "reuse": 2, "cfg_weight": 3.0, "latent_size": (8, 8), **options}
    return sd.generate_latents("a red circle", seed=seed, **options)


def test_the_cache_belongs_to_the_call(tiny):
    """Two calls whose steps alternate, one of them begun again, are those alone."""
    alone = [evaluate_steps(begin_tiny(tiny, seed)) for seed in (1, 2)]
    first, second = begin_tiny(tiny, 1), begin_tiny(tiny, 2)
    mx.eval(next(second), next(second))
    second.restart()
    for x, y in zip(first, second, strict=True):
        mx.eval(x, y)
    assert mx.array_equal(x, alone[0]) and mx.array_equal(y, alone[1])


def test_more_steps_than_there_are(tiny):
    """Only the first step is whole then; 1 is off, to the bit."""
    whole = []
    keep = type(tiny.unet).predict_and_keep
    count = lambda *args: (whole.append(1), keep(*args))[1]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny.unet), "predict_and_keep", count)
        evaluate_steps(begin_tiny(tiny, reuse=99))
    assert len(whole) == 1
    options = {"num_steps": 3, "seed": 1, "cfg_weight": 3.0, "latent_size": (8, 8)}
    plain = evaluate_steps(tiny.generate_latents("a red circle", **options))
    assert mx.array_equal(evaluate_steps(begin_tiny(tiny, reuse=1, cfg_range=[0, 1])), plain)


def test_what_is_kept_is_freed(tiny):
    """It is small, and held from the first step to the last."""
    latents = begin_tiny(tiny, latent_size=(16, 16), num_steps=2)
    mx.eval(latents.inputs, tiny.unet.parameters())
    gc.disable()
    try:
        before = mx.get_active_memory()
        mx.eval(next(latents))
        kept = 2 * 16 * 16 * tiny.unet.config.block_out_channels[0] * 4
        assert kept <= mx.get_active_memory() - before < 2 * kept
        for x_t in latents:
            mx.eval(x_t)
        assert mx.get_active_memory() <= before
    finally:
        gc.enable()


def test_a_gpu_compiles_three_functions(tiny):
    """With guidance and without; what is kept goes from one to the other."""
    options = {"cfg_range": (0.2, 0.8), "num_steps": 5}
    expected = evaluate_steps(begin_tiny(tiny, **options))
    with as_on(Backend.METAL), without_fusing():
        sd = StableDiffusion("tiny")
        for _ in range(2):
            latents = begin_tiny(sd, **options)
            assert mx.allclose(evaluate_steps(latents), expected, atol=1e-3).item()
        functions = compiled._compiled[id(sd.unet)]
    # Steps 0 and 4 are without guidance, and 1 is a whole one, because it has more rows.
    assert {function: len(each.traced) for function, each in functions.items()} == {
        prediction.predict_and_keep: 2,
        prediction.predict_from_kept: 1,
    }


def test_gradients(tiny):
    """They go through what is kept, by finite differences."""
    dims = tiny.unet.config.cross_attention_dim
    embeddings = mx.random.normal((2, 7, dims), key=mx.random.key(0))

    def function(x: mx.array) -> mx.array:
        shortcuts = Shortcuts(2, frozenset({0}))
        predict = make_predict(
            tiny.unet, embeddings, None, 3.0, 0.0, mx.float32, shortcuts=shortcuts
        )
        first = predict(x, mx.array(600), 0)
        return predict(x + first, mx.array(300), 1).square().mean()

    x, direction = mx.random.normal((2, 1, 8, 8, 8), key=mx.random.key(1))
    slope = (mx.grad(function)(x) * direction).sum().item()
    step = 1e-2
    expected = (function(x + step * direction) - function(x - step * direction)).item() / 2 / step
    assert slope == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reuse": 0}, ValueError, "reuse must be at least 1, got 0"),
        ({"reuse": 2.0}, TypeError, "reuse must be an integer, got 2.0, a float"),
        ({"reuse": None}, TypeError, "reuse must be an integer, got None"),
        ({"cfg_range": 0.5}, TypeError, "cfg_range must be a start and an end .* got 0.5, a float"),
        ({"cfg_range": "0-1"}, TypeError, "cfg_range must be a start and an end"),
        ({"cfg_range": (0, 0.5, 1)}, ValueError, "cfg_range must be a start and an end"),
        ({"cfg_range": (0, 2)}, ValueError, r"the end of cfg_range must be in \[0, 1\], got 2"),
        ({"cfg_range": (0.5, 0.5)}, ValueError, "must start below its end, got 0.5 and 0.5"),
    ],
)
def test_wrong_values(tiny, options, error, message):
    with pytest.raises(error, match=message):
        tiny.generate_latents("a ring", **options)


def test_a_range_of_no_step(tiny):
    message = "guidance has no effect: none of 4 steps lies within its range, 0.3 to 0.4"
    with pytest.warns(UserWarning, match=message):
        tiny.generate_latents("a ring", num_steps=4, cfg_weight=3.0, cfg_range=(0.3, 0.4))
