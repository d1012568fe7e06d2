"""Denoising: the UNet's prediction under guidance, and the steps that follow it down a schedule."""

import copy
from collections.abc import Callable, Generator, Sequence
from types import TracebackType

import mlx.core as mx

from .check_arguments import check_integer, check_number
from .config.model import Defaults
from .device import cpu_kernels
from .sampler.noise import NoiseStream, draw_latents
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule
from .unet import UNetModel

Predict = Callable[[mx.array, mx.array], mx.array]  # latents, timestep
# x_t, the estimate of x_0, and what the UNet predicted, if it was asked
Steps = Generator[tuple[mx.array, ...], None, None]


class Denoising(Generator[mx.array, None, None]):
    """The latents of a call, one step after another: x_t [B, h, w, C], the last one x_0.

    They have the variance that the network sees, so that any of them can be decoded. It is a
    generator: `close` ends it, and what the steps hold can go.

    Attributes:
        inputs: the first latents, [B, h, w, C], and what else the steps start from: text
            embeddings [R, N, D], pooled ones [R, P], and what the VAE made of a picture
            [1, h, w, C].
        seed: the seed of the first picture; the others have the ones that follow.
        estimate: what the last step took x_0 for, shaped as x_t: the clearest look at pictures
            still in the making. None before the first step.
        prediction: what the last step got from the UNet, under guidance, shaped as x_t. None before
            the first step, or if the UNet is not asked.
    """

    def __init__(
        self,
        start: Callable[[], Steps],
        num_steps: int,
        inputs: list[mx.array],
        seed: int,
    ):
        self._start = start
        self._steps = start()
        self._num_steps = num_steps
        self.inputs = inputs
        self.seed = seed
        self.estimate: mx.array | None = None
        self.prediction: mx.array | None = None

    def __len__(self) -> int:
        """The number of steps in all."""
        return self._num_steps

    def __next__(self) -> mx.array:
        return self._keep(*next(self._steps))

    def send(self, value: None) -> mx.array:
        """Return the next latents, as `next` does."""
        return self._keep(*self._steps.send(value))

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> mx.array:
        """Raise an error where the steps are; none come after it."""
        error = kind if isinstance(kind, BaseException) else value
        if not isinstance(error, BaseException):
            error = kind() if error is None else kind(error)
        if traceback is not None:
            error = error.with_traceback(traceback)
        return self._keep(*self._steps.throw(error))

    def close(self) -> None:
        """End the steps; `restart` begins them again."""
        self._steps.close()

    def restart(self) -> None:
        """Begin again, from the same latents and noise, with the UNet that there is now."""
        self._steps = self._start()

    def _keep(
        self, x_t: mx.array, estimate: mx.array, prediction: mx.array | None = None
    ) -> mx.array:
        self.estimate, self.prediction = estimate, prediction
        return x_t


def resolve_defaults(
    defaults: Defaults,
    num_steps: int | None,
    cfg_weight: float | None,
    guidance_rescale: float,
) -> tuple[int, tuple[float, float]]:
    """Steps, and guidance with its rescaling, with a model's defaults for None.

    Raises:
        TypeError: if an argument is of the wrong kind; the message says which.
        ValueError: if an argument is out of its range; the message says which.
    """
    num_steps = defaults.steps if num_steps is None else check_integer("num_steps", num_steps)
    cfg_weight = defaults.guidance if cfg_weight is None else check_number("cfg_weight", cfg_weight)
    guidance_rescale = check_number("guidance_rescale", guidance_rescale, 0, 1)
    return num_steps, (cfg_weight, guidance_rescale)


def make_predict(
    unet: UNetModel,
    embeddings: mx.array,
    text_time: tuple[mx.array, mx.array] | None,
    cfg_weight: float,
    guidance_rescale: float,
    dtype: mx.Dtype,
) -> Predict:
    """What predicts noise, velocity or x_0, float32 [B, h, w, C], of latents at a time.

    Args:
        embeddings: of the text, [B, N, D]; [2B, N, D] where the second half is what to steer away
            from by classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        text_time: what SDXL's UNet takes beside them, with as many rows.
        cfg_weight: how far to steer.
        guidance_rescale: how much of the contrast that steering adds is taken back, 0 to 1.
        dtype: what the UNet computes in.
    """
    # What is the same at all steps. In lists, where `compile` finds it.
    text, text_time = unet.project_text(embeddings.astype(dtype)), list(text_time or ())

    def predict(x: mx.array, timestep: mx.array) -> mx.array:
        n_images = len(x)
        x = x.astype(dtype)
        if len(embeddings) > n_images:
            x = mx.concatenate([x, x])
        prediction = unet(x, timestep, text, text_time or None).astype(mx.float32)
        if len(embeddings) > n_images:
            conditional, unconditional = prediction.split(2)
            prediction = unconditional + cfg_weight * (conditional - unconditional)
            if guidance_rescale:
                prediction = rescale(prediction, conditional, guidance_rescale)
        return prediction

    if cpu_kernels.is_used():
        return predict  # as it is: a CPU's kernels compute at once
    return mx.compile(predict, inputs=[unet.state, text, text_time])


def rescale(prediction: mx.array, conditional: mx.array, amount: float) -> mx.array:
    """`prediction` brought nearer to each picture's contrast in `conditional` (arXiv:2305.08891,
    section 3.4)."""
    contrast, wanted = (mx.std(x, axis=(1, 2, 3), keepdims=True) for x in (prediction, conditional))
    return prediction * (amount * wanted / contrast + (1 - amount))


def denoise(
    x: mx.array,
    schedule: Schedule,
    sampler: Sampler,
    predict: Predict,
    streams: Sequence[NoiseStream],
) -> Steps:
    """Yield after each step of `schedule` the latents, as the network would see them, the estimate
    of x_0 that they come from, and the prediction; in float32."""
    estimate, streams = None, copy.deepcopy(streams)  # another start gets the same noise
    for step in schedule.steps:
        fresh = mx.array(draw_latents(streams, x.shape[1:])) if sampler.needs_noise else None
        prediction = predict(x, mx.array(step.timestep))
        x, estimate = sampler.step(x, prediction, step, estimate, fresh)
        yield x, estimate.x_0, prediction
