"""Figures that others have published, to put beside one's own. None was measured with this kit."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A published figure: of which device, of what, and the value as it was published."""

    device: str
    what: str
    value: str


FIGURES = (
    Figure(
        "M5 Max",
        "SDXL 1024×1024 with guidance, bfloat16, Apple's MLX example",
        "1.08 s a step, about 50 GB at the peak",
    ),
    Figure("M2 Pro", "one UNet step of SD 1.5, Core ML", "399 to 447 ms"),
    Figure("M2 Pro", "one UNet step of SD 1.5, MLX", "502 ms"),
    Figure("M2 Pro", "one UNet step of SD 1.5, diffusers on MPS", "522 ms"),
    Figure("M2 Ultra", "SD 2.1, batch of 16, through the UNet", "8.8 pictures a second"),
    Figure("H100", "SDXL, 30 steps, torch", "2.50 s"),
    Figure("H100", "SDXL, 30 steps, TensorRT", "1.47 s"),
    Figure("A100", "SD 1.5, TensorRT", "61 steps a second"),
)


def find_published(device: str) -> list[Figure]:
    """Return the figures of a device by its name, such as "Apple M2 Pro"; all if there are none."""
    words = device.split()
    of_device = [
        figure
        for figure in FIGURES
        if any(words[i:][: len(figure.device.split())] == figure.device.split() for i in range(9))
    ]
    return of_device or list(FIGURES)
