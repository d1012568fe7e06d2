"""T2I-Adapters give diffusers' features, and with them a UNet gives diffusers' prediction."""

from pathlib import Path

import control_networks
import mlx.core as mx
import numpy as np
import pytest
import torch
from control_networks import ADAPTERS, make_adapter, make_base
from oracle import channels_first, channels_last, relative_l2
from test_controlnet import ERROR, Inputs, load_base

from stable_diffusion.config.controlnet import read_control_config
from stable_diffusion.layers import fold_pixels
from stable_diffusion.model_io.control_layouts import T2I_ADAPTER
from stable_diffusion.model_io.weights import load_weights
from stable_diffusion.t2i_adapter import T2IAdapter, average_pool

NOT_USED = (mx.array(0.0), mx.array(0), [], None)
SCALE = 0.7


def load(name: str, folder: Path) -> T2IAdapter:
    """Return our network with diffusers' weights, by way of its files."""
    adapter = T2IAdapter(read_control_config(dict(make_adapter(name).config), "config.json"))
    files = [control_networks.save(make_adapter(name), folder)]
    load_weights(adapter, files, T2I_ADAPTER, mx.float32)
    return adapter


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_equals_diffusers(name, tmp_path):
    """The features, and a UNet's prediction: the UNet also adds them to its skip connections."""
    base, theirs, ours = ADAPTERS[name][0], make_adapter(name), load(name, tmp_path)
    grey = theirs.config.in_channels == 1
    size = (48, 80) if theirs.config.downscale_factor == 16 else (40, 56)
    picture = np.random.default_rng(3).random((1, *size, 1 if grey else 3), np.float32)
    features = theirs(channels_first(picture))
    picture = mx.array(np.repeat(picture, 3, axis=-1) if grey else picture)
    residuals = ours(*NOT_USED, ours.prepare([picture]), [SCALE])
    assert (residuals.down, residuals.mid, len(residuals.inner)) == ([], None, 4)
    for found, wanted in zip(residuals.inner, features, strict=True):
        assert relative_l2(found, SCALE * channels_last(wanted)) <= ERROR
    for found, (channels, factor) in zip(residuals.inner, ours.config.features, strict=True):
        assert found.shape == (1, -(-size[0] // factor), -(-size[1] // factor), channels)
    if name not in ("full", "full XL"):  # the features of the others are as those of "full"
        return
    inputs = Inputs(make_base(base))
    x = np.resize(inputs.x, (2, size[0] // 8, size[1] // 8, 4))
    wanted = make_base(base)(
        channels_first(x),
        torch.from_numpy(inputs.times),
        inputs.double_text,
        added_cond_kwargs=inputs.added,
        down_intrablock_additional_residuals=[SCALE * each.repeat(2, 1, 1, 1) for each in features],
    ).sample
    arguments = mx.array(x), mx.array(inputs.times), mx.array(inputs.text), inputs.text_time
    unet = load_base(base, tmp_path / "unet")
    assert relative_l2(unet(*arguments, residuals=residuals), channels_last(wanted)) <= ERROR
    assert relative_l2(unet(*arguments), channels_last(wanted)) > 0.02


def test_odd_sizes_are_filled_up_at_the_edge():
    """A latent more than the adapter of SDXL takes: its features still fit the UNet's."""
    x = mx.array(np.random.default_rng(4).random((1, 5, 7, 2), np.float32))
    theirs = torch.nn.AvgPool2d(2, 2, ceil_mode=True)(channels_first(np.array(x)))
    assert relative_l2(average_pool(x), channels_last(theirs)) <= 1e-7
    folded = np.array(fold_pixels(x, 4))
    assert folded.shape == (1, 2, 2, 32)
    theirs = torch.nn.PixelUnshuffle(4)(channels_first(np.array(x[:, :4, :4])))
    assert np.array_equal(folded[:, :1, :1], channels_last(theirs))
    last = np.array(x[0, 4, 6])  # the square of the corner has this pixel in each row
    corner = folded[0, 1, 1].reshape(2, 4, 4)
    assert np.array_equal(corner[:, :, 2:], np.broadcast_to(last[:, None, None], (2, 4, 2)))
