"""The operations of a GPU are counted as MLX compiles them, and there are few."""

import io
import re
import sys
from collections import Counter
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from stable_diffusion.attention import attend
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.device.backend import Backend
from stable_diffusion.layers import GroupNorm
from stable_diffusion.resnet_block import ResnetBlock2D
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import operations
import real_sizes

MIB = 2**20


def count_weights(network: nn.Module) -> int:
    return sum(weight.size for _, weight in tree_flatten(network.parameters()))


@pytest.mark.parametrize(
    ("model", "unet", "text_encoders"),
    [  # as their authors publish them
        ("sd-1.5", 859_520_964, [123_060_480]),
        ("sd-2.1", 865_910_724, [340_387_840]),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_real_models_have_their_sizes(model, unet, text_encoders):
    assert count_weights(UNetModel(real_sizes.MODELS[model].unet)) == unet
    assert count_weights(Autoencoder(real_sizes.MODELS[model].autoencoder)) == 83_653_863
    configs = real_sizes.MODELS[model].text_encoders
    assert [count_weights(CLIPTextModel(config)) for config in configs] == text_encoders


def compile_names(function: operations.Function, inputs: list[mx.array]) -> Counter[str]:
    """Return how often `mx.compile` launches each primitive, without those that look only."""
    dot = io.StringIO()
    mx.export_to_dot(dot, mx.compile(function)(*inputs))
    names = re.findall(r'\d+ \[label ="(\w+)"', dot.getvalue())
    names = ["fused" if name.startswith("Compiled") else name for name in names]
    return Counter(name for name in names if name not in operations.VIEWS)


def test_operations_are_fused_as_by_mlx(monkeypatch):
    """Check `fuse` with a whole UNet and with the decoder."""
    checked = []

    def compare(function: operations.Function, inputs: list[mx.array]) -> operations.Count:
        traced, results = operations.trace(function, inputs)
        groups = operations.fuse(traced, results)
        # A product with a constant alone is "compiled" by MLX, too.
        names = ["fused" if len(group) > 1 else group[0].name for group in groups]
        ours = Counter(name for name in names if name not in operations.VIEWS)
        theirs = compile_names(function, inputs)
        assert ours["fused"] > 20 and sum(ours.values()) == sum(theirs.values())
        assert {*(ours - theirs), *(theirs - ours)} <= {"fused", "Divide"}
        checked.append(function)
        return operations.Count(0, 0)

    monkeypatch.setattr(operations, "count", compare)
    operations.count_step("sd-2.1", Backend.METAL, guidance=True)
    operations.count_decode("sd-2.1", Backend.METAL)
    assert len(checked) == 2


def count(function: operations.Function, *inputs: mx.array, kind: Backend) -> operations.Count:
    mx.eval(inputs)
    with operations._as_on(kind):
        return operations.count(function, list(inputs))


@pytest.mark.parametrize(
    ("kind", "width", "written"),
    [  # in MiB: each result of 1,024 rows of 512 numbers is 1, and the scores of a head are 2
        (Backend.METAL, 64, [1]),
        (Backend.METAL, 32, [2, 2, 2, 2, 1]),  # three padded to twice the width, and cut back
        (Backend.CUDA, 32, [1]),
        (Backend.CUDA, 512, [1, 2, 2, 1]),  # scaled queries, scores, softmax
    ],
)
def test_attention_counts_by_what_the_backend_fuses(kind, width, written):
    x = mx.zeros((1, 1024, 512), mx.float16)
    counted = count(lambda *inputs: attend(*inputs, 512 // width), x, x + 1, x + 2, kind=kind)
    assert counted == (len(written), sum(written) * MIB)


def test_a_norm_takes_three_passes():
    """They transpose, normalize, and do everything on the way back."""
    norm = GroupNorm(4, 64, eps=1e-5)
    norm.set_dtype(mx.float16)
    mx.eval(norm.parameters())
    x = mx.zeros((1, 64, 128, 64), mx.float16)
    for activation in (None, nn.silu):
        counted = count(lambda x, a=activation: norm(x, a), x, kind=Backend.METAL)
        assert counted == (3, 3 * MIB)


def test_a_residual_block_takes_ten_passes():
    """Three for each norm, two convolutions, the sum with the residual, and one for the time."""
    block = ResnetBlock2D(64, 64, groups=4, eps=1e-5, activation="silu", temb_channels=64)
    block.set_dtype(mx.float16)
    mx.eval(block.parameters())
    inputs = mx.zeros((1, 64, 128, 64), mx.float16), mx.zeros((1, 64), mx.float16)
    counted = count(lambda x, temb: block(x, temb), *inputs, kind=Backend.METAL)
    assert counted == (10, 9 * MIB + 64 * 2)


def test_the_real_models_launch_and_write_little():
    """Before, a step of SD 1.5 wrote 4.05 GB; SD 2.1 launched 730 operations, a decode 202."""
    step = operations.count_step("sd-1.5", Backend.METAL, guidance=False)
    assert step.bytes_written <= 0.5 * 4.05e9
    assert operations.count_step("sd-2.1", Backend.METAL, guidance=False).launched <= 700
    assert operations.count_decode("sd-2.1", Backend.METAL).launched <= 170
