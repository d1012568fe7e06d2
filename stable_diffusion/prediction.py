"""The UNet's prediction in each step: guidance, control networks, and what some steps skip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import compiled
from .active_control import (
    ActiveControl,
    ControlArguments,
    ControlledUNet,
    compute_first_residual,
    compute_residuals,
    prepare_control,
)
from .attention import KeysValues
from .device import backend
from .merged_layers import MergedLayers
from .time_embedding import embed_guidance
from .unet import Residuals, UNetModel

# Latents, timestep, index of the step in `Schedule.steps` → the prediction.
Predict = Callable[[mx.array, mx.array, int], mx.array]
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


@dataclass(frozen=True)
class Shortcuts:
    """The computations that some steps skip.

    Attributes:
        reuse: the whole UNet is computed in every `reuse`-th step. In the others only its first and
            last layers are, on deep features that the last whole step kept: DeepCache (Ma et al.
            2023, arXiv:2312.00858). Steps are calls of the network.
        guided: the indices of the steps with guidance; None for all (Kynkäänniemi et al. 2024,
            arXiv:2404.07724).
    """

    reuse: int = 1
    guided: frozenset[int] | None = None

    def has_guidance(self, index: int) -> bool:
        """Return whether a step has guidance."""
        return self.guided is None or index in self.guided


NO_SHORTCUTS = Shortcuts()


class Conditions(NamedTuple):
    """What the UNet and guidance take in each step, beside latents, time and control networks.

    The rows of a batch are in parts of B, one for each prediction that guidance combines: the part
    of the prompt is the first. Without guidance there is no other.

    Attributes:
        text: the keys and values of the text, for each attention to it.
        text_time: for SDXL, with as many rows.
        weights: of guidance, one less than there are parts.
        rescale: the amount of rescaling, unless that is 0.
        embedded: the guidance as an input of the UNet; None if it takes none.
        channels: what the UNet takes after the latents, [B or 1, h, w, E]: nothing, or one for all
            parts, or one for each.
    """

    text: Sequence[KeysValues]
    text_time: TextTime | None
    weights: Sequence[Any]
    rescale: Sequence[Any] = ()
    embedded: mx.array | None = None
    channels: Sequence[mx.array] = ()

    @property
    def n_parts(self) -> int:
        """Return how many predictions guidance combines."""
        return len(self.weights) + 1

    def without_guidance(self, n_rows: int) -> "Conditions":
        """Return the first part alone, which has so many rows."""
        text_time = self.text_time
        if text_time is not None:
            pooled, time_ids = text_time
            text_time = pooled[:n_rows], time_ids[:n_rows]
        return self._replace(
            text=[(keys[:n_rows], values[:n_rows]) for keys, values in self.text],
            text_time=text_time,
            weights=(),
            rescale=(),
            channels=self.channels[:1],
        )


def make_predict(
    unet: UNetModel,
    embeddings: mx.array,
    text_time: TextTime | None,
    cfg_weight: float,
    guidance_rescale: float,
    dtype: mx.Dtype,
    inputs: NetworkInputs = EMPTY,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> Predict:
    """Return the function that predicts noise, velocity or x_0 of latents in a step.

    It returns float32 [B, h, w, C]. If deep features are reused it keeps them from step to step, so
    it is for the steps of one call of a generator, in order.

    Args:
        embeddings: of the text, [B, N, D]; or [2B, N, D], whose second half is the negative text of
            classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        text_time: pooled embeddings and time ids for SDXL's UNet, with as many rows.
        cfg_weight: the weight of guidance.
        guidance_rescale: how much of the contrast that guidance adds is removed, in [0, 1].
        dtype: the type that the UNet computes in.
        inputs: what else the UNet takes.
        shortcuts: the computations that some steps skip.
    """
    controls = [prepare_control(each, embeddings.astype(dtype), dtype) for each in inputs.controls]
    numbers = cfg_weight, guidance_rescale
    whole = _make_conditions(unet, embeddings, text_time, *numbers, dtype, inputs)
    merged_layers = MergedLayers()
    kept: mx.array | None = None  # deep features of the last whole step

    def predict(x: mx.array, timestep: mx.array, index: int) -> mx.array:
        nonlocal kept
        is_guided = len(embeddings) > len(x) and shortcuts.has_guidance(index)
        conditions = whole if is_guided else whole.without_guidance(len(x))
        n_rows = conditions.n_parts * len(x)
        network: nn.Module = merged_layers.put_into(unet)
        owner: nn.Module = unet
        active = [i for i, each in enumerate(inputs.controls) if index in each.steps]
        if active:
            networks = [inputs.controls[i].network for i in active]
            # What is compiled with them is kept beside what is compiled without them.
            network, owner = ControlledUNet(network, networks), networks[0]
        arguments = x.astype(dtype), timestep, conditions, [controls[i] for i in active]
        if shortcuts.reuse == 1:
            return compiled.run(predict_with_guidance, network, *arguments, owner=owner)
        if kept is None or index % shortcuts.reuse == 0 or len(kept) < n_rows:
            kept = None  # freed before others are computed
            prediction, kept = compiled.run(predict_and_keep, network, *arguments, owner=owner)
            return prediction
        kept_rows = kept[:n_rows]
        return compiled.run(predict_from_kept, network, kept_rows, *arguments, owner=owner)

    return predict


def _make_conditions(
    unet: UNetModel,
    embeddings: mx.array,
    text_time: TextTime | None,
    cfg_weight: float,
    guidance_rescale: float,
    dtype: mx.Dtype,
    inputs: NetworkInputs,
) -> Conditions:
    """Return the conditions of all steps with guidance; see `make_predict` for the arguments."""
    weights: list[Any] = [cfg_weight]
    rescale: list[Any] = [guidance_rescale] if guidance_rescale else []
    channels = [] if inputs.channels is None else [inputs.channels]
    if inputs.image is not None and inputs.image_cfg is not None:
        # The third part has the negative text, as the second has, and no picture.
        weights.append(inputs.image_cfg)
        channels = [inputs.image, inputs.image, mx.zeros_like(inputs.image)]
        embeddings = _repeat_second_half(embeddings)
        if text_time is not None:
            pooled, time_ids = text_time
            text_time = _repeat_second_half(pooled), _repeat_second_half(time_ids)
    if backend.is_gpu():  # not constants of a compiled function
        weights, rescale = ([mx.array(each) for each in numbers] for numbers in (weights, rescale))
    embedded: mx.array | None = None
    if (dims := unet.config.time_cond_proj_dim) is not None:  # there is only one part then
        embedded = embed_guidance(cfg_weight, dims)
    return Conditions(
        text=unet.project_text(embeddings.astype(dtype)),
        text_time=text_time,
        weights=weights,
        rescale=rescale,
        embedded=embedded,
        channels=[each.astype(dtype) for each in channels],
    )


def _repeat_second_half(rows: mx.array) -> mx.array:
    """Return [3B, …] for the rows of text and negative text [2B, …]: the second half twice."""
    return mx.concatenate([rows, rows[len(rows) // 2 :]])


def predict_with_guidance(
    network: UNetModel | ControlledUNet,
    x: mx.array,
    timestep: mx.array,
    conditions: Conditions,
    controls: Sequence[ControlArguments] = (),
) -> mx.array:
    """Return the prediction of noise, velocity or x_0, in float32 [B, h, w, C].

    Args:
        network: the UNet, together with the control networks if there are any.
        x: latents [B, h, w, C].
        controls: the arguments of each control network.
    """
    conditions = Conditions(*conditions)  # a compiled function gets a plain tuple
    unet, residuals = _compute_residuals(network, x, timestep, conditions, controls)
    prediction = unet(*_list_inputs(x, timestep, conditions), residuals)
    return combine_parts(prediction, conditions)


def predict_and_keep(
    network: UNetModel | ControlledUNet,
    x: mx.array,
    timestep: mx.array,
    conditions: Conditions,
    controls: Sequence[ControlArguments] = (),
) -> tuple[mx.array, mx.array]:
    """Return the result of `predict_with_guidance`, and the deep features of all parts."""
    conditions = Conditions(*conditions)
    unet, residuals = _compute_residuals(network, x, timestep, conditions, controls)
    inputs = _list_inputs(x, timestep, conditions)
    prediction, kept = unet.predict_and_keep(*inputs, residuals)
    return combine_parts(prediction, conditions), kept


def predict_from_kept(
    network: UNetModel | ControlledUNet,
    kept: mx.array,
    x: mx.array,
    timestep: mx.array,
    conditions: Conditions,
    controls: Sequence[ControlArguments] = (),
) -> mx.array:
    """Return the prediction of `predict_with_guidance`, computed from kept deep features."""
    conditions = Conditions(*conditions)
    unet: nn.Module = network
    residual: mx.array | None = None
    if isinstance(network, ControlledUNet):
        unet = network.unet
        residual = compute_first_residual(network.controls, controls, x, conditions.n_parts)
    inputs = _list_inputs(x, timestep, conditions)
    return combine_parts(unet.predict_from_kept(kept, *inputs, residual), conditions)


def _compute_residuals(
    network: UNetModel | ControlledUNet,
    x: mx.array,
    timestep: mx.array,
    conditions: Conditions,
    controls: Sequence[ControlArguments],
) -> tuple[nn.Module, Residuals | None]:
    """Return the UNet, and what control networks add to it."""
    if not isinstance(network, ControlledUNet):
        return network, None
    text_time, n_parts = conditions.text_time, conditions.n_parts
    residuals = compute_residuals(network.controls, controls, x, timestep, text_time, n_parts)
    return network.unet, residuals


def _list_inputs(x: mx.array, timestep: mx.array, conditions: Conditions) -> tuple[Any, ...]:
    """Return the arguments of the UNet, for the latents of one part."""
    text, text_time, _, _, embedded, channels = conditions
    parts = [x]
    if channels:
        rows = (mx.broadcast_to(each, (len(x), *each.shape[1:])) for each in channels)
        parts = [mx.concatenate([x, each], axis=-1) for each in rows]  # [B, h, w, C + E]
    x = mx.concatenate(parts * (conditions.n_parts // len(parts)))
    return x, timestep, text, text_time, embedded


def combine_parts(prediction: mx.array, conditions: Conditions) -> mx.array:
    """Return the prediction with guidance, in float32 [B, h, w, C], for those of all parts.

    With two parts it is classifier-free guidance. With three it is formula 3 of InstructPix2Pix
    (Brooks et al. 2022, arXiv:2211.09800), with the negative text in place of no text:
    e(no text, no image) + s_I (e(no text, image) - e(no text, no image))
    + s_T (e(text, image) - e(no text, image)).
    """
    parts = prediction.astype(mx.float32).split(conditions.n_parts)
    guided = parts[-1]
    for i in reversed(range(len(conditions.weights))):
        guided = guided + conditions.weights[i] * (parts[i] - parts[i + 1])
    for amount in conditions.rescale:
        guided = rescale_guidance(guided, parts[0], amount)
    return guided


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
