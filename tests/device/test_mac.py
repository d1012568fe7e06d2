"""A Mac with Metal, and one without it, as in a virtual machine."""

import os
import resource
from types import SimpleNamespace

import mlx.core as mx
import pytest
from gpu import as_on

from stable_diffusion import activations
from stable_diffusion.cli import run
from stable_diffusion.cli.arguments.parse import parse, txt2image_parser
from stable_diffusion.device import backend, compile_kernels, cpu_cores, cpu_kernels, memory


@pytest.fixture(autouse=True)
def limits(monkeypatch) -> list[int]:
    """Make this a Mac of 16 GB, and return the limits of the cache that are set."""
    known = {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 2**20}  # 16 KB each
    set_limits: list[int] = []
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(os, "sysconf", known.__getitem__)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(mx, "set_cache_limit", set_limits.append)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "applegpu_g13g"})
    return set_limits


def choose_precision(*options: str) -> bool:
    return run._choose_precision(parse(txt2image_parser(), ["a cat", *options]))


def test_a_mac_without_metal(monkeypatch, limits, capsys):
    """The CPU is the default device. What is only for Linux or for Metal is not used."""

    def fail(*_: object) -> None:
        raise RuntimeError("[metal::load_device] No Metal device available.")

    for name in ("device_info", "set_wired_limit", "set_cache_limit", "set_memory_limit"):
        monkeypatch.setattr(mx, name, fail)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(compile_kernels, "find_compiler", fail)
    assert backend.find_backend() is backend.Backend.CPU and not backend.is_gpu()
    assert not cpu_kernels.is_used() and not cpu_kernels.needs_compiling()
    assert cpu_cores.count_cores() == 1
    assert memory.read_total_memory() == 2**34 and not memory.is_memory_short()
    assert memory.choose_whole_pixels(4) == memory.CPU_WHOLE_PIXELS
    memory.limit_cache()
    assert limits == []
    assert not choose_precision() and "fastest on a CPU" in capsys.readouterr().out


def test_a_mac_with_metal(monkeypatch, limits):
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": 2**33})
    with as_on(backend.Backend.METAL):
        assert not cpu_kernels.is_used()
        assert memory.read_total_memory() == 2**33 and memory.is_memory_short()
        memory.limit_cache()
        assert limits == [2**33 * memory.CACHE_SHARE]
        assert choose_precision() and not choose_precision("--no-float16")


def test_a_gpu_that_does_not_say_its_memory():
    """The memory of the machine is used then, which is the same on a Mac."""
    with as_on(backend.Backend.METAL):
        assert memory.read_total_memory() == 2**34


@pytest.mark.parametrize(("platform", "n_bytes"), [("darwin", 5000), ("linux", 5000 * 1024)])
def test_the_peak_memory_is_in_bytes(monkeypatch, platform, n_bytes):
    """macOS counts it in bytes, Linux in kilobytes."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    assert memory.read_peak_memory() == n_bytes


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_need_no_compiler(monkeypatch, name):
    """MLX's own activations need one on a CPU, because they are compiled by `mx.compile`."""
    x = mx.linspace(-6, 6, 50)
    with as_on(backend.Backend.METAL):
        expected = activations.ACTIVATIONS[name](x)
    for compiled in ("silu", "gelu", "gelu_fast_approx", "mish", "relu"):
        monkeypatch.setattr(activations.nn, compiled, None)
    assert mx.allclose(activations.ACTIVATIONS[name](x), expected, rtol=1e-5, atol=1e-6).item()
