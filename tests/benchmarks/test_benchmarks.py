"""The benchmark measures the same work on both sides, and its report says what was measured."""

import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from stable_diffusion.model_io import loaders

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    import bench

    return bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_checkpoint("sd-2", folder / "sd")
    write_checkpoint("sdxl-turbo", folder / "sdxl")
    return folder


def test_both_sides_compute_the_same(bench, folder):
    row = bench.measure("unet", ("ours", "theirs"), folder, rounds=1, repeats=1)
    assert 0 < row.error < 1e-5
    assert row.peer.operations > 1e7
    assert row.ours.run > 0 and row.peer.run > 0
    assert row.ours.resident > row.ours.mlx > 0
    lines = bench.table([row], rate=1e9)
    assert lines[-1].startswith("| UNet step, SD 2.1 |")
    assert f"{row.ratio:.2f}" in lines[-1] and f"{row.peer.operations / 1e9:.2f} s" in lines[-1]


def test_pictures_are_the_same_picture(bench, folder):
    row = bench.measure("xl-picture", ("ours", "theirs"), folder, rounds=1, repeats=1)
    assert 0 < row.error < 1e-3


def test_operations_are_fewer_hoisted_and_compiled(bench, folder):
    from operations import unet_step

    written = unet_step(folder / "sd", hoisted=False, compiled=False)
    hoisted = unet_step(folder / "sd", hoisted=True, compiled=False)
    compiled = unet_step(folder / "sd", hoisted=True, compiled=True)
    modules = loaders.load_unet(folder / "sd").named_modules()
    n_attentions = 2 * sum(path.endswith("attn2") for path, _ in modules)  # keys and values
    assert written.launched - hoisted.launched == n_attentions
    assert compiled.launched < hoisted.launched
    assert written.bytes_unfused > hoisted.bytes_unfused
