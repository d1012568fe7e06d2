"""Load the control networks of a run, and give them the control pictures in the size of a batch."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from ..control import Control, LoadedControl, check_type, resize
from ..images.arrays import to_uint8
from ..images.edges import draw_edges
from ..model_io.control_models import OpenedControl, open_control
from ..model_io.model import Model
from ..pipeline import StableDiffusion
from ..utils.size import Size
from .job import UsageError
from .settings import ControlPicture
from .start import Start, show_like
from .terminal.console import say

MAX_STRETCH = 0.02  # how much proportions may differ before it shows


def open_controls(
    pictures: Iterable[ControlPicture], model: Model, float16: bool
) -> dict[str, OpenedControl]:
    """Open the control models of a run, each once, by the names that the user gave.

    Announce downloads that are needed.

    Raises:
        OSError, ValueError: see `open_control`.
    """
    opened: dict[str, OpenedControl] = {}
    for picture in pictures:
        if picture.model not in opened:
            control = open_control(picture.model, model, on_message=say)
            if (line := control.describe_download(float16)) is not None:
                say(line)
            opened[picture.model] = control
    return opened


def load_controls(
    sd: StableDiffusion, opened: Mapping[str, OpenedControl], pictures: Iterable[ControlPicture]
) -> dict[str, LoadedControl]:
    """Return the control networks of a run, by the names that the user gave; weights stay lazy.

    Raises:
        UsageError: if the type of a picture does not suit its network.
        OSError, ValueError: see `StableDiffusion.load_control`.
    """
    loaded = {name: sd.load_control(control) for name, control in opened.items()}
    for picture in pictures:
        try:
            check_type(picture.type, loaded[picture.model])
        except ValueError as error:
            raise UsageError(f"--control {picture.model}: {error}") from None
    return loaded


def make_controls(
    pictures: Sequence[ControlPicture],
    networks: Mapping[str, LoadedControl],
    size: Size,
    start: Start | None = None,
) -> list[Control]:
    """Return the argument `controls` of the library's generators.

    Args:
        networks: the loaded networks, by the names that the user gave.
        size: of the pictures that are made.
        start: what they start from; of a picture of which a part is drawn, the control pictures
            show the whole.
    """
    return [
        Control(
            network=networks[each.model],
            image=_prepare_picture(each, size, start),
            scale=each.scale,
            start=each.start,
            end=each.end,
            type=each.type,
        )
        for each in pictures
    ]


def _prepare_picture(control: ControlPicture, size: Size, start: Start | None) -> np.ndarray:
    """Return a control picture, [H, W, 3] in [0, 1]; edges are drawn in the size that is drawn."""
    picture = control.pixels
    if start is not None and start.original is not None:
        height, width, _ = start.original.shape
        whole = to_uint8(np.array(resize(mx.array(picture), Size(width, height))))
        height, width, _ = start.pixels.shape
        size = Size(width, height)
        picture = show_like(start, whole) / np.float32(255)
    if control.canny is None:
        return picture
    pixels = to_uint8(np.array(resize(mx.array(picture), size)))
    return draw_edges(pixels, *control.canny) / np.float32(255)


def warn_of_pictures(pictures: Iterable[ControlPicture], sizes: Iterable[Size]) -> None:
    """Warn about control pictures that are stretched, or show nothing.

    Args:
        sizes: of the pictures that are made.
    """
    sizes = list(dict.fromkeys(sizes))
    for control in pictures:
        height, width, _ = control.pixels.shape
        for size in sizes:
            ratio = width / height * size.height / size.width
            if abs(ratio - 1) > MAX_STRETCH:
                warnings.warn(
                    f"{control.file} has other proportions than the pictures: it is stretched "
                    f"from {width}x{height} to {size.width}x{size.height}",
                    stacklevel=2,
                )
                break
        shown = (
            control.pixels if control.canny is None else _prepare_picture(control, sizes[0], None)
        )
        if (shown == shown[0, 0]).all():
            what = "has one colour" if control.canny is None else "has no edges at --control-canny"
            warnings.warn(f"{control.file} {what}: it steers little", stacklevel=2)
