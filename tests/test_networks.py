"""Text encoders, UNet and VAE equal diffusers' in float64, for every kind of checkpoint."""

import mlx.core as mx
import parity
from oracle import relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal, random_tokens

from stable_diffusion.device import cpu_kernels
from stable_diffusion.model_io import loaders

TEXT_ERROR = 2e-6
NETWORK_ERROR = 1e-5


def test_text_encoders(oracle, kind):
    errors = list(parity.text_errors(oracle(kind)))
    assert len(errors) >= 6
    assert max(errors) <= TEXT_ERROR


def test_unet(oracle, kind):
    """Each kind at its own size, and the first also at odd ones."""
    for size in parity.UNET_SIZES[: len(parity.UNET_SIZES) if kind == "sd-1" else 1]:
        assert parity.unet_error(oracle(kind), size) <= NETWORK_ERROR


def test_vae_decode(oracle, kind):
    assert parity.decode_error(oracle(kind)) <= NETWORK_ERROR


def test_vae_encode(oracle, kind):
    assert max(parity.encode_errors(oracle(kind))) <= NETWORK_ERROR


def test_float16_stays_float16(checkpoint, monkeypatch):
    """No layer computes in, or returns, another precision than its weights'."""
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    folder = checkpoint("sdxl")
    text_encoder = loaders.load_text_encoder(folder, float16=True, model_key="text_encoder_2")
    output = text_encoder(mx.array(random_tokens()))
    assert output.last_hidden_state.dtype == output.pooled_output.dtype == mx.float16

    unet = loaders.load_unet(folder, float16=True)
    x = mx.array(random_normal(2, 8, 8, 4)).astype(mx.float16)
    text = mx.array(random_normal(2, 77, 80)).astype(mx.float16)
    pooled = mx.array(random_normal(2, POOLED_WIDTH)).astype(mx.float16)
    half = unet(x, mx.array(500), text, (pooled, mx.array(TIME_IDS)))
    assert half.dtype == mx.float16
    exact = loaders.load_unet(folder)(
        x.astype(mx.float32),
        mx.array(500),
        text.astype(mx.float32),
        (pooled.astype(mx.float32), mx.array(TIME_IDS)),
    )
    assert relative_l2(half, exact) < 1e-2
