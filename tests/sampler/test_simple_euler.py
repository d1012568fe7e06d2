"""The original example's samplers make the steps of ours at the same noise levels."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import BETAS
from oracle import relative_l2
from parity import random_normal

from stable_diffusion.config.diffusion import DiffusionConfig
from stable_diffusion.model_io import load_diffusion_config
from stable_diffusion.sampler import Sampler, SimpleEulerAncestralSampler, SimpleEulerSampler

CONFIG = DiffusionConfig(**BETAS)
SAME = 1e-5
KINDS = {"euler": SimpleEulerSampler, "euler-a": SimpleEulerAncestralSampler}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_steps_equal_those_of_our_sampler(name, dtype):
    """1,000 training steps divide into 10 without a rest: trailing spacing has the same times."""
    simple = KINDS[name](CONFIG)
    sampler = Sampler.for_model(CONFIG, name, "trailing")
    x = expected = mx.array(random_normal(1, 8, 8, 4))
    for i, ((t, t_prev), step) in enumerate(
        zip(simple.timesteps(10), sampler.schedule(10).steps, strict=True)
    ):
        assert t.item() == pytest.approx(step.timestep + 1, abs=1e-3)
        assert simple.sigmas(t).item() == pytest.approx(step.start.ratio, rel=1e-5)
        key, prediction = mx.random.key(i), mx.tanh(2 * x + i)
        options = {"key": key} if name == "euler-a" else {}
        x = simple.step(prediction.astype(dtype), x.astype(dtype), t, t_prev, **options)
        assert x.dtype == dtype
        fresh = mx.random.normal(x.shape, key=key)
        expected, _ = sampler.step(expected, prediction, step, None, fresh)
        assert relative_l2(x, expected) <= (SAME if dtype == mx.float32 else 0.01)
        x = expected


@pytest.mark.parametrize("sampler", [SimpleEulerSampler, SimpleEulerAncestralSampler])
def test_noise_has_the_variance_of_its_level(sampler):
    simple = sampler(load_diffusion_config("tiny"))
    assert simple.max_time == 1000
    assert simple.sigmas(0).item() == 0
    key = mx.random.key(0)
    prior = simple.sample_prior((1, 64, 64, 4), key=key)
    sigma = simple.sigmas(simple.max_time).item()
    assert prior.std().item() == pytest.approx(sigma / (sigma**2 + 1) ** 0.5, rel=0.02)
    assert simple.sample_prior((1, 2, 2, 4), dtype=mx.float16).dtype == mx.float16
    x = mx.array(random_normal(1, 8, 8, 4))
    noise = mx.random.normal(x.shape, key=key)
    sigma = simple.sigmas(500.5)
    noisy = simple.add_noise(x, 500.5, key=key)
    assert relative_l2(noisy * mx.sqrt(sigma**2 + 1), x + sigma * noise) <= SAME
    assert np.array_equal(simple.add_noise(x, 0), x)


def test_levels_between_two_times():
    simple = SimpleEulerSampler(CONFIG)
    low, middle, high = simple.sigmas(mx.array([10.0, 10.25, 11.0])).tolist()
    assert middle == pytest.approx(0.75 * low + 0.25 * high, rel=1e-6)


def test_times_from_a_picture():
    simple = SimpleEulerSampler(CONFIG)
    steps = simple.timesteps(4, start_time=800)
    assert [(t.item(), t_prev.item()) for t, t_prev in steps] == [
        (800, 600),
        (600, 400),
        (400, 200),
        (200, 0),
    ]
    for start in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"above 0, at most 1000, got {start}"):
            simple.timesteps(4, start_time=start)
