"""The network of ESRGAN equals one in PyTorch in float64, whole and in strips."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from oracle import relative_l2
from upscalers import write_upscaler

from stable_diffusion.config.upscaler import UpscalerConfig
from stable_diffusion.model_io.upscaler_file import open_upscaler
from stable_diffusion.rrdbnet import REACH_OF_BLOCK, REACH_OF_PIXELS, RRDBNet, enlarge


def random_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_it_equals_pytorch(tmp_path, scale):
    expected = write_upscaler(tmp_path / "a.safetensors", scale)
    network = open_upscaler("a", tmp_path / "a.safetensors").load()
    x = np.random.default_rng(1).random((2, 12, 8, 3), np.float32)
    theirs = expected.enlarge(x)
    assert theirs.shape == (2, 12 * scale, 8 * scale, 3)
    assert relative_l2(network(mx.array(x)), theirs) <= 6e-6

    picture = random_picture(37, 10)  # not a multiple of what is unshuffled
    whole = enlarge(network, picture)
    assert whole.shape == (37 * scale, 10 * scale, 3) and whole.std() > 10
    # A row or two at once. Every place of the result depends on what is above and below its strip.
    parts: list[float] = []
    strips = enlarge(network, picture, strip_numbers=1000, on_progress=parts.append)
    assert len(parts) > 3 and abs(sum(parts) - 1) < 1e-9
    assert np.abs(whole.astype(int) - strips).max() <= 1
    if scale == 4:
        rounded = (expected.enlarge(picture[None] / 255)[0].clip(0, 1) * 255).round()
        assert np.abs(whole - rounded).max() <= 1


def test_how_far_rows_depend_on_each_other():
    """With positive weights, what comes from one row shows how far each part reaches."""
    network = RRDBNet(UpscalerConfig(3, num_block=1, num_feat=2, num_grow_ch=1, num_upsample=2))
    network.update(
        tree_map(
            lambda weight: mx.full(weight.shape, 0.1 * (weight.ndim == 4)), network.parameters()
        )
    )
    block = network.body[0], 1, 15, REACH_OF_BLOCK
    pixels = network.make_pixels, 4, 2, REACH_OF_PIXELS
    for part, growth, expected, reach in (block, pixels):
        impulse = mx.zeros((1, 41, 1, 2)).at[:, 20].add(1)
        rows = np.flatnonzero(np.array(part(impulse)).max(axis=(0, 2, 3))) // growth
        assert (20 - rows.min(), rows.max() - 20) == (expected, expected)
        assert reach == expected


def test_weights_that_are_not_finite(tmp_path):
    write_upscaler(tmp_path / "a.safetensors")
    network = open_upscaler("a", tmp_path / "a.safetensors").load()
    network.conv_last.bias = network.conv_last.bias * mx.inf
    with pytest.raises(ValueError, match=r"^the upscaler's result is not finite: its weights are"):
        enlarge(network, random_picture(4, 4))
