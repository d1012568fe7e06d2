"""One place says which attention stores its scores."""

import mlx.core as mx
import pytest
from gpu import as_on

from stable_diffusion.device import cpu_kernels, fused_attention
from stable_diffusion.device.backend import Backend

HALF, SINGLE = mx.float16, mx.float32


@pytest.mark.parametrize(
    ("kind", "width", "n_keys", "dtype", "stores"),
    [
        (Backend.METAL, 64, 4096, HALF, False),
        (Backend.METAL, 64, 77, SINGLE, False),
        (Backend.METAL, 40, 4096, SINGLE, False),  # padded
        (Backend.METAL, 40, 77, HALF, True),
        (Backend.METAL, 160, 4096, HALF, True),
        (Backend.METAL, 512, 4096, HALF, True),
        (Backend.CUDA, 40, 77, HALF, False),
        (Backend.CUDA, 40, 4096, mx.bfloat16, False),
        (Backend.CUDA, 64, 4096, SINGLE, True),
        (Backend.CUDA, 36, 4096, HALF, True),
        (Backend.CUDA, 136, 4096, HALF, True),
    ],
)
def test_which_attention_stores_its_scores(kind, width, n_keys, dtype, stores):
    with as_on(kind):
        assert fused_attention.stores_scores(width, n_keys, dtype) is stores


@pytest.mark.parametrize("is_linux", [True, False])
def test_the_kernels_of_a_cpu_store_none(is_linux, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: is_linux)
    with as_on(Backend.CPU):
        assert fused_attention.stores_scores(64, 4096, SINGLE) is not is_linux
        assert fused_attention.choose_width(40, 4096) == 40
