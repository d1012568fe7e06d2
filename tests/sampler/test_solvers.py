"""Steps of the solvers equal those of diffusers' schedulers, with few steps and from pictures."""

import inspect
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import BETAS
from diffusers.utils.torch_utils import randn_tensor
from oracle import channels_first, channels_last, make_scheduler, relative_l2, scheduler_options
from parity import HAVE_ZERO_SNR, SOLVER_TRAJECTORIES, scale_of, trajectory_error

from stable_diffusion.config.diffusion import PREDICTION_TYPES, DiffusionConfig
from stable_diffusion.denoising import denoise
from stable_diffusion.sampler.noise import NoiseStream, draw_latents
from stable_diffusion.sampler.sampler import SAMPLERS, Sampler
from stable_diffusion.sampler.schedule import CLEAN
from stable_diffusion.sampler.steps.step_input import StepInput
from stable_diffusion.sampler.steps.weights import integrate_in_log, integrate_polynomial

SAME = 1e-5
OTHER = 1e-3  # errors of wrong steps are larger
SOLVERS = tuple(dict.fromkeys(name for name, *_ in SOLVER_TRAJECTORIES))
TWO_CALLS = ("heun", "dpm2", "dpm2-a", "dpm++sde")


def own_schedule(name: str) -> str | None:
    """Return a schedule of a sampler: "leading", if it has it."""
    schedules = SAMPLERS[name].schedules
    return "leading" if "leading" in schedules else next(iter(schedules), None)


@pytest.mark.parametrize(("name", "schedule", "num_steps", "prediction_type"), SOLVER_TRAJECTORIES)
def test_trajectory(name, schedule, num_steps, prediction_type):
    assert trajectory_error(name, prediction_type, schedule, num_steps) <= SAME


@pytest.mark.parametrize("name", SOLVERS)
def test_few_and_many_steps(name):
    """The order is lower at the start and, in runs of less than 15 steps, at the end."""
    for num_steps in (1, 2, 3, 15):
        for prediction_type in SAMPLERS[name].prediction_types[:2]:
            error = trajectory_error(name, prediction_type, own_schedule(name), num_steps)
            assert error <= SAME


@pytest.mark.parametrize("name", SOLVERS)
def test_from_a_picture(name):
    """The steps begin in the middle of the schedule, as many as the picture's strength says."""
    for num_steps, skipped in ((3, 1), (5, 2), (6, 3)):
        assert (
            trajectory_error(name, "epsilon", own_schedule(name), num_steps, skip=skipped) <= SAME
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_the_noise_of_a_batch(name):
    """The whole loop, with a function in place of the network: each picture has its own noise."""
    schedule, shape = own_schedule(name), (2, 4, 4, 4)
    sampler = Sampler.for_model(DiffusionConfig(**BETAS), name, schedule)
    steps = sampler.schedule(5).last(4)
    x = draw_latents([NoiseStream(1), NoiseStream(2)], shape[1:])
    streams = [NoiseStream(3), NoiseStream(4)]
    predict = lambda x, t, _: mx.tanh(x + t / 1000)  # noqa: E731
    *_, ours = denoise(mx.array(x), steps, sampler, predict, streams)

    theirs = make_scheduler(name, {**BETAS, **scheduler_options(name, schedule)})
    theirs.set_timesteps(5)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(theirs.order)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    theirs.noise_sampler = lambda *_: randn_tensor(shape, generators)
    takes_noise = "generator" in inspect.signature(theirs.step).parameters
    arguments = {"generator": generators} if takes_noise else {}
    expected = channels_first(x, torch.float32) * scale_of(name, theirs, theirs.order - 1)
    for t in theirs.timesteps[theirs.order :]:
        prediction = torch.tanh(theirs.scale_model_input(expected, t) + t / 1000)
        expected = theirs.step(prediction, t, expected, **arguments).prev_sample
    assert relative_l2(ours.x_t, channels_last(expected)) <= SAME


@pytest.mark.parametrize("name", [name for name in SOLVERS if name in HAVE_ZERO_SNR])
def test_zero_terminal_snr(name):
    schedule = "trailing" if SAMPLERS[name].schedules else None
    for prediction_type in ("v_prediction", "sample"):
        error = trajectory_error(name, prediction_type, schedule, 5, rescale_betas_zero_snr=True)
        assert error <= SAME


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {*HAVE_ZERO_SNR, "pndm"}))
def test_zero_terminal_snr_that_diffusers_lacks(name):
    """A network that knows the picture draws it, from noise alone.

    Except with pndm, which combines velocities of different levels.
    """
    config = DiffusionConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    sampler = Sampler.for_model(config, name)
    picture, x = mx.random.normal((2, 1, 4, 4, 4), key=mx.random.key(3))
    history = None
    for step in sampler.schedule(6).steps:
        start = step.start
        noise = (x - start.alpha * picture) / start.sigma
        velocity = start.alpha * noise - start.sigma * picture
        x, history = sampler.step(x, velocity, step, history, mx.zeros_like(x))
    error = mx.abs(x - step.end.alpha * picture).max().item()
    assert error <= 1e-4 + 3 * step.end.sigma


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("unipc", {"solver_order": order}) for order in (1, 3)),
        ("unipc", {"solver_type": "bh1", "solver_order": 3}),
        ("deis", {"solver_order": 1}),
        ("deis", {"solver_order": 3}),
        ("deis", {"solver_order": 3, "lower_order_final": False}),
        ("dpm++3m", {"lower_order_final": False}),
        ("pndm", {"set_alpha_to_one": True}),
        ("ddpm", {"variance_type": "fixed_large"}),
        ("ddpm", {"variance_type": "fixed_small_log"}),
    ],
)
def test_options_of_a_scheduler(name, options):
    assert trajectory_error(name, "epsilon", "leading", 6, **options) <= SAME


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_eta(name):
    for prediction_type, eta in zip(PREDICTION_TYPES, (0.0, 0.5, 1.0), strict=True):
        assert trajectory_error(name, prediction_type, None, 4, eta=eta) <= SAME


@pytest.mark.parametrize("name", [name for name in SOLVERS if SAMPLERS[name].takes_timesteps])
def test_timesteps(name):
    for timesteps in ([999, 749, 499, 249], [800]):
        assert trajectory_error(name, "epsilon", None, timesteps=timesteps) <= SAME


def test_calls_of_the_network():
    """They are one fewer than two a step, one more than the steps, or the steps."""
    for name in SAMPLERS:
        schedule = Sampler.for_model(DiffusionConfig(), name).schedule(5)
        n_calls = 9 if name in TWO_CALLS else 6 if name == "pndm" else 5
        assert len(schedule) == len(schedule.steps) == n_calls
        left = schedule.last(2)
        assert left.steps == schedule.steps[-(3 if n_calls > 5 else 2) :]
        assert left.last(2) == left and schedule.last(5).steps == schedule.steps


def test_only_calls_that_add_noise_need_it():
    for name, spec in SAMPLERS.items():
        sampler = Sampler.for_model(DiffusionConfig(), name)
        x, history = mx.ones((1, 2, 2, 4)), None
        if not sampler.needs_noise:
            continue
        for step in sampler.schedule(3).steps:
            if not step.adds_noise:
                x, history = sampler.step(x, x, step, history)
                continue
            if step.end != CLEAN:
                with pytest.raises(ValueError, match="adds noise in every step: give `fresh`"):
                    sampler.step(x, x, step, history)
            x, history = sampler.step(x, x, step, history, x)
            assert len(history.estimates) <= spec.history


@pytest.mark.parametrize("name", TWO_CALLS)
def test_a_second_call_without_the_first(name):
    sampler = Sampler.for_model(DiffusionConfig(), name)
    x = mx.zeros((1, 2, 2, 4))
    with pytest.raises(ValueError, match="goes on from the one before: give what it returned"):
        sampler.step(x, x, sampler.schedule(3).steps[1], None, x)


@pytest.mark.parametrize("name", [name for name in SOLVERS if SAMPLERS[name].history])
def test_a_solver_that_forgets_shows(name, monkeypatch):
    row = SAMPLERS[name]

    def forget_older(at: StepInput) -> mx.array:
        if at.history is None or name in TWO_CALLS:
            return row.step(replace(at, step=replace(at.step, order=1)))
        newest = at.estimates[: row.history // 2]
        return row.step(replace(at, history=at.history._replace(estimates=newest)))

    monkeypatch.setitem(SAMPLERS, name, replace(row, step=forget_older))
    assert trajectory_error(name, "epsilon", own_schedule(name), 20, solver_order=3) > OTHER / 100


def test_weights_integrate_polynomials():
    """Cubic ones in the ratio, and quadratic ones in its logarithm."""
    nodes, end = [9.0, 11.0, 14.0, 14.6], 7.5
    ratios = np.linspace(nodes[0], end, 100_001)
    for function, integrate, n in (
        (lambda x: x**3 - 20 * x**2 + 3, integrate_polynomial, 4),
        (lambda x: np.log(x) ** 2 - 4 * np.log(x) + 1, integrate_in_log, 3),
    ):
        weights = integrate(nodes[:n], end)
        values = function(np.array(nodes[:n]))
        expected = np.trapezoid(function(ratios), ratios)
        assert np.dot(weights, values) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("unipc", {"solver_order": 4}, "solver_order = 4, only 1, 2 or 3"),
        ("deis", {"solver_order": 0}, "solver_order = 0, only 1, 2 or 3"),
        ("unipc", {"predict_x0": False}, "predict_x0 = false"),
        ("unipc", {"disable_corrector": (0,)}, r"disable_corrector = \[0\]"),
        ("pndm", {"skip_prk_steps": False}, "skip_prk_steps = false"),
        ("ddpm", {"variance_type": "learned"}, "variance_type = 'learned', only fixed_small"),
        ("ddpm", {"clip_sample": True, "is_xl": True}, "clip_sample = true"),
        ("heun", {"clip_sample": True, "is_xl": True}, "clip_sample = true"),
    ],
)
def test_options_that_are_refused(name, options, fault):
    config = DiffusionConfig(**options)
    message = f"sampler {name} does not support what the model's scheduler config says, {fault}"
    with pytest.raises(ValueError, match=message):
        Sampler.for_model(config, name)
    assert Sampler.for_model(config).name == Sampler.for_model(config, "euler").name == "euler"
    if "is_xl" in options:
        assert Sampler.for_model(replace(config, is_xl=False), name).name == name


@pytest.mark.parametrize("name", ["dpm2", "dpm2-a", "dpm++sde", "pndm"])
def test_predictions_of_the_picture(name):
    config = DiffusionConfig(prediction_type="sample")
    with pytest.raises(
        ValueError, match=f"{re.escape(name)} cannot run a model that predicts 'sample'"
    ):
        Sampler.for_model(config, name)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "IPNDMScheduler", "EDMEulerScheduler", "New"]
)
def test_schedulers_of_other_families(name):
    with pytest.raises(ValueError) as caught:
        content = {"sigma_max": 80.0, "_class_name": name}
        DiffusionConfig.from_dict(content, "scheduler_config.json")
    begin = f"scheduler_config.json: _class_name = {name!r} is not supported, only schedulers"
    assert str(caught.value).startswith(begin) and "\n" not in str(caught.value)
    assert DiffusionConfig.from_dict({"_class_name": None}, "").sampler == "euler"
