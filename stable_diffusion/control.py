"""Control: pictures that steer what a pipeline draws, through networks that it has loaded.

A caller gives each picture in a `Control`. `activate` makes of them, for one call of a generator,
what `denoising.py` needs in each step.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from .active_control import ActiveControl
from .check_arguments import check_integer, check_number, describe
from .check_pictures import check_control_image
from .config.controlnet import ControlNetUnionConfig
from .half_weights import prepare_half_weights
from .model_io.control_models import (
    ControlNetwork,
    OpenedControl,
    find_damaged_control_weights,
    load_control_network,
)
from .quantize import find_quantization, quantize_as, quantize_unet, store_in_float16
from .utils.size import Size
from .utils.step_range import is_in_range
from .utils.wording import InputWarning, did_you_mean

LANCZOS_LOBES = 3

# What a picture for a union shows, by the number of its type, and other names for the same.
UNION_TYPES = (
    *("openpose", "depth", "softedge", "canny", "normal", "segmentation"),
    *("tile", "repaint"),  # of unions with eight types
)
UNION_ALIASES: Mapping[str, int] = MappingProxyType(
    {"pose": 0, "scribble": 2, "hed": 2, "lineart": 3, "mlsd": 3, "seg": 5, "inpaint": 7}
)


class LoadedControl:
    """A control network of a pipeline, which `StableDiffusion.load_control` returns.

    Attributes:
        name: of the control model.
        types: the names of what its pictures may show, if it is a union; empty for the others.
    """

    def __init__(self, opened: OpenedControl, float16: bool):
        self._opened = opened
        self._network: ControlNetwork | None = load_control_network(opened, float16)
        if float16:
            prepare_half_weights(self._network)
        self.name = opened.name
        self.types: tuple[str, ...] = ()
        if isinstance(config := self._network.config, ControlNetUnionConfig):
            numbers = range(len(UNION_TYPES), config.num_control_type)
            self.types = (*UNION_TYPES, *map(str, numbers))[: config.num_control_type]

    def __repr__(self) -> str:
        return f"LoadedControl({self.name!r})"

    @property
    def network(self) -> ControlNetwork:
        """Return the network.

        Raises:
            ValueError: if it has been unloaded.
        """
        if self._network is None:
            raise ValueError(f"the control network {self.name} has been unloaded: load it again")
        return self._network

    @property
    def is_unloaded(self) -> bool:
        """Return whether the network has been unloaded."""
        return self._network is None

    def quantize(self, bits: int | None = None) -> None:
        """Quantize the network, in place, unless it is quantized; see `quantize_unet`."""
        if find_quantization(self.network) is None:
            quantize_unet(self.network, bits)

    def use_float32(self) -> None:
        """Load the network again, to compute in float32; quantized if it was."""
        quantization = find_quantization(self.network)
        self._network = load_control_network(self._opened, True, widened=True)
        if quantization is not None:
            quantize_as(self._network, quantization)
            store_in_float16(self._network)

    def find_damaged_weights(self, float16: bool) -> list[str]:
        """Return the tensors that have a number that is not finite, "FILE: KEY"."""
        return find_damaged_control_weights(self._opened, float16)

    def unload(self) -> None:
        """Delete the network. A `Denoising` that has begun keeps it until it ends."""
        self._network = None


@dataclass(frozen=True, eq=False)
class Control:
    """A picture that steers what is drawn, for the argument `controls` of both generators.

    Attributes:
        network: what `load_control` returned.
        image: the control picture, [H, W, 3] floats in [0, 1], such as white edges on black. A
            picture of another size than the pictures that are made is stretched to theirs.
        scale: how much it steers, 1 by default; 0 has no effect.
        start, end: the part of the steps in which it steers: step i of n does if start ≤ i/n and
            (i + 1)/n ≤ end.
        type: for a union of ControlNets, what the picture shows, a name or a number.

    Raises:
        TypeError: if a value is of the wrong kind.
        ValueError: if a value is out of its range, or the network needs a type or has none.
    """

    network: LoadedControl
    image: mx.array | np.ndarray
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    type: str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.network, LoadedControl):
            raise TypeError(
                f"network must be what load_control returns, got {describe(self.network)}"
            )
        start, end = check_number("start", self.start, 0, 1), check_number("end", self.end, 0, 1)
        if start >= end:
            raise ValueError(f"start must be below end, got {start:g} and {end:g}")
        checked = {
            "image": check_control_image(self.image),
            "scale": check_number("scale", self.scale),
            "start": start,
            "end": end,
            "type": check_type(self.type, self.network),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the class is frozen for its users

    def is_active(self, step: int, n_steps: int) -> bool:
        """Return whether it steers step `step` of `n_steps`, counted from 0, as in diffusers."""
        return is_in_range(step, n_steps, self.start, self.end)


def check_type(value: Any, network: LoadedControl) -> int | None:
    """Return the number of a type of a union; None for other networks.

    Raises:
        TypeError: if it is neither a name nor a number.
        ValueError: if the network has no such type, or needs one, or takes none.
    """
    types = network.types
    if not types:
        if value is not None:
            raise ValueError(f"{network.name} takes no type, as it is not a union: leave it out")
        return None
    known = ", ".join(types)
    if value is None:
        raise ValueError(
            f"{network.name} is for several types: type must say what the picture shows: {known}"
        )
    number = find_union_type(value) if isinstance(value, str) else check_integer("type", value)
    if number is None:
        suggestion = did_you_mean(value, (*types, *UNION_ALIASES))
        raise ValueError(f"type must be one of {known}, got {value!r}{suggestion}")
    if not 0 <= number < len(types):
        raise ValueError(f"{network.name} has {len(types)} types ({known}), got type {value!r}")
    return number


def find_union_type(name: str) -> int | None:
    """Return the number of a type of ControlNet unions, of a name or a number; None if unknown."""
    if name.isascii() and name.isdigit() and int(name) < len(UNION_TYPES):
        return int(name)
    return {each: i for i, each in enumerate(UNION_TYPES)}.get(name, UNION_ALIASES.get(name))


def check_controls(value: Any, loaded: Sequence[LoadedControl]) -> tuple[Control, ...]:
    """Return the argument `controls` of a generator.

    Args:
        loaded: the control networks of the pipeline.

    Raises:
        TypeError: if it is not a list of `Control`.
        ValueError: if a network does not belong to the pipeline.
    """
    wanted = "controls must be a list of Control"
    if isinstance(value, Control):
        raise TypeError(f"{wanted}, got one alone: give [control]")
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{wanted}, got {describe(value)}")
    for i, control in enumerate(value):
        if not isinstance(control, Control):
            raise TypeError(f"{wanted}, got a list with {describe(control)} in it")
        if not any(control.network is each for each in loaded):
            what = "has been unloaded" if control.network.is_unloaded else "is of another pipeline"
            raise ValueError(
                f"controls[{i}]: the network {control.network.name} {what}: give what load_control "
                "of this one returned"
            )
    return tuple(value)


def warn_of_no_steps(controls: Sequence[Control], n_steps: int) -> None:
    """Warn about controls that are active in none of the steps of a call."""
    for control in controls:
        if not any(control.is_active(step, n_steps) for step in range(n_steps)):
            steps = "1 step" if n_steps == 1 else f"{n_steps} steps"
            message = (
                f"the control picture of {control.network.name} has no effect: none of {steps} "
                f"lies within its range, {control.start:g} to {control.end:g}"
            )
            warnings.warn(InputWarning(message), stacklevel=4)


def activate(controls: Sequence[Control], size: Size, n_steps: int) -> list[ActiveControl]:
    """Return the control networks of a call of a generator, with their pictures and steps.

    The pictures for one union that are active in the same step are given to it together.

    Args:
        size: of the pictures that are made.
        n_steps: the steps that are run.
    """
    groups: dict[int, list[Control]] = {}
    for i, control in enumerate(controls):
        key = id(control.network) if control.network.types else -1 - i  # each alone, except unions
        groups.setdefault(key, []).append(control)
    active = []
    for group in groups.values():
        steps: dict[tuple[Control, ...], list[int]] = {}
        for step in range(n_steps):
            together = tuple(each for each in group if each.is_active(step, n_steps))
            steps.setdefault(together, []).append(step)
        steps.pop((), None)
        active += [
            ActiveControl(
                network=group[0].network.network,
                pictures=[resize(mx.array(each.image), size)[None] for each in together],
                types=[each.type for each in together if isinstance(each.type, int)],
                scales=[each.scale for each in together],
                steps=frozenset(numbers),
            )
            for together, numbers in steps.items()
        ]
    return active


def resize(picture: mx.array, size: Size) -> mx.array:
    """Return a picture [H, W, 3] in [0, 1] stretched to a size by Lanczos' filter.

    The filter is the one of Pillow, which averages where it reduces; without rounding to 8 bits.
    """
    width, height = size
    old_height, old_width, channels = picture.shape
    if (old_height, old_width) == (height, width):
        return picture
    rows = mx.array(_make_lanczos(old_height, height)) @ picture.reshape(old_height, -1)
    resized = mx.array(_make_lanczos(old_width, width)) @ rows.reshape(height, old_width, channels)
    return mx.clip(resized, 0, 1)  # it overshoots at edges


def _make_lanczos(n_old: int, n_new: int) -> np.ndarray:
    """Return the matrix [n_new, n_old], float32, that resizes a side by Lanczos' filter."""
    scale = n_old / n_new
    width = max(scale, 1)  # of the filter, which covers all pixels where it reduces
    centers = (np.arange(n_new) + 0.5) * scale
    distances = (np.arange(n_old) + 0.5 - centers[:, None]) / width
    weights = np.sinc(distances) * np.sinc(distances / LANCZOS_LOBES)
    weights[np.abs(distances) >= LANCZOS_LOBES] = 0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
