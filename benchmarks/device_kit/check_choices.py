"""Whatever is chosen by the kind of device, against the plain way, on the device itself.

A choice is a function that returns a `Choice`; `SMALL` and `REAL` list them with their sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from .devices import evaluate, has_gpu, on_device
from .findings import LIMITS, Findings, Limits, Options

DTYPES = {"float32": mx.float32, "float16": mx.float16}
GUIDANCE = 7.5
OVERFLOWING = 3000.0  # below 65504, the largest number of float16; 45 times this is above


@dataclass
class Choice:
    """Two ways to compute the same.

    Attributes:
        chosen: as the program does on this device.
        plain: the other way; in float32 if the plain way overflows.
        dtype: of the inputs.
        limits: None if there is nothing to fail.
    """

    what: str
    chosen: Callable[[], mx.array]
    plain: Callable[[], mx.array]
    dtype: mx.Dtype = mx.float32
    limits: Limits | None = None


Make = Callable[[mx.Dtype], Choice]  # for a precision


def check_small(options: Options) -> Findings:
    """Compare the ways at small sizes."""
    return _check(SMALL, list(DTYPES.values()))


def check_real(options: Options) -> Findings:
    """Compare the ways at the sizes of the real models."""
    return _check(REAL, list(DTYPES.values()) if has_gpu() else [mx.float32])


def _check(makers: list[Make], dtypes: list[mx.Dtype]) -> Findings:
    findings = Findings()
    for make in makers:
        for dtype in dtypes:
            with on_device():
                choice = make(dtype)
                result = evaluate(choice.chosen)
                right = evaluate(choice.plain)
                findings.compare(choice.what, result, right, LIMITS[dtype])
            mx.clear_cache()
    return findings


SMALL: list[Make] = []
REAL: list[Make] = []
