"""3×3 convolutions of the sizes that matter, and a decode, against the CPU; and their time.

The same parts run with `MLX_CONV_WINOGRAD_WORKING_SET=1`, which turns Metal's Winograd off, and
with `MLX_ENABLE_TF32=1`. MLX reads both once, so each needs a process of its own.
"""

from typing import NamedTuple

import mlx.core as mx
from tasks import random_normal

from stable_diffusion.layers import Conv3x3

from .devices import evaluate, has_gpu, on_cpu, on_device
from .findings import Findings, Limits, Options
from .networks import PRECISIONS, cast, decode_case, fill, find_model, set_dtype
from .timing import measure_seconds

DIRECT = {"MLX_CONV_WINOGRAD_WORKING_SET": "1"}
TF32 = {"MLX_ENABLE_TF32": "1"}
# One convolution in float32 and float16. With TF32 on, float32 has the digits of float16.
LIMITS = {"float32": Limits(2e-5, 90), "float16": Limits(2e-2, 45)}


class Size(NamedTuple):
    """A convolution of [batch, side, side, inputs] to as many pixels of `outputs` channels."""

    where: str
    batch: int
    side: int
    inputs: int
    outputs: int


SIZES = (
    Size("UNet, first level", 2, 64, 320, 320),
    Size("UNet, first level, after a skip", 2, 64, 640, 320),
    Size("UNet, second level", 2, 32, 640, 640),
    Size("UNet, third level", 2, 16, 1280, 1280),
    Size("VAE, widest", 1, 128, 512, 512),
    Size("VAE, third level", 1, 256, 256, 256),
    Size("VAE, last level", 1, 512, 128, 128),
)
QUICK_SIZES = (Size("small", 1, 32, 64, 64), Size("small, odd", 1, 33, 96, 32))
DECODE_SIDE = 32  # latents, of 256×256 pixels


def check(options: Options) -> Findings:
    """Check and time convolutions, then a decode, in float32 and float16."""
    findings = Findings()
    is_small = options.is_quick or not has_gpu()
    for size in QUICK_SIZES if is_small else SIZES:
        _check_size(findings, size)
    if not is_small:
        _check_decode(findings)
    return findings


def check_with_tf32(options: Options) -> Findings:
    """Measure what TF32 changes, if the device has it: nothing of it can fail."""
    findings = check(options)
    findings.checks = [check._replace(limits=None) for check in findings.checks]
    return findings


def _check_size(findings: Findings, size: Size) -> None:
    """Check and time one convolution, as `layers.Conv3x3` computes it on the device."""
    layer = fill(Conv3x3(size.inputs, size.outputs))
    x = mx.array(random_normal(size.batch, size.side, size.side, size.inputs))
    what = f"{size.where}: {size.batch}×{size.side}×{size.side}, {size.inputs} → {size.outputs}"
    with on_cpu():
        right = evaluate(layer, x)
    for name, dtype in PRECISIONS.items():
        set_dtype(layer, dtype)
        (inputs,) = cast((x,), dtype)
        with on_device():
            findings.compare(f"{what}, {name}", evaluate(layer, inputs), right, LIMITS[name])
            seconds = measure_seconds(lambda: layer(inputs), together=4)  # noqa: B023
        products = 2 * 9 * size.inputs * right.size
        row = {"computed": f"{what}, {name}", "time": f"{1e3 * seconds:.2f} ms"}
        findings.measure(row | {"rate": f"{products / seconds / 1e12:.2f} TFLOP/s"})


def _check_decode(findings: Findings) -> None:
    """Check and time a decode at the real widths."""
    title = f"decode, {8 * DECODE_SIDE}×{8 * DECODE_SIDE}"
    case = decode_case(title, find_model("sd-1.5").autoencoder, DECODE_SIDE)
    with on_cpu():
        right = evaluate(case.run, case.network, *case.inputs)
    for name, dtype in PRECISIONS.items():
        set_dtype(case.network, dtype)
        inputs = cast(case.inputs, dtype)
        with on_device():
            result = evaluate(case.run, case.network, *inputs)
            seconds = measure_seconds(lambda: case.run(case.network, *inputs))  # noqa: B023
        limits = Limits(1e-4, 80) if name == "float32" else None  # half is off for the VAE
        findings.compare(f"{title}, {name}", result, right, limits)
        findings.measure({"computed": f"{title}, {name}", "time": f"{1e3 * seconds:.1f} ms"})
