"""Schedules and steps equal diffusers' Euler schedulers, step for step."""

import diffusers
import numpy as np
import pytest
from checkpoints import BETAS
from oracle import SCHEDULERS
from parity import PREDICTION_TYPES, SPACINGS, trajectory_error

from stable_diffusion.config import DiffusionConfig
from stable_diffusion.sampler import Sampler, ancestral_sigmas, make_schedule, training_sigmas

EXTRA_STEP = (61, 103, 121, 122)  # diffusers runs one step too many with trailing spacing


def make(name: str, **options):
    """Our config and diffusers' scheduler of the same options."""
    options = {**BETAS, "steps_offset": 1, **options}
    return DiffusionConfig(**options), SCHEDULERS[name](**options)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("n", [1000, 333])
def test_training_sigmas(beta_schedule, n):
    config, theirs = make("euler", beta_schedule=beta_schedule, num_train_timesteps=n)
    expected = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod) ** 0.5
    np.testing.assert_allclose(training_sigmas(config), expected.numpy(), rtol=4e-7)


@pytest.mark.parametrize("name", ["euler", "euler-a"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_schedule(name, spacing):
    config, theirs = make(name, timestep_spacing=spacing)
    for steps in range(1, 151):
        theirs.set_timesteps(steps)
        ours = make_schedule(config, steps)
        assert len(ours) == len(ours.sigmas) - 1 == steps
        n_theirs = steps + (spacing == "trailing" and steps in EXTRA_STEP)
        assert len(theirs.timesteps) == n_theirs
        assert np.array_equal(ours.timesteps, theirs.timesteps.numpy()[:steps])
        np.testing.assert_allclose(ours.sigmas[:-1], theirs.sigmas[:steps].numpy(), rtol=4e-7)
        assert ours.sigmas[-1] == 0
        assert ours.initial_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=4e-7)


def test_schedule_of_sdxl_turbo():
    config = DiffusionConfig(**BETAS)
    assert make_schedule(config, 2).timesteps.tolist() == [999, 499]
    assert make_schedule(config, 1).timesteps.tolist() == [999]


def test_steps_out_of_range():
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"from 1 to 1000, got {steps}"):
            make_schedule(DiffusionConfig(), steps)


@pytest.mark.parametrize("name", ["euler", "euler-a"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_trajectory(name, prediction_type, spacing):
    assert trajectory_error(name, prediction_type, spacing) <= 1e-5


def test_ancestral_sigmas_keep_the_variance():
    for sigma, sigma_next in ((14.6, 7.0), (1.0, 0.9), (0.03, 0.0)):
        down, up = ancestral_sigmas(sigma, sigma_next)
        assert down**2 + up**2 == pytest.approx(sigma_next**2)


def test_last_steps():
    schedule = make_schedule(DiffusionConfig(), 10)
    last = schedule.last(3)
    assert len(last) == 3
    assert last.timesteps.tolist() == schedule.timesteps[-3:].tolist()
    assert last.sigmas.tolist() == schedule.sigmas[-4:].tolist()
    assert last.initial_sigma == schedule.sigmas[7]
    assert schedule.last(10).timesteps.tolist() == schedule.timesteps.tolist()


def test_the_model_says_which_sampler():
    ancestral = DiffusionConfig(_class_name="EulerAncestralDiscreteScheduler")
    assert Sampler.for_model(ancestral).name == "euler-a"
    assert Sampler.for_model(ancestral, "euler").name == "euler"
    assert Sampler.for_model(DiffusionConfig(_class_name="PNDMScheduler")).name == "euler"
    with pytest.raises(ValueError, match="one of euler, euler-a, got 'heun'"):
        Sampler.for_model(ancestral, "heun")


def test_spacing_where_the_config_is_silent():
    """Trailing, not what diffusers' classes default to."""
    config = DiffusionConfig.from_dict({"_class_name": "PNDMScheduler"}, "scheduler_config.json")
    assert config.timestep_spacing == "trailing"
    written = diffusers.PNDMScheduler(**BETAS).config
    assert DiffusionConfig.from_dict(dict(written), "file").timestep_spacing == "leading"
