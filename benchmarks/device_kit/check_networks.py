"""Every network in each precision, against float32 on the CPU."""

from collections.abc import Iterator

import mlx.core as mx

from .devices import evaluate, has_gpu, on_cpu, on_device
from .findings import LIMITS, Findings, Options
from .networks import (
    PRECISIONS,
    SMALL_SD,
    SMALL_SDXL,
    Case,
    cast,
    decode_case,
    encode_case,
    find_model,
    set_dtype,
    text_case,
    unet_case,
)


def check_small(options: Options) -> Findings:
    """Check narrow networks with the parts of the real ones, in each precision."""
    return check_cases(_small_cases(), list(PRECISIONS))


def check_sd_1(options: Options) -> Findings:
    """Check the networks of SD 1.5 at real size."""
    return _check_real("sd-1.5", side=16)


def check_512(options: Options) -> Findings:
    """Check the UNet of SD 1.5 for pictures of 512×512, where Metal chooses Winograd."""
    model = find_model("sd-1.5")
    return check_cases(iter([unet_case("UNet, 512×512", model.unet, 64)]), _choose_precisions())


def check_sd_2(options: Options) -> Findings:
    """Check the networks of SD 2.1 at real size."""
    return _check_real("sd-2.1", side=16)


def check_sdxl(options: Options) -> Findings:
    """Check the networks of SDXL at real size."""
    return _check_real("sdxl", side=16)


def check_cases(cases: Iterator[Case], precisions: list[str]) -> Findings:
    """Compare each case on the device, in each precision, with float32 on the CPU."""
    findings = Findings()
    for case in cases:
        with on_cpu():
            right = evaluate(case.run, case.network, *case.inputs)
        for name in precisions:
            dtype = PRECISIONS[name]
            set_dtype(case.network, dtype)
            with on_device():
                result = evaluate(case.run, case.network, *cast(case.inputs, dtype))
            findings.compare(f"{case.title}, {name}", result, right, LIMITS[dtype])
        del case  # before the next network is made
        mx.clear_cache()
    return findings


def _small_cases() -> Iterator[Case]:
    tiny = find_model("tiny")
    yield text_case("text encoder", tiny.text_encoders[0])
    yield unet_case("UNet of `tiny`", tiny.unet, 8)
    yield unet_case("UNet like SD 1.5", SMALL_SD, 32)
    yield unet_case("UNet like SDXL", SMALL_SDXL, 16, batch=2)
    yield decode_case("VAE decode", tiny.autoencoder, 8)
    yield encode_case("VAE encode", tiny.autoencoder, 8)


def _check_real(name: str, side: int) -> Findings:
    """Check each network of a model with latents of `side` × `side`."""
    model = find_model(name)

    def cases() -> Iterator[Case]:
        for i, config in enumerate(model.text_encoders, 1):
            yield text_case(f"text encoder {i}", config)
        pixels = f"{8 * side}×{8 * side}"
        yield unet_case(f"UNet, {pixels}", model.unet, side)
        if name == "sd-1.5":  # the VAEs of the others have the same layers
            yield decode_case(f"VAE decode, {pixels}", model.autoencoder, side)
            yield encode_case(f"VAE encode, {pixels}", model.autoencoder, side)

    return check_cases(cases(), _choose_precisions())


def _choose_precisions() -> list[str]:
    """Return the precisions for real sizes: a CPU would compute for minutes in float16."""
    return list(PRECISIONS) if has_gpu() else ["float32"]
