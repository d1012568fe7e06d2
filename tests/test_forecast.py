"""The forecast of the memory of a run, and the warning that it does not fit."""

import re
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest

import txt2image
from stable_diffusion import StableDiffusion
from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.lora_layers import AdaptedConv3x3, AdaptedLinear, PreparedLinear
from stable_diffusion.cli import room
from stable_diffusion.device import free_memory
from stable_diffusion.forecast import Course, count_bytes, count_merged, make_forecast
from stable_diffusion.layers import Conv3x3, Linear
from stable_diffusion.merged_layers import MergedLayers
from stable_diffusion.quantized_convolution import QuantizedConv3x3
from stable_diffusion.utils.size import Size

GIB = 2**30


def test_weights_are_counted_before_they_are_read():
    """They are as many bytes as quantized networks then take, and none is read to count them."""
    sd = StableDiffusion("tiny")
    mx.synchronize()
    before = mx.get_active_memory()
    expected = sum(room.count_quantized_bytes(sd, unet_bits=6))
    assert mx.get_active_memory() - before < 1e5
    sd.quantize(unet_bits=6)
    assert count_bytes([sd.unet, sd.text_encoder]) == pytest.approx(expected, rel=0.01)
    sd.ensure_models_are_loaded()
    read = mx.get_active_memory() - before - count_bytes([sd.autoencoder])
    assert read == pytest.approx(expected, rel=0.02)


def test_what_is_there_in_each_phase():
    text, encoder, decoder, unet, preview, upscalers = (2**i for i in range(6))
    names = ("text", "encoder", "decoder", "unet", "preview", "upscalers")
    weights = dict(zip(names, (text, encoder, decoder, unet, preview, upscalers), strict=True))
    layers = {"encoding": 100, "denoising": 200, "decoding": 300}

    def sums(**options: bool) -> list[int]:
        found = make_forecast(1000, weights, layers, Course(**options))
        assert found.peak == max(found.encoding, found.denoising, found.decoding)
        return [found.encoding - 1100, found.denoising - 1200, found.decoding - 1300]

    last = decoder + upscalers
    assert sums() == [text, unet, last]
    assert sums(starts_from_picture=True) == [text + encoder, unet + encoder, last + encoder]
    assert sums(has_preview=True) == [text, unet + decoder + preview, last + preview]
    assert sums(enlarges_pictures=True) == [text, unet + last + encoder, last + encoder]
    assert sums(has_several_batches=True) == [text, unet + last, last + unet]
    vae = encoder + decoder
    assert sums(is_preloaded=True) == [text + unet + vae, unet + vae, vae + upscalers]


class Adapted(nn.Module):
    """Layers with changes, of which those of the quantized linear layer are not merged."""

    def __init__(self):
        super().__init__()
        linear, conv = Linear(32, 24), Conv3x3(32, 16)
        stored = Linear(32, 24)
        stored.set_dtype(mx.float16)
        self.layers = [AdaptedLinear(each, [make_change(24)]) for each in (linear, stored)]
        self.layers.append(AdaptedLinear(linear.to_quantized(32, 8), [make_change(24)]))
        for each in (conv, QuantizedConv3x3(conv, 32, 4)):
            self.layers.append(AdaptedConv3x3(each, [make_change(16, 3, 3)]))


def make_change(n_outputs: int, *kernel: int) -> LowRank:
    return LowRank(mx.zeros((2, *kernel, 32)), mx.zeros((n_outputs, 2)))


def test_merged_weights_are_counted():
    """As `MergedLayers` keeps them."""
    network = Adapted()
    merged = MergedLayers().put_into(network).layers
    kept = [layer.weight.nbytes for layer in merged if not isinstance(layer, PreparedLinear)]
    assert len(kept) == 4
    assert count_merged([network]) == sum(kept)
    assert count_merged([network], is_quantized=True) == sum(kept[2:])  # of the convolutions


def test_pictures_that_are_decoded_while_denoising():
    """Previews by a VAE are, and pictures that a second pass enlarges, unless it takes latents."""
    sd, size, larger = StableDiffusion("tiny"), Size(64, 64), Size(96, 96)

    def count(upscale: str | None = None, **options: object) -> int:
        settings = SimpleNamespace(**{"preview": None, "controls": (), "batch_size": 1} | options)
        run = SimpleNamespace(settings=settings, sd=sd, preview_vae=None, upscalers={})
        second = None if upscale is None else SimpleNamespace(size=larger, upscale=upscale)
        job = SimpleNamespace(width=64, height=64, cfg=1, image_cfg=None, second_pass=second)
        job.size = size if second is None else larger
        batch = SimpleNamespace(jobs=[job])
        return room._count_denoising_bytes(run, batch, room.Choices(), widest=0)

    vae = sd.autoencoder
    small = room._count_decoding_bytes(vae, size, None)
    assert count(preview=1, preview_vae=True) == small > count(preview=1, preview_vae=None)
    assert count(preview=1, preview_vae=None) == count()
    encoding = room._count_encoding_bytes(vae, larger, None)
    assert count("lanczos") == max(small, encoding) > count("latent") > count()


@pytest.mark.parametrize(
    ("free", "options", "advice"),
    [
        (1e9, [], None),
        (0.0, [], "-q, and smaller pictures"),
        (0.0, ["-q", "--unet-bits=4", "--low-memory"], "smaller pictures"),
        (-1.0, [], "-q"),
    ],
)
def test_warning(monkeypatch, tmp_path, capsys, free, options, advice):
    """It is one line, which names what helps; nothing is said if all fits.

    A negative number stands for a byte less than what is needed.
    """
    seen: list[int] = []
    forecast_run = room.forecast_run

    def forecast(*arguments):
        seen.append(forecast_run(*arguments).peak)
        return forecast_run(*arguments)

    base = free_memory.read_resident_memory()
    monkeypatch.setattr(room, "forecast_run", forecast)
    monkeypatch.setattr(free_memory, "read_resident_memory", lambda: base)
    monkeypatch.setattr(
        free_memory, "read_free_memory", lambda: seen[0] - base - 1 if free < 0 else int(free)
    )
    arguments = ["a red circle", "--model=tiny", "--n_images=1", "--steps=1", *options]
    assert txt2image.main([*arguments, f"--output={tmp_path / 'o.png'}"]) == 0
    found = re.findall(r"warning: this needs about .* are free: try (.*)", capsys.readouterr().err)
    assert len(found) == (advice is not None)
    if advice is not None:
        assert found[0].removesuffix(" (--width and --height)") == advice


ALL_OPTIONS = "--batch-size 1 -q --unet-bits 4 --low-memory"
SMALLER = f", and {room.SMALLER}"


@pytest.mark.parametrize(
    ("free", "settings", "advice"),
    [
        (11, {}, "--batch-size 1"),
        (10, {}, "-q"),
        (8, {}, "-q --unet-bits 4"),
        (7, {}, "-q --unet-bits 4 --low-memory"),
        (6, {}, "--batch-size 1 -q --unet-bits 8 --low-memory"),
        (1, {}, ALL_OPTIONS + SMALLER),
        (1, {"quantize": True, "unet_bits": 8}, ALL_OPTIONS + SMALLER),
        (1, {"quantize": True, "unet_bits": 4}, "--batch-size 1" + SMALLER),
        (1, {"quantization": "of a folder, which stays"}, "--batch-size 1" + SMALLER),
        (6, {"preload_models": True}, "-q --unet-bits 4" + SMALLER),
    ],
)
def test_advice(monkeypatch, free, settings, advice):
    """It has no option that does not help."""
    options = {"quantize": False, "unet_bits": None, "text_encoder_bits": None}
    options |= {"preload_models": False, "quantization": None} | settings
    unet = SimpleNamespace(quantization=options.pop("quantization"))
    sd = SimpleNamespace(config=SimpleNamespace(unet=unet))
    run = SimpleNamespace(settings=SimpleNamespace(**options), sd=sd)

    def forecast(run, batches, choices, base):
        weights = 10 if choices.quantized_bytes is None else choices.quantized_bytes[0]
        denoising = weights + (1 if choices.is_single else 4)
        return SimpleNamespace(peak=max(denoising, 4 if choices.in_strips else 8))

    monkeypatch.setattr(room, "forecast_run", forecast)
    monkeypatch.setattr(room, "_count_rows", lambda run, batch: (2, 2))
    monkeypatch.setattr(
        room, "count_quantized_bytes", lambda sd, bits, text_bits: ({None: 6, 8: 5, 4: 3}[bits], 0)
    )
    assert room.find_advice(run, [None], room.Choices(), 0, free) == advice


def write(folder: Path, **contents: str) -> Path:
    """Write files into a new folder."""
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_free_memory(monkeypatch, tmp_path):
    """The smallest room of all groups counts; what cannot be read has no limit."""
    proc = write(tmp_path / "proc", meminfo="MemTotal: 99 kB\nMemAvailable:   4194304 kB\n")
    groups = tmp_path / "cgroup"
    read = lambda: free_memory.read_free_memory(proc, groups)  # noqa: E731
    assert read() == 4 * GIB
    write(proc / "self", cgroup="9:cpu:/a\n4:memory:/a/b\n0::/c\n")
    assert read() == 4 * GIB
    room_of_a = {"memory__limit_in_bytes": f"{3 * GIB}", "memory__usage_in_bytes": f"{2 * GIB}"}
    write(groups / "memory/a", **room_of_a, memory__stat=f"total_inactive_file {GIB}\n")
    assert read() == 2 * GIB
    (groups / "memory/a/memory.stat").write_text(f"active_file 1\ntotal_active_file {GIB}\n")
    assert read() == 2 * GIB
    room_of_c = {"memory__max": f"{3 * GIB}", "memory__current": f"{2 * GIB}"}
    write(groups / "c", **room_of_c, memory__stat="anon 1\n")
    assert read() == GIB
    (groups / "c/memory.max").write_text("max\n")
    assert read() == 2 * GIB


def test_this_machine():
    """An array that is made is resident."""
    before = free_memory.read_resident_memory()
    held = mx.ones(2**24)
    mx.eval(held)
    assert 2e7 < before < free_memory.read_resident_memory() - held.nbytes / 2
    assert 0 < free_memory.read_free_memory() < 1e14
