"""Schedules of noise levels, chosen timesteps and eta: which there are, and what is refused."""

import json

import mpmath
import numpy as np
import pytest
from checkpoints import BETAS
from diffusers.schedulers import AysSchedules
from oracle import SCHEDULERS
from parity import trajectory_error

from stable_diffusion.config.diffusion import LEVEL_OPTIONS, PREDICTION_TYPES, DiffusionConfig
from stable_diffusion.sampler.noise_levels import invert_beta
from stable_diffusion.sampler.sampler import Sampler

SAME = 1e-5
SD = DiffusionConfig(**BETAS)
CHOSEN = [999, 749, 499, 249]


def get_ratios(sampler: Sampler, num_steps: int) -> list[float]:
    return [step.start.ratio for step in sampler.schedule(num_steps).steps]


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.5])
def test_quantiles_of_the_beta_distribution(shape):
    """The distribution function, which mpmath computes otherwise, gives the probabilities back."""
    probabilities = np.array([0, 1e-9, 0.001, 0.05, 0.3, 0.5, 0.5 + 1e-9, 0.8, 1 - 1e-6, 1])
    quantiles = invert_beta(probabilities, shape)
    assert quantiles[[0, 5, -1]] == pytest.approx([0, 0.5, 1], abs=1e-15)
    found = [mpmath.betainc(shape, shape, 0, x, regularized=True) for x in quantiles]
    np.testing.assert_allclose(np.array(found, dtype=float), probabilities, rtol=1e-12)


@pytest.mark.parametrize("is_xl", [False, True])
def test_published_levels_of_ten_steps(is_xl):
    name = "StableDiffusionXL" if is_xl else "StableDiffusion"
    config = DiffusionConfig(**BETAS, is_xl=is_xl)
    published = AysSchedules[f"{name}Sigmas"][:-1]
    for sampler in ("euler", "euler-a", "dpm++2m"):
        ours = Sampler.for_model(config, sampler, "ays")
        assert get_ratios(ours, 10) == pytest.approx(published, rel=1e-6)
        times = [step.timestep for step in ours.schedule(10).steps]
        assert times == pytest.approx(AysSchedules[f"{name}Timesteps"], abs=1)
    assert times == [round(time) for time in times]  # of dpm++2m
    twenty = get_ratios(ours, 20)
    assert twenty[::2] == pytest.approx(published, rel=1e-6)
    assert twenty[1] ** 2 == pytest.approx(published[0] * published[1], rel=1e-6)
    assert twenty[-1] ** 2 == pytest.approx(published[-1] * 0.029, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"num_train_timesteps": 500}, "other noise levels"),
        ({"beta_end": 0.005}, "other noise levels"),
    ],
)
def test_levels_that_are_not_made_for_the_model(changes, what):
    sampler = Sampler.for_model(DiffusionConfig(**BETAS | changes), "euler", "ays")
    with pytest.raises(ValueError, match=f"schedule ays is made for .*{what}: use sgm-uniform"):
        sampler.schedule(10)


def test_levels_fall_in_the_longest_run():
    for sampler in (
        Sampler.for_model(SD, name, s)
        for name in ("euler", "dpm++2m")
        for s in ("karras", "exponential", "beta", "sgm-uniform", "simple", "ays")
    ):
        ratios = get_ratios(sampler, sampler.spec.max_steps(SD))
        assert (np.diff(ratios) < 0).all()
        assert len(get_ratios(sampler, 1)) == 1


@pytest.mark.parametrize("schedule", LEVEL_OPTIONS)
def test_configs_that_select_levels(schedule):
    for name in ("euler", "dpm++2m"):
        scheduler = SCHEDULERS[name](**{LEVEL_OPTIONS[schedule]: True}, timestep_spacing="leading")
        config = DiffusionConfig.from_dict(json.loads(scheduler.to_json_string()), "file")
        assert Sampler.for_model(config).schedule_name == schedule
        assert Sampler.for_model(config, "euler-a").schedule_name == "leading"
        assert Sampler.for_model(config, name, "linspace").schedule_name == "linspace"
        assert Sampler.for_model(config, name, "simple").schedule_name == "simple"
        assert Sampler.for_model(config, "lcm").schedule_name is None
    with pytest.raises(ValueError, match="use_karras_sigmas and use_beta_sigmas exclude"):
        DiffusionConfig.from_dict({"use_karras_sigmas": True, "use_beta_sigmas": True}, "file")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["euler", "dpm++2m", "lcm"])
def test_chosen_timesteps(name, spacing, prediction_type):
    """The spacing still says how the first latents are made."""
    for timesteps in (CHOSEN, [800], [993, 71, 0], AysSchedules["StableDiffusionTimesteps"]):
        options = {"timesteps": timesteps, "timestep_spacing": spacing}
        assert trajectory_error(name, prediction_type, None, **options) <= SAME


def test_chosen_timesteps_replace_the_schedule():
    config = DiffusionConfig(**BETAS, use_karras_sigmas=True)
    sampler = Sampler.for_model(config, "dpm++2m", timesteps=CHOSEN)
    assert [step.timestep for step in sampler.schedule(4).steps] == CHOSEN
    assert sampler.schedule_name is None and sampler.config.schedule == "trailing"
    with pytest.raises(ValueError, match="4 timesteps are not 3 steps"):
        sampler.schedule(3)


@pytest.mark.parametrize(
    ("name", "timesteps", "message"),
    [
        ("euler-a", CHOSEN, "sampler euler-a does not take timesteps: use one of euler, dpm"),
        ("ddim", CHOSEN, "sampler ddim does not take timesteps"),
        ("euler", [1000, 4], "from 999 at most to 0 at least; got 1000, 4"),
        ("euler", [4, 4], "must fall from one to the next"),
        ("euler", [4, 5], "must fall from one to the next"),
        ("euler", [4, -1], "must fall from one to the next"),
        ("euler", [], "from 999 at most to 0 at least; got none"),
    ],
)
def test_timesteps_that_are_refused(name, timesteps, message):
    with pytest.raises(ValueError, match=message):
        Sampler.for_model(SD, name, timesteps=timesteps)
    with pytest.raises(ValueError, match="schedule karras: leave one out"):
        Sampler.for_model(SD, "euler", "karras", timesteps=CHOSEN)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", ["leading", "trailing", "linspace"])
def test_eta_of_ddim(schedule, prediction_type):
    for eta in (0.3, 1.0):
        for options in ({}, {"set_alpha_to_one": False}):
            error = trajectory_error("ddim", prediction_type, schedule, eta=eta, **options)
            assert error <= SAME
    assert trajectory_error("ddim", prediction_type, schedule, eta=0.0) <= SAME


def test_eta_with_zero_terminal_snr():
    options = {"rescale_betas_zero_snr": True, "eta": 0.7}
    assert trajectory_error("ddim", "v_prediction", "trailing", **options) <= SAME


def test_which_samplers_take_eta():
    assert not Sampler.for_model(SD, "ddim").needs_noise
    assert Sampler.for_model(SD, "ddim", eta=0.1).needs_noise
    with pytest.raises(ValueError, match="sampler euler does not take eta: use one of ddim"):
        Sampler.for_model(SD, "euler", eta=0.3)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got "):
            Sampler.for_model(SD, "ddim", eta=eta)
