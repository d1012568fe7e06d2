"""Text encoders, UNet and VAE equal diffusers' in float64, for every kind of checkpoint."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import channels_first, channels_last, relative_l2

from stable_diffusion import model_io

TEXT_ERROR = 2e-6
NETWORK_ERROR = 1e-5
POOLED_WIDTH = 24  # of the tiny SDXL checkpoints
TIME_IDS = np.array([[512, 640, 0, 16, 512, 640], [64, 64, 8, 0, 64, 64]], dtype=np.float32)


def random_normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def tokens() -> np.ndarray:
    """[3, 77]: a short prompt padded with the end token, one padded with `!`, a full one."""
    ids = np.random.default_rng(1).integers(1, 49406, (3, 77))
    ids[:, 0] = 49406
    ids[0, 9:], ids[1, 20:], ids[:, -1] = 49407, 0, 49407
    ids[1, 20], ids[1, -1] = 49407, 0
    return ids


@torch.no_grad()
def test_text_encoders(checkpoint, oracle, kind, tokens):
    pipeline = oracle(kind).exact
    for name in ("text_encoder", "text_encoder_2"):
        theirs = getattr(pipeline, name, None)
        if theirs is None:
            continue
        expected = theirs(torch.from_numpy(tokens), output_hidden_states=True)
        ours = model_io.load_text_encoder(checkpoint(kind), model_key=name)(mx.array(tokens))
        assert relative_l2(ours.last_hidden_state, expected.last_hidden_state) <= TEXT_ERROR
        assert len(ours.hidden_states) == len(expected.hidden_states)
        for state, expected_state in zip(ours.hidden_states, expected.hidden_states, strict=True):
            assert relative_l2(state, expected_state) <= TEXT_ERROR
        pooled = expected.text_embeds if name == "text_encoder_2" else expected.pooler_output
        assert relative_l2(ours.pooled_output, pooled) <= TEXT_ERROR


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 2)])
def test_unet(checkpoint, oracle, kind, size):
    """Sizes that do not halve evenly too; each picture of the batch at its own time."""
    theirs = oracle(kind).exact.unet
    x = random_normal(2, *size, theirs.config.in_channels)
    text = random_normal(2, 77, theirs.config.cross_attention_dim)
    times = np.array([999, 3.5], dtype=np.float32)
    text_time, added = None, {}
    if theirs.config.addition_embed_type == "text_time":
        pooled = random_normal(2, POOLED_WIDTH)
        text_time = (mx.array(pooled), mx.array(TIME_IDS))
        added = {
            "text_embeds": torch.from_numpy(pooled).double(),
            "time_ids": torch.from_numpy(TIME_IDS).double(),
        }
    expected = theirs(
        channels_first(x),
        torch.from_numpy(times),
        torch.from_numpy(text).double(),
        added_cond_kwargs=added,
    ).sample
    unet = model_io.load_unet(checkpoint(kind))
    ours = unet(mx.array(x), mx.array(times), encoder_x=mx.array(text), text_time=text_time)
    assert relative_l2(ours, channels_last(expected)) <= NETWORK_ERROR


@torch.no_grad()
def test_vae_decode(checkpoint, oracle, kind):
    theirs = oracle(kind).exact.vae
    z = random_normal(2, 5, 6, theirs.config.latent_channels)
    scaled = channels_first(z) / theirs.config.scaling_factor + (theirs.config.shift_factor or 0)
    ours = model_io.load_autoencoder(checkpoint(kind)).decode(mx.array(z))
    assert relative_l2(ours, channels_last(theirs.decode(scaled).sample)) <= NETWORK_ERROR


@torch.no_grad()
def test_vae_encode(checkpoint, oracle, kind):
    theirs = oracle(kind).exact.vae
    x = random_normal(2, 64, 96, 3).clip(-1, 1)
    expected = theirs.encode(channels_first(x)).latent_dist
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0
    mean, logvar = model_io.load_autoencoder(checkpoint(kind)).encode(mx.array(x))
    assert relative_l2(mean, channels_last((expected.mean - shift) * scale)) <= NETWORK_ERROR
    # The variance of the scaled latents.
    variance = channels_last(expected.var * scale**2)
    assert relative_l2(mx.exp(logvar), variance) <= NETWORK_ERROR


def test_float16_stays_float16(checkpoint, tokens):
    """No layer computes in, or returns, another precision than its weights'."""
    folder = checkpoint("sdxl")
    text_encoder = model_io.load_text_encoder(folder, float16=True, model_key="text_encoder_2")
    output = text_encoder(mx.array(tokens))
    assert output.last_hidden_state.dtype == output.pooled_output.dtype == mx.float16

    unet = model_io.load_unet(folder, float16=True)
    x = mx.array(random_normal(2, 8, 8, 4)).astype(mx.float16)
    text = mx.array(random_normal(2, 77, 80)).astype(mx.float16)
    pooled = mx.array(random_normal(2, POOLED_WIDTH)).astype(mx.float16)
    half = unet(x, mx.array(500), text, (pooled, mx.array(TIME_IDS)))
    assert half.dtype == mx.float16
    exact = model_io.load_unet(folder)(
        x.astype(mx.float32),
        mx.array(500),
        text.astype(mx.float32),
        (pooled.astype(mx.float32), mx.array(TIME_IDS)),
    )
    assert relative_l2(half, exact) < 5e-3
