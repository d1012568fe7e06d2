"""The parts of the kit, in the order in which they run. A new part is a row here.

Each runs in a process of its own. The numbers of a row say how long it takes: `seconds` apart from
arithmetic, and the arithmetic of the device and of the CPU, in TFLOP.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial

from . import check_choices, check_convolutions, check_networks, check_pictures, machine, measure
from .findings import Findings, Options

METAL = frozenset({"metal"})
GPUS = METAL | {"cuda"}
ALL = GPUS | {"cpu"}


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        run: does the part, in a process of its own.
        seconds: its time apart from arithmetic.
        device, cpu: the arithmetic on the device that is tried, and on the CPU, in TFLOP.
        seconds_on_cpu: its whole time if a CPU of two cores is tried; None if it does the same
            there as on a GPU.
        memory: what it needs, in GB.
        is_quick, is_full: whether it runs with `--quick`, and without.
        backends: those on which it means anything.
        environment: variables of its process.
    """

    name: str
    title: str
    run: Callable[[Options], Findings]
    seconds: float
    device: float = 0
    cpu: float = 0
    seconds_on_cpu: float | None = None
    memory: float = 1
    is_quick: bool = False
    is_full: bool = True
    backends: Set[str] = ALL
    environment: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, backend: str, rate: float, cpu_rate: float) -> float:
        """Return about how long it takes, in seconds, at rates of products in FLOP/s."""
        if backend == "cpu" and self.seconds_on_cpu is not None:
            return self.seconds_on_cpu
        return self.seconds + 1e12 * (self.device / rate + self.cpu / cpu_rate)


_quick = partial(Part, is_quick=True)
_choices = partial(Part, seconds_on_cpu=60, memory=6)
_networks = partial(Part, device=0.8, cpu=0.4)
_convolutions = partial(Part, seconds=10, device=12, cpu=1.2, seconds_on_cpu=3, memory=3)

PLANNING = ("machine", "rates")  # parts that the others are planned by
PARTS = (
    _quick("machine", "The machine", machine.describe_machine, 2),
    _quick("rates", "What the device could do", measure.measure_rates, 10),
    _quick("small", "Narrow networks", check_networks.check_small, 8),
    _quick("pictures", "Pictures of `tiny`", check_pictures.check_pictures, 25),
    _quick("small-choices", "Choices by device, small", check_choices.check_small, 15),
    _quick("step-small", "A small step", measure.measure_small, 40, memory=5, is_full=False),
    _choices("choices", "Choices by device", check_choices.check_real, 40, device=60),
    _choices("compiled", "A compiled step", check_choices.check_compiled, 40, device=10),
    _convolutions("convolutions", "Convolutions", check_convolutions.check),
    _convolutions(
        "convolutions-direct",
        "Convolutions without Winograd",
        check_convolutions.check,
        backends=METAL,
        environment=check_convolutions.DIRECT,
    ),
    _convolutions(
        "convolutions-tf32",
        "Convolutions with TF32",
        check_convolutions.check_with_tf32,
        backends=GPUS,
        environment=check_convolutions.TF32,
    ),
    _networks("sd-1.5", "Networks of SD 1.5", check_networks.check_sd_1, 20, memory=5),
    Part("decode-512", "Decoding 512×512", measure.measure_decode_512, 12, device=8, memory=4),
    Part("step-sd-1.5", "A step of SD 1.5", measure.measure_sd_1, 25, device=11, memory=4),
    Part("step-sd-2.1", "A step of SD 2.1", measure.measure_sd_2, 25, device=11, memory=4),
    Part("step-sdxl", "A step of SDXL", measure.measure_sdxl, 45, device=84, memory=9),
    Part("decode-1024", "Decoding 1024×1024", measure.measure_decode_1024, 12, device=32, memory=6),
    Part("step-768", "A step of SD 2.1, 768×768", measure.measure_768, 25, device=30, memory=5),
    _networks("sd-2.1", "Networks of SD 2.1", check_networks.check_sd_2, 20, memory=5),
    _networks(
        "sd-1.5-512", "SD 1.5 at 512×512", check_networks.check_512, 15, device=2, cpu=1, memory=6
    ),
    _networks("sdxl", "Networks of SDXL", check_networks.check_sdxl, 50, memory=13),
)
