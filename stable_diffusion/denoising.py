"""Denoising: the UNet's prediction with guidance, and the steps down a noise schedule."""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import compiled
from .active_control import (
    ActiveControl,
    ControlArguments,
    ControlledUNet,
    compute_residuals,
    prepare_control,
)
from .attention import KeysValues
from .device import backend
from .merged_layers import MergedLayers
from .sampler.noise import NoiseStream, draw_latents
from .sampler.sampler import Sampler
from .sampler.schedule import Schedule, Step
from .sampler.steps.step_input import History
from .time_embedding import embed_guidance
from .unet import Residuals, UNetModel

# Latents, timestep, index of the step in `Schedule.steps` → the prediction.
Predict = Callable[[mx.array, mx.array, int], mx.array]
# Latents after a step, the next step (None after the last one) → the latents to go on with.
Restore = Callable[[mx.array, Step | None], mx.array]
TextTime = tuple[mx.array, mx.array]  # pooled embeddings and time ids, for SDXL's UNet


@dataclass(frozen=True, eq=False)
class NetworkInputs:
    """What the UNet takes beside noisy latents, time and text.

    Attributes:
        channels: what a UNet of more channels takes after the latents, [B or 1, h, w, E]: the mask
            and the latents of the masked picture, for inpainting.
        image: the latents of the picture that is edited, [1, h, w, C], for InstructPix2Pix.
        image_cfg: the weight of guidance by that picture.
        controls: networks that steer the UNet by pictures, each in some of the steps.
    """

    channels: mx.array | None = None
    image: mx.array | None = None
    image_cfg: float | None = None
    controls: Sequence[ActiveControl] = ()


EMPTY = NetworkInputs()


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


def make_predict(
    unet: UNetModel,
    embeddings: mx.array,
    text_time: TextTime | None,
    cfg_weight: float,
    guidance_rescale: float,
    dtype: mx.Dtype,
    inputs: NetworkInputs = EMPTY,
) -> Predict:
    """Return the function that predicts noise, velocity or x_0 of latents in a step.

    It returns float32 [B, h, w, C].

    Args:
        embeddings: of the text, [B, N, D]; or [2B, N, D], whose second half is the negative text of
            classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        text_time: pooled embeddings and time ids for SDXL's UNet, with as many rows.
        cfg_weight: the weight of guidance.
        guidance_rescale: how much of the contrast that guidance adds is removed, in [0, 1].
        dtype: the type that the UNet computes in.
        inputs: what else the UNet takes.
    """
    channels = None if inputs.channels is None else inputs.channels.astype(dtype)
    text = unet.project_text(embeddings.astype(dtype))  # the same at all steps
    controls = [prepare_control(each, embeddings.astype(dtype), dtype) for each in inputs.controls]
    embedded: mx.array | None = None
    if (dims := unet.config.time_cond_proj_dim) is not None:  # there is no second half then
        embedded = embed_guidance(cfg_weight, dims)
    numbers: list[Any] = [cfg_weight, guidance_rescale] if guidance_rescale else [cfg_weight]
    if backend.is_gpu():
        numbers = [mx.array(number) for number in numbers]  # not constants of a compiled function
    merged_layers = MergedLayers()

    def predict(x: mx.array, timestep: mx.array, index: int) -> mx.array:
        guidance = numbers if len(embeddings) > len(x) else []
        arguments = x.astype(dtype), timestep, text, text_time, guidance, embedded, channels
        network = merged_layers.put_into(unet)
        active = [i for i, each in enumerate(inputs.controls) if index in each.steps]
        if not active:
            return compiled.run(predict_with_guidance, network, *arguments, owner=unet)
        networks = [inputs.controls[i].network for i in active]
        # What is compiled with control networks is kept beside what is compiled without them.
        return compiled.run(
            predict_with_guidance,
            ControlledUNet(network, networks),
            *arguments,
            [controls[i] for i in active],
            owner=networks[0],
        )

    return predict


def predict_with_guidance(
    network: UNetModel | ControlledUNet,
    x: mx.array,
    timestep: mx.array,
    text: Sequence[KeysValues],
    text_time: TextTime | None,
    guidance: Sequence[Any],
    embedded: mx.array | None = None,
    channels: mx.array | None = None,
    controls: Sequence[ControlArguments] = (),
) -> mx.array:
    """Return the prediction of noise, velocity or x_0, in float32 [B, h, w, C].

    Args:
        network: the UNet, together with the control networks if there are any.
        x: latents [B, h, w, C].
        text: the keys and values of the text, with 2B rows if there is guidance.
        guidance: its weight, and the amount of rescaling unless that is 0; nothing without
            guidance.
        embedded: the guidance as an input of the UNet; None if it takes none.
        channels: what the UNet takes after the latents, [B or 1, h, w, E]; None if it takes none.
        controls: the arguments of each control network.
    """
    unet: nn.Module = network
    residuals: Residuals | None = None
    if isinstance(network, ControlledUNet):
        n_parts = 2 if guidance else 1
        unet = network.unet
        residuals = compute_residuals(network.controls, controls, x, timestep, text_time, n_parts)
    if channels is not None:
        channels = mx.broadcast_to(channels, (len(x), *channels.shape[1:]))
        x = mx.concatenate([x, channels], axis=-1)  # [B, h, w, C + E]
    if not guidance:
        return unet(x, timestep, text, text_time, embedded, residuals).astype(mx.float32)
    prediction = unet(
        mx.concatenate([x, x]), timestep, text, text_time, embedded, residuals
    ).astype(mx.float32)
    conditional, unconditional = prediction.split(2)
    weight, *amounts = guidance
    prediction = unconditional + weight * (conditional - unconditional)
    for amount in amounts:
        prediction = rescale_guidance(prediction, conditional, amount)
    return prediction


def rescale_guidance(
    prediction: mx.array, conditional: mx.array, amount: float | mx.array
) -> mx.array:
    """Return predictions whose contrast is closer to the contrast of the conditional ones.

    See arXiv:2305.08891, section 3.4.

    Args:
        prediction: with guidance, [B, h, w, C].
        conditional: the prediction for the text alone, [B, h, w, C].
        amount: from 0, which changes nothing, to 1, which gives both the same contrast.
    """
    contrast, wanted = (mx.std(x, axis=(1, 2, 3), keepdims=True) for x in (prediction, conditional))
    return prediction * (amount * wanted / contrast + (1 - amount))


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
