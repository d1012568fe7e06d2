"""Denoising: the steps down a noise schedule, each with a prediction of the UNet."""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .device import backend
from .prediction import Predict
from .sampler.noise import NoiseStream, draw_latents
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule, Step
from .sampler.steps.step_input import History

# Latents after a step, the next step (None after the last one) → the latents to go on with.
Restore = Callable[[mx.array, Step | None], mx.array]


class StepOutput(NamedTuple):
    """The results of one step of denoising: arrays with the shape of the latents."""

    x_t: mx.array
    estimate: mx.array  # of x_0
    prediction: mx.array | None  # of the UNet; None if it was not called


Steps = Generator[StepOutput, None, None]


class BegunStep(NamedTuple):
    """A step whose arrays may not be evaluated yet."""

    output: StepOutput
    is_finite: mx.array  # whether all latents are


class EvaluatedStep(NamedTuple):
    """A step that is evaluated."""

    x_t: mx.array
    is_finite: bool  # whether all latents are


class Denoising(Generator[mx.array, None, None]):
    """The latents after each step: x_t [B, h, w, C]; the last one is x_0.

    They have the variance that the network sees, so that any of them can be decoded. It is a
    generator: `close` ends it and frees what the steps hold.

    Attributes:
        inputs: what the steps start from: the first latents [B, h, w, C], text embeddings
            [R, N, D], pooled embeddings [R, P] of SDXL, and the encoded pictures [1, h, w, C] of
            image to image and inpainting. Once they are evaluated the text encoders can be freed.
        flat_inputs: those of `inputs` that are latents of a picture of one colour, so that they may
            be constant: what a mask leaves of a grey picture, or if it covers all.
        seed: the seed of the first picture; the others have the seeds that follow.
        estimate: the last step's estimate of x_0, shaped as x_t, the clearest preview of unfinished
            pictures. None before the first step.
        prediction: the UNet's last prediction, with guidance, shaped as x_t. None before the first
            step, or if the UNet has not been called.
        origin: what a pipeline made the steps from, a `pipeline.Origin`, for a second pass (see
            `hires.py`). None if there cannot be one.
    """

    def __init__(
        self,
        start: Callable[[], Steps],
        num_steps: int,
        inputs: list[mx.array],
        seed: int,
        flat_inputs: Sequence[mx.array] = (),
    ):
        self._start = start
        self._steps = start()
        self._begun: BegunStep | None = None  # the next step, if it is under way already
        self._num_steps = num_steps
        self.inputs = inputs
        self.flat_inputs = flat_inputs
        self.seed = seed
        self.estimate: mx.array | None = None
        self.prediction: mx.array | None = None
        self.origin: Any = None

    def __len__(self) -> int:
        """Return the number of steps, including those that have been taken."""
        return self._num_steps

    def __next__(self) -> mx.array:
        begun, self._begun = self._begun, None
        return self._keep(next(self._steps) if begun is None else begun.output)

    def send(self, value: None) -> mx.array:
        """Return the next latents, as `next` does."""
        return next(self)

    def throw(self, *error: Any) -> mx.array:
        """Raise an error in the steps, as `Generator.throw` does; that ends them."""
        self._begun = None
        return self._keep(self._steps.throw(*error))

    def close(self) -> None:
        """End the steps; `restart` begins them again."""
        self._begun = None
        self._steps.close()

    def restart(self) -> None:
        """Begin again, from the same latents and noise, with the present UNet."""
        self._begun = None
        self._steps = self._start()

    def evaluate(self) -> Iterator[EvaluatedStep]:
        """Evaluate the steps that are left, and yield each of them.

        A GPU begins the next step before this one is yielded, so it does not wait for what is done
        with this one. `estimate` and `prediction` are those of the step that is yielded.
        """
        while (begun := self._begun or self._begin_step()) is not None:
            self._begun = self._begin_step() if backend.is_gpu() else None
            x_t = self._keep(begun.output)
            mx.eval(x_t, begun.is_finite)
            yield EvaluatedStep(x_t, bool(begun.is_finite.item()))

    def _begin_step(self) -> BegunStep | None:
        """Take the next step, if there is one; a GPU begins to compute it."""
        output = next(self._steps, None)
        if output is None:
            return None
        begun = BegunStep(output, mx.isfinite(output.x_t).all())
        if backend.is_gpu():
            mx.async_eval(output.x_t, begun.is_finite)
        return begun

    def _keep(self, output: StepOutput) -> mx.array:
        self.estimate, self.prediction = output.estimate, output.prediction
        return output.x_t


def denoise(
    x: mx.array,
    schedule: Schedule,
    sampler: Sampler,
    predict: Predict,
    streams: Sequence[NoiseStream],
    restore: Restore | None = None,
) -> Steps:
    """Yield the output of each step of a schedule, in float32.

    Args:
        x: latents [B, h, w, C] at the first level of the schedule.
        streams: the streams of noise, one for each picture; they are not changed.
        restore: changes the latents after each step, and the estimates of x_0.
    """
    streams = copy.deepcopy(streams)  # so that a restart gets the same noise
    history: History | None = None
    following = (*schedule.steps[1:], None)
    for index, (step, next_step) in enumerate(zip(schedule.steps, following, strict=True)):
        needs_noise = sampler.needs_noise and step.adds_noise
        fresh = mx.array(draw_latents(streams, x.shape[1:])) if needs_noise else None
        prediction = predict(x, mx.array(step.timestep), index)
        x, history = sampler.step(x, prediction, step, history, fresh)
        estimate = history.x_0
        if restore is not None:
            x, estimate = restore(x, next_step), restore(estimate, None)
        yield StepOutput(x, estimate, prediction)


def yield_unchanged(x: mx.array) -> Steps:
    """Yield latents once, as one step that changes nothing."""
    yield StepOutput(x, x, None)
