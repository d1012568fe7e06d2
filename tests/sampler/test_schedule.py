"""Schedules have the times and noise levels of diffusers' schedulers."""

import diffusers
import numpy as np
import pytest
from checkpoints import BETAS
from oracle import SCHEDULERS, scheduler_options, set_timesteps
from parity import SIMPLE_SAMPLERS

from stable_diffusion.config.diffusion import SPACINGS, DiffusionConfig
from stable_diffusion.sampler.sampler import SAMPLERS, Sampler
from stable_diffusion.sampler.schedule import (
    CLEAN,
    Level,
    Schedule,
    compute_alphas_bar,
    compute_ratios,
)

EXTRA_STEP = (61, 103, 121, 122)  # diffusers runs one step too many with trailing spacing
NUMBERS_OF_STEPS = sorted({*range(1, 12), *range(12, 151, 9), *EXTRA_STEP})
ROUNDING = 4e-7


def make_both(name: str, schedule: str | None, **options) -> tuple[Sampler, object]:
    """Return our sampler and diffusers' scheduler with the same options."""
    options = {**BETAS, "steps_offset": 1, "timestep_spacing": "leading", **options}
    theirs = SCHEDULERS[name].from_config({**options, **scheduler_options(name, schedule)})
    return Sampler.for_model(DiffusionConfig(**options), name, schedule), theirs


def get_timesteps(schedule: Schedule) -> list[float]:
    return [step.timestep for step in schedule.steps]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("n", [1000, 333])
def test_training_levels(beta_schedule, n):
    options = {**BETAS, "beta_schedule": beta_schedule, "num_train_timesteps": n}
    ours = compute_alphas_bar(DiffusionConfig(**options))
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1.2e-7)  # of one rounding at most

    options["rescale_betas_zero_snr"] = True
    ours = compute_alphas_bar(DiffusionConfig(**options))
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # PyTorch's square root is less exact
    assert ours[-1] == theirs[-1] == 0
    assert compute_ratios(DiffusionConfig(**options))[-1] == pytest.approx(4096)


@pytest.mark.parametrize(
    ("name", "schedule"), [(name, s) for name in SIMPLE_SAMPLERS for s in SAMPLERS[name].schedules]
)
def test_schedule(name, schedule):
    sampler, theirs = make_both(name, schedule)
    for num_steps in NUMBERS_OF_STEPS:
        set_timesteps(theirs, schedule, num_steps)
        ours = sampler.schedule(num_steps)
        assert len(ours) == len(ours.steps) == num_steps
        n_theirs = num_steps + (schedule == "trailing" and num_steps in EXTRA_STEP)
        assert len(theirs.timesteps) == n_theirs
        assert get_timesteps(ours) == pytest.approx(theirs.timesteps[:num_steps].tolist(), rel=1e-6)
        if hasattr(theirs, "sigmas"):
            levels = [step.start.ratio for step in ours.steps]
            np.testing.assert_allclose(levels, theirs.sigmas[:num_steps].numpy(), rtol=ROUNDING)
        else:
            levels = [step.start.alpha**2 for step in ours.steps]
            expected = theirs.alphas_cumprod[theirs.timesteps[:num_steps]]
            np.testing.assert_allclose(levels, expected, rtol=ROUNDING)
        assert ours.steps[-1].end == CLEAN or name == "ddim"
        if name.startswith("euler"):
            sigma = float(theirs.init_noise_sigma) * ours.steps[0].start.alpha
            assert ours.initial_sigma == pytest.approx(sigma, rel=ROUNDING)
        else:
            assert ours.initial_sigma == theirs.init_noise_sigma == 1


@pytest.mark.parametrize("original", [50, 100, 30])
def test_lcm_schedule(original):
    sampler, theirs = make_both("lcm", None, original_inference_steps=original)
    for num_steps in range(1, original + 1):
        theirs.set_timesteps(num_steps)
        assert get_timesteps(sampler.schedule(num_steps)) == theirs.timesteps.tolist()


def test_schedule_of_sdxl_turbo():
    config = DiffusionConfig(**BETAS)
    assert get_timesteps(Sampler(config, "euler-a").schedule(2)) == [999, 499]
    assert get_timesteps(Sampler(config, "euler-a").schedule(1)) == [999]


def test_karras_is_denser_at_low_noise():
    for name in ("euler", "dpm++2m"):
        karras, plain = (make_both(name, s)[0].schedule(20) for s in ("karras", "linspace"))
        assert karras.steps[10].start.ratio < 0.7 * plain.steps[10].start.ratio


@pytest.mark.parametrize("ratio", [0.03, 1.0, 14.6, 4096.0])
def test_level(ratio):
    level = Level.from_ratio(ratio)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert level.ratio == pytest.approx(ratio)
    same = Level.from_alpha_bar(level.alpha**2)
    assert (same.alpha, same.sigma) == pytest.approx((level.alpha, level.sigma))


def test_last_steps():
    schedule = Sampler(DiffusionConfig(), "euler").schedule(10)
    assert schedule.last(3).steps == schedule.steps[7:]
    assert schedule.last(10).steps == schedule.steps


@pytest.mark.parametrize(
    ("name", "most"), [("euler", 1000), ("ddim", 1000), ("dpm++2m", 999), ("lcm", 50)]
)
def test_steps_out_of_range(name, most):
    for spacing in SPACINGS:
        config = DiffusionConfig(timestep_spacing=spacing)
        for steps in (0, -1, most + 1):
            with pytest.raises(ValueError, match=f"from 1 to {most}, got {steps}"):
                Sampler(config, name).schedule(steps)
        assert len({step.start for step in Sampler(config, name).schedule(most).steps}) == most


def test_steps_beyond_the_training():
    """With an offset of one the first step is beyond the training: DDIM has no level for it."""
    config = DiffusionConfig(**BETAS, steps_offset=1, timestep_spacing="leading")
    with pytest.raises(ValueError, match="1000 steps begin at timestep 1000, the training ends"):
        Sampler(config, "ddim").schedule(1000)


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_schedules_that_begin_with_noise_alone(name):
    """A prediction of the noise in noise alone says nothing about the picture."""
    options = {**BETAS, "rescale_betas_zero_snr": True}
    with pytest.raises(ValueError, match=f"sampler {name} cannot begin with noise alone"):
        Sampler(DiffusionConfig(**options), name).schedule(4)
    velocity = DiffusionConfig(**options, prediction_type="v_prediction")
    assert Sampler(velocity, name).schedule(4).steps[0].start == Level(alpha=0, sigma=1)


def test_spacing_that_the_config_does_not_say():
    """The spacing is trailing, not the default of diffusers' classes."""
    config = DiffusionConfig.from_dict({"_class_name": "PNDMScheduler"}, "scheduler_config.json")
    assert config.timestep_spacing == "trailing"
    written = diffusers.PNDMScheduler(**BETAS).config
    assert DiffusionConfig.from_dict(dict(written), "file").timestep_spacing == "leading"
