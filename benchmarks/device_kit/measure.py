"""What the device could do, and what a step and a decode of the real models take on it."""

from collections.abc import Callable

import mlx.core as mx
from operations import count_step
from real_sizes import MODELS
from tasks import TIMESTEP, pooled_width, random_normal

from stable_diffusion.device import backend
from stable_diffusion.device.memory import read_peak_memory
from stable_diffusion.prediction import Predict, make_predict
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder
from stable_diffusion.vae_strips import decode

from .count_products import count_products
from .devices import has_gpu, on_cpu
from .findings import Findings, Options
from .networks import fill, find_model
from .timing import (
    measure_copy_rate,
    measure_once,
    measure_product_rate,
    measure_queued_seconds,
    measure_seconds,
)

GUIDANCE = 7.5
SIGMA = 0.1  # the share of a prediction that a step takes, so that latents stay about 1
QUEUED_STEPS = 3
MATRIX, GPU_MATRIX = 2048, 8192  # sides
COPIED, GPU_COPIED = 2**27, 2**30  # bytes


def measure_rates(options: Options) -> Findings:
    """Measure the rates of products and of copying, which bound every other time."""
    findings = Findings()
    side, n_bytes = (GPU_MATRIX, GPU_COPIED) if has_gpu() else (MATRIX, COPIED)
    rates = {"float32": measure_product_rate(side, mx.float32)}
    if has_gpu():
        for name, dtype in (("float16", mx.float16), ("bfloat16", mx.bfloat16)):
            rates[name] = measure_product_rate(side, dtype)
    with on_cpu():
        rates["float32, CPU"] = measure_product_rate(MATRIX, mx.float32)
    for name, rate in rates.items():
        findings.measure({"rate": f"products, {name}", "value": f"{rate / 1e12:.2f} TFLOP/s"})
    copied = measure_copy_rate(n_bytes)
    findings.measure({"rate": "reading and writing", "value": f"{copied / 1e9:.0f} GB/s"})
    findings.facts = {"rate": rates["float32"], "cpu_rate": rates["float32, CPU"]}
    return findings


def measure_small(options: Options) -> Findings:
    """Measure a step and a decode of SD 1.5 for a picture of 128×128."""
    findings = _measure_step("sd-1.5", 128)
    findings.figures += _measure_decode(128).figures
    return findings


def measure_sd_1(options: Options) -> Findings:
    """Measure a step of SD 1.5 for a picture of 512×512."""
    return _measure_step("sd-1.5", 512)


def measure_sd_2(options: Options) -> Findings:
    """Measure a step of SD 2.1 for a picture of 512×512."""
    return _measure_step("sd-2.1", 512)


def measure_768(options: Options) -> Findings:
    """Measure a step of SD 2.1 for a picture of 768×768."""
    return _measure_step("sd-2.1", 768)


def measure_sdxl(options: Options) -> Findings:
    """Measure a step of SDXL for a picture of 1024×1024."""
    return _measure_step("sdxl", 1024)


def measure_decode_512(options: Options) -> Findings:
    """Measure the decoding of a picture of 512×512."""
    return _measure_decode(512)


def measure_decode_1024(options: Options) -> Findings:
    """Measure the decoding of a picture of 1024×1024."""
    return _measure_decode(1024)


def _measure_step(name: str, n_pixels: int) -> Findings:
    """Measure a step with guidance, as the program runs it: `n_pixels` × `n_pixels`."""
    findings = Findings()
    dtype = mx.float16 if has_gpu() else mx.float32  # as the scripts choose
    model = find_model(name)
    unet = fill(UNetModel(model.unet), dtype)
    predict = _make_predict(unet, n_pixels, dtype)

    def step(x: mx.array) -> mx.array:
        return x - SIGMA * predict(x, mx.array(TIMESTEP), 0)

    side = n_pixels // 8
    x = mx.array(random_normal(1, side, side, model.unet.in_channels))
    work = count_products(step, x)
    what = f"step of {MODELS[name].title}, {n_pixels}×{n_pixels}, with guidance"
    row = _measure(what, lambda: step(x), work, dtype)
    if has_gpu():  # a CPU computes at once: nothing is queued
        row["next step queued"] = _format(measure_queued_seconds(step, x, QUEUED_STEPS))
        if n_pixels == MODELS[name].size:
            row |= _describe_launches(name)
    findings.measure(row)
    return findings


def _describe_launches(name: str) -> dict[str, str]:
    """Return what a step launches and writes, by MLX's graph, and how long the writing takes.

    Reading takes at least as long, so the time is that of copying.
    """
    launched, n_bytes = count_step(name, backend.find_backend(), guidance=True)
    return {
        "launched": f"{launched:,}",
        "written": f"{n_bytes / 1e9:.2f} GB",
        "time of copying it": _format(2 * n_bytes / measure_copy_rate(GPU_COPIED)),
    }


def _make_predict(unet: UNetModel, n_pixels: int, dtype: mx.Dtype) -> Predict:
    """Return the program's prediction of a step with guidance, for random text."""
    config = unet.config
    text = mx.array(random_normal(2, 77, config.cross_attention_dim, seed=1))
    text_time = None
    if config.addition_embed_type is not None:
        pooled = mx.array(random_normal(2, pooled_width(config), seed=2)).astype(dtype)
        text_time = pooled, mx.full((2, 6), float(n_pixels))
    return make_predict(unet, text, text_time, GUIDANCE, 0.0, dtype)


def _measure_decode(n_pixels: int) -> Findings:
    """Measure a decode in float32, as the program runs it: `n_pixels` × `n_pixels`."""
    findings = Findings()
    vae = fill(Autoencoder(find_model("sd-1.5").autoencoder))
    z = mx.array(random_normal(1, n_pixels // 8, n_pixels // 8, vae.latent_channels))
    work = count_products(vae.decode, z)
    what = f"decode, {n_pixels}×{n_pixels}"
    findings.measure(_measure(what, lambda: decode(vae, z), work, mx.float32))
    return findings


def _measure(what: str, run: Callable[[], mx.array], work: int, dtype: mx.Dtype) -> dict[str, str]:
    """Return a row: the time of `run`, its memory, and the time of its products alone."""
    mx.clear_cache()
    mx.reset_peak_memory()
    first = measure_once(run)
    seconds = measure_seconds(run)
    peak = mx.get_peak_memory()
    floor = work / measure_product_rate(GPU_MATRIX // 2 if has_gpu() else MATRIX, dtype)
    return {
        "computed": what,
        "time": _format(seconds),
        "the first time": _format(first),
        "products": f"{work / 1e12:.2f} TFLOP",
        "time of the products": _format(floor),
        "memory of MLX": f"{peak / 1e9:.2f} GB",
        "memory of the process": f"{read_peak_memory() / 1e9:.2f} GB",
    }


def _format(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"
