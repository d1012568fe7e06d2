"""Steps equal those of diffusers' schedulers, one after another."""

import json
from dataclasses import replace
from unittest import mock

import mlx.core as mx
import pytest
from oracle import SCHEDULERS, scheduler_options, set_no_timesteps
from parity import TRAJECTORIES, trajectory_error

from stable_diffusion.config.diffusion import PREDICTION_TYPES, SPACINGS, DiffusionConfig
from stable_diffusion.sampler.sampler import SAMPLERS, Sampler
from stable_diffusion.sampler.steps.dpm_solver import dpm_2m_step
from stable_diffusion.sampler.steps.runge_kutta import compute_ancestral_ratios
from stable_diffusion.sampler.steps.step_input import StepInput

SAME = 1e-5
OTHER = 1e-3  # errors of wrong steps are larger


@pytest.mark.parametrize(("name", "schedule", "num_steps", "prediction_type"), TRAJECTORIES)
def test_trajectory(name, schedule, num_steps, prediction_type):
    assert trajectory_error(name, prediction_type, schedule, num_steps) <= SAME


@pytest.mark.parametrize("spacing", SPACINGS)
def test_karras_over_a_spacing(spacing):
    """Euler takes the first and last level from the spacing, DPM-Solver does not."""
    for name in ("euler", "dpm++2m"):
        error = trajectory_error(name, "epsilon", "karras", timestep_spacing=spacing)
        assert error <= SAME


@pytest.mark.parametrize(
    ("name", "schedule", "num_steps", "prediction_type"),
    [what for what in TRAJECTORIES if what[-1] != "epsilon" and what[1] != "ays"],
)
def test_zero_terminal_snr(name, schedule, num_steps, prediction_type):
    """Euler is compared in float64: diffusers errs by 2e-5 in float32, at sigmas near 4096."""
    options = {"rescale_betas_zero_snr": True, "is_exact": name == "euler"}
    assert trajectory_error(name, prediction_type, schedule, num_steps, **options) <= SAME


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_options_of_one_sampler(prediction_type):
    for name, schedule, options in (
        ("ddim", "leading", {"set_alpha_to_one": False}),
        ("lcm", None, {"timestep_scaling": 0.002}),
        ("lcm", None, {"original_inference_steps": 100}),
    ):
        assert trajectory_error(name, prediction_type, schedule, 8, **options) <= SAME


@pytest.mark.parametrize(("num_steps"), [1, 2, 14, 15])
def test_few_steps_of_the_second_order(num_steps):
    """First and last step are of the first order, in long runs and in short ones."""
    for schedule in ("karras", "trailing"):
        assert trajectory_error("dpm++2m", "epsilon", schedule, num_steps) <= SAME


def test_a_wrong_order_shows(monkeypatch):
    """A solver that forgets the previous estimate, or extrapolates twice as far, is found."""

    def forget_previous(at: StepInput):
        return dpm_2m_step(replace(at, history=None))

    def double_previous(at: StepInput):
        if at.history is None:
            return dpm_2m_step(at)
        (previous,) = at.estimates
        previous = previous._replace(x_0=2 * previous.x_0 - at.x_0)
        return dpm_2m_step(replace(at, history=at.history._replace(estimates=(previous,))))

    row = SAMPLERS["dpm++2m"]
    for wrong in (forget_previous, double_previous):
        monkeypatch.setitem(SAMPLERS, "dpm++2m", replace(row, step=wrong))
        assert trajectory_error("dpm++2m", "epsilon", "karras") > OTHER


@pytest.mark.parametrize("name", ["euler", "euler-a", "ddim", "dpm++2m"])
def test_a_wrong_spacing_shows(name, monkeypatch):
    wrong = {"trailing": "leading", "leading": "linspace", "linspace": "trailing"}
    for_model = Sampler.for_model
    monkeypatch.setattr(
        Sampler,
        "for_model",
        lambda config, name, spacing, *_: for_model(config, name, wrong[spacing]),
    )
    for spacing in SPACINGS:
        assert trajectory_error(name, "epsilon", spacing) > OTHER


@pytest.mark.parametrize("name", ["ddim", "lcm", "euler-a"])
def test_a_wrong_sampler_shows(name, monkeypatch):
    """A comparison with another scheduler of diffusers fails."""
    monkeypatch.setitem(SCHEDULERS, name, SCHEDULERS["dpm++2m"])
    assert trajectory_error(name, "epsilon", None, 7) > OTHER


def test_ancestral_ratios_keep_the_variance():
    for ratio, next_ratio in ((14.6, 7.0), (1.0, 0.9), (0.03, 0.0)):
        down, up = compute_ancestral_ratios(ratio, next_ratio)
        assert down**2 + up**2 == pytest.approx(next_ratio**2)


def test_a_step_is_a_pure_function():
    """It gives the same latents for the same arguments, whatever is computed in between."""
    for name in SAMPLERS:
        sampler = Sampler.for_model(DiffusionConfig(), name)
        step, later = sampler.schedule(4).steps[1:3]
        x, prediction, fresh = mx.random.normal((3, 1, 4, 4, 4), key=mx.random.key(0))
        _, before = sampler.step(x, prediction, sampler.schedule(4).steps[0], None, fresh)
        one, _ = sampler.step(x, prediction, step, before, fresh)
        sampler.step(one, x, later, before, fresh)
        again, _ = sampler.step(x, prediction, step, before, fresh)
        assert mx.array_equal(one, again).item()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler-a"),
        ({"_class_name": "PNDMScheduler"}, "euler"),
        ({"_class_name": "DDIMScheduler"}, "euler"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "HeunDiscreteScheduler"}, "heun"),
        ({"_class_name": "DEISMultistepScheduler"}, "deis"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpm++2m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpm++3m"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpm++2m-sde",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "euler"),
        ({"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}, "euler"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "euler"),
        ({"_class_name": "KDPM2DiscreteScheduler", "prediction_type": "sample"}, "euler"),
        ({"_class_name": "FlaxDDIMScheduler"}, "euler"),
    ],
)
def test_the_model_says_which_sampler(options, name):
    config = DiffusionConfig.from_dict(options, "scheduler_config.json")
    assert Sampler.for_model(config).name == name
    assert Sampler.for_model(config, "ddim").name == "ddim"


def test_configs_that_diffusers_wrote():
    """The configs of each scheduler are read, with Karras' schedule too."""
    for name, scheduler in SCHEDULERS.items():
        with mock.patch.object(scheduler, "set_timesteps", set_no_timesteps):
            written = json.loads(scheduler(**scheduler_options(name, None)).to_json_string())
        config = DiffusionConfig.from_dict(written, "scheduler_config.json")
        assert config.sampler == ("euler" if name in ("ddim", "pndm", "ddpm") else name)
    for name in ("euler", "dpm++2m"):
        scheduler = SCHEDULERS[name](use_karras_sigmas=True, timestep_spacing="leading")
        written = json.loads(scheduler.to_json_string())
        config = DiffusionConfig.from_dict(written, "scheduler_config.json")
        for sampler, is_karras in (("euler", True), ("dpm++2m", True), ("ddim", False)):
            own = Sampler.for_model(config, sampler)
            assert own.config.use_karras_sigmas == is_karras
            assert own.config.timestep_spacing == "leading"
        assert not Sampler.for_model(config, name, "leading").config.use_karras_sigmas


@pytest.mark.parametrize(
    ("name", "schedule", "message"),
    [
        ("restart", None, "one of euler, euler-a, ddim, .*, got 'restart'"),
        ("euler", "sgm", "sampler euler has no schedule 'sgm', only trailing, .*, karras"),
        ("euler-a", "karras", "sampler euler-a has no schedule 'karras', only trailing"),
        ("ddim", "karras", "sampler ddim has no schedule 'karras', only trailing"),
        ("lcm", "karras", "sampler lcm has no schedule 'karras', only its own"),
        ("lcm", "trailing", "sampler lcm has no schedule 'trailing', only its own"),
    ],
)
def test_unknown_samplers_and_schedules(name, schedule, message):
    with pytest.raises(ValueError, match=message) as caught:
        Sampler.for_model(DiffusionConfig(), name, schedule)
    assert "\n" not in str(caught.value)


def test_ancestral_steps_from_a_prediction_of_the_picture():
    config = DiffusionConfig(prediction_type="sample")
    with pytest.raises(ValueError, match="euler-a cannot run a model that predicts 'sample'"):
        Sampler.for_model(config, "euler-a")
