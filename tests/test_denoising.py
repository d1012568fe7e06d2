"""`denoising.py`: a GPU begins the next step before the last one is checked; a CPU does not."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest
from gpu import as_on, without_fusing

from stable_diffusion import StableDiffusion
from stable_diffusion.denoising import Denoising, StepOutput
from stable_diffusion.device.backend import Backend
from stable_diffusion.overflow import evaluate_steps

Steps = Callable[[int], mx.array]  # the number of a step, from 1 → its latents


def count(number: int) -> mx.array:
    """Return the latents of a step."""
    return mx.full((1, 2, 2, 1), float(number))


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """Record when steps are made, begun by `mx.async_eval`, and waited for by `mx.eval`."""
    recorded: list[str] = []

    def record(event: str, function: Callable) -> Callable:
        def call(*arrays: mx.array) -> None:
            function(*arrays)
            recorded.append(f"{event} {arrays[0][0, 0, 0, 0].item():g}")
            assert len(arrays) == 2 and arrays[1].dtype == mx.bool_  # checked in the same wait

        return call

    monkeypatch.setattr(mx, "async_eval", record("begin", mx.async_eval))
    monkeypatch.setattr(mx, "eval", record("wait", mx.eval))
    return recorded


def make_denoising(n_steps: int, events: list[str] | None = None, step: Steps = count) -> Denoising:
    def steps() -> Iterator[StepOutput]:
        for number in range(1, n_steps + 1):
            if events is not None:
                events.append(f"make {number}")
            x = step(number)
            yield StepOutput(x, -x, 10 * x)

    return Denoising(steps, n_steps, [], seed=0)


@pytest.mark.parametrize("kind", [Backend.METAL, Backend.CUDA])
def test_a_gpu_begins_the_next_step_first(events, kind):
    """After the last step nothing is begun."""
    with as_on(kind):
        for step in make_denoising(3, events).evaluate():
            events.append(f"check {step.x_t[0, 0, 0, 0].item():g}")
    assert events == [
        *("make 1", "begin 1", "make 2", "begin 2", "wait 1", "check 1"),
        *("make 3", "begin 3", "wait 2", "check 2"),
        *("wait 3", "check 3"),
    ]


def test_a_cpu_computes_no_step_early(events):
    with as_on(Backend.CPU):
        for step in make_denoising(2, events).evaluate():
            events.append(f"check {step.x_t[0, 0, 0, 0].item():g}")
    assert events == ["make 1", "wait 1", "check 1", "make 2", "wait 2", "check 2"]


def get_numbers(latents: Denoising) -> tuple[float, float]:
    """Return the numbers that the estimate and the prediction stand for."""
    estimate, prediction = latents.estimate, latents.prediction
    return -estimate[0, 0, 0, 0].item(), prediction[0, 0, 0, 0].item() / 10


@pytest.mark.parametrize("kind", list(Backend))
def test_estimate_and_prediction_are_those_of_the_step(kind):
    latents = make_denoising(4)
    with as_on(kind):
        for number, _ in enumerate(latents.evaluate(), 1):
            assert get_numbers(latents) == (number, number)
    assert number == len(latents) == 4


@pytest.mark.parametrize("kind", list(Backend))
def test_other_ways_to_take_steps_lose_none(kind):
    """A step that has begun is the next one, unless the steps begin again or end."""
    latents = make_denoising(5)
    with as_on(kind):
        next(latents.evaluate())
        assert next(latents)[0, 0, 0, 0].item() == 2 and get_numbers(latents) == (2, 2)
        next(latents.evaluate())
        assert latents.send(None)[0, 0, 0, 0].item() == 4
        next(latents.evaluate())
        assert list(latents) == list(latents.evaluate()) == []
        latents.restart()
        for step in latents.evaluate():
            latents.restart()
            assert step.x_t[0, 0, 0, 0].item() == 1
            break
        assert next(latents)[0, 0, 0, 0].item() == 1
        next(latents.evaluate())
        latents.close()
        assert list(latents.evaluate()) == []
        latents.restart()
        next(latents.evaluate())
        with pytest.raises(KeyboardInterrupt):
            latents.throw(KeyboardInterrupt())
        assert list(latents) == []


@pytest.mark.parametrize(("kind", "n_made"), [(Backend.CPU, 2), (Backend.METAL, 3)])
def test_steps_end_at_the_first_that_is_not_finite(kind, n_made):
    """At most one more step has begun."""
    events: list[str] = []
    infinite = lambda number: count(number) / (2 - number)  # noqa: E731
    latents = make_denoising(5, events, infinite)
    with as_on(kind):
        assert mx.isinf(evaluate_steps(latents)).all().item()
    assert len(events) == n_made and np.isinf(get_numbers(latents)).all()


@pytest.mark.parametrize("options", [{}, {"guidance_rescale": 0.5}], ids=["plain", "rescale"])
@pytest.mark.parametrize("sampler", ["euler-a", "dpm++2m", "unipc"])
def test_the_latents_are_the_same(options, sampler):
    """Check samplers with new noise in each step, and those that use the step before."""
    sd = StableDiffusion("tiny", sampler=sampler)
    begin = lambda: sd.generate_latents("a ring", num_steps=3, seed=2, **options)  # noqa: E731
    expected = evaluate_steps(begin())
    with as_on(Backend.METAL), without_fusing():
        latents = begin()
        for _ in range(2):
            assert mx.allclose(evaluate_steps(latents), expected, atol=1e-3).item()
            latents.restart()
            next(latents.evaluate())
            latents.restart()


@pytest.mark.parametrize("kind", [Backend.CPU, Backend.METAL])
def test_the_latents_decide_whether_a_step_is_finite(kind):
    """The estimate of x_0 may be infinite in a step from which the next one recovers."""
    finite, infinite = mx.ones((1, 2, 2, 1)), mx.full((1, 2, 2, 1), mx.inf)
    outputs = StepOutput(finite, infinite, infinite), StepOutput(infinite, finite, finite)
    with as_on(kind):
        latents = Denoising(lambda: iter(outputs), 2, [], seed=0)
        assert [step.is_finite for step in latents.evaluate()] == [True, False]
