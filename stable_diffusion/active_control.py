"""The control networks of a batch: what they compute once, and their residuals in each step.

ControlNet: Zhang et al. 2023 (arXiv:2302.05543). T2I-Adapter: Mou et al. 2023 (arXiv:2302.08453).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .attention import KeysValues
from .device import backend
from .unet import Residuals, TextTime


@dataclass(frozen=True, eq=False)
class ActiveControl:
    """A control network with its pictures, and the steps in which it steers the UNet.

    Attributes:
        network: a ControlNet, a ControlNet union or a T2I-Adapter.
        pictures: each [1, H, W, 3] in [0, 1], in the size of the pictures that are made.
        types: what each picture shows, for a union; empty for the others.
        scales: how much each picture steers.
        steps: the indices of the steps in which the network is active.
    """

    network: nn.Module
    pictures: Sequence[mx.array]
    types: Sequence[int]
    scales: Sequence[float]
    steps: frozenset[int]


class ControlArguments(NamedTuple):
    """What a control network takes in each step, beside latents and time.

    Attributes:
        prepared: what it has computed of its pictures.
        text: the keys and values of the text, one for each attention to it.
        scales: how much each picture steers.
    """

    prepared: list[mx.array]
    text: list[KeysValues]
    scales: list[Any]


class ControlledUNet(nn.Module):
    """A UNet and the control networks that steer it, as one network with all their weights."""

    def __init__(self, unet: nn.Module, controls: Sequence[nn.Module]):
        super().__init__()
        self.unet = unet
        self.controls = list(controls)


def prepare_control(
    control: ActiveControl, embeddings: mx.array, dtype: mx.Dtype
) -> ControlArguments:
    """Return what a control network computes once for all steps.

    Args:
        embeddings: of the text, [R, N, D].
        dtype: the type that the networks compute in.
    """
    network = control.network
    pictures = [picture.astype(dtype) for picture in control.pictures]
    scales: list[Any] = list(control.scales)
    if backend.is_gpu():
        scales = [
            mx.array(scale, dtype) for scale in scales
        ]  # not constants of a compiled function
    return ControlArguments(
        network.prepare(pictures, control.types), network.project_text(embeddings), scales
    )


def compute_residuals(
    networks: Sequence[nn.Module],
    controls: Sequence[ControlArguments],
    x: mx.array,
    timestep: mx.array,
    text_time: TextTime | None,
    n_parts: int,
) -> Residuals:
    """Return the sum of what the control networks add to the UNet.

    A network that steers only the prediction for the text adds zeros to the other parts, as
    diffusers does.

    Args:
        networks: at least one.
        controls: the arguments of each network.
        x: latents [B, h, w, C].
        text_time: pooled embeddings and time ids of n_parts · B rows.
        n_parts: how many times the UNet gets the latents: for each text of guidance once. The part
            of the prompt is the first.
    """
    total: Residuals | None = None
    for network, (prepared, text, scales) in zip(networks, controls, strict=True):
        n_computed = 1 if network.is_conditional_only else n_parts
        n_rows = n_computed * len(x)
        residuals = network(
            mx.concatenate([x] * n_computed),
            timestep,
            [(keys[:n_rows], values[:n_rows]) for keys, values in text],
            None if text_time is None else (text_time[0][:n_rows], text_time[1][:n_rows]),
            prepared,
            scales,
        )
        if n_computed < n_parts:
            residuals = _map_residuals(residuals, lambda r: _append_zeros(r, n_parts))
        total = residuals if total is None else add_residuals(total, residuals)
    if total is None:
        raise ValueError("there is no control network")
    return total


def compute_first_residual(
    networks: Sequence[nn.Module], controls: Sequence[ControlArguments], x: mx.array, n_parts: int
) -> mx.array | None:
    """Return the sum of what the control networks add to the UNet's first skip connection.

    It is None if there is nothing to add. See `compute_residuals` for the arguments.
    """
    total: mx.array | None = None
    for network, (prepared, _, scales) in zip(networks, controls, strict=True):
        n_computed = 1 if network.is_conditional_only else n_parts
        rows = mx.concatenate([x] * n_computed)
        residual = network.compute_first_residual(rows, prepared, scales)
        if residual is None:
            continue
        if n_computed < n_parts:
            residual = _append_zeros(residual, n_parts)
        total = residual if total is None else total + residual
    return total


def add_residuals(first: Residuals, second: Residuals) -> Residuals:
    """Return the sums of the residuals of two networks, either of which may lack some."""
    down, inner = (
        [a if b is None else b if a is None else a + b for a, b in zip_longest(firsts, seconds)]
        for firsts, seconds in ((first.down, second.down), (first.inner, second.inner))
    )
    mids = [mid for mid in (first.mid, second.mid) if mid is not None]
    return Residuals(down, sum(mids[1:], mids[0]) if mids else None, inner)


def _map_residuals(residuals: Residuals, function: Any) -> Residuals:
    """Return residuals with function(r) for each of them."""
    down, mid, inner = residuals
    return Residuals(
        [function(r) for r in down],
        None if mid is None else function(mid),
        [function(r) for r in inner],
    )


def _append_zeros(residual: mx.array, n_parts: int) -> mx.array:
    """Return a residual [B, …] with zeros for the other parts of the batch, [n_parts · B, …]."""
    return mx.concatenate([residual] + [mx.zeros_like(residual)] * (n_parts - 1))
