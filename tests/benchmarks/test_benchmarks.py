"""The benchmark measures the same work on both sides, and its report says what was measured."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LATENTS = (16, 16, 4)  # instead of 64×64, to be fast


@pytest.fixture(scope="module")
def bench():
    """Return the module."""
    sys.path.insert(0, str(BENCHMARKS))
    import bench

    return bench


@pytest.fixture
def in_this_process(bench, monkeypatch):
    """Run the benchmark's workers here, where diffusers is already imported, on small latents."""
    import tasks_diffusers
    import tasks_mlx
    import worker

    for module in (tasks_diffusers, tasks_mlx):
        monkeypatch.setattr(module, "LATENTS", LATENTS)

    def run_python(command: list) -> str:
        assert command[0] == BENCHMARKS / "worker.py"
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            worker.main([str(part) for part in command[1:]])
        return output.getvalue()

    monkeypatch.setattr(bench, "run_python", run_python)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint) -> Path:
    """Return a folder of tiny checkpoints with the names that the benchmark gives them."""
    from control_networks import randomize
    from diffusers import ControlNetModel, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "sd").symlink_to(checkpoint("sd-2"))
    (folder / "sdxl").symlink_to(checkpoint("sdxl-turbo"))
    (folder / "sd15").mkdir()
    (folder / "sd15" / "unet").symlink_to(checkpoint("sd-1") / "unet")
    network = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(folder / "sd15/unet"))
    randomize(network).save_pretrained(folder / "sd15" / "controlnet")
    return folder


def test_both_sides_compute_the_same(bench, folder, in_this_process):
    row = bench.measure("unet", ("ours", "theirs"), folder, rounds=1, repeats=1)
    assert 0 < row.error < 1e-5
    assert row.peer.operations > 1e7
    assert row.ours.run > 0 and row.peer.run > 0
    lines = bench.make_table([row], rate=1e9)
    assert lines[-1].startswith("| UNet step, SD 2.1 |")
    assert f"{row.ratio:.2f}" in lines[-1] and f"{row.peer.operations / 1e9:.2f} s" in lines[-1]


def test_control_steps_are_the_same(bench, folder, in_this_process):
    row = bench.measure("control", ("ours", "theirs"), folder, rounds=1, repeats=1)
    assert 0 < row.error < 1e-5
    assert row.peer.operations > 3e7


def test_pictures_are_the_same_picture(bench, folder, in_this_process):
    row = bench.measure("xl-picture", ("ours", "theirs"), folder, rounds=1, repeats=1)
    assert 0 < row.error < 1e-3


def test_workers_are_processes(bench, folder):
    """Each side has its own memory. Text encoders are not quantized, so the results are equal."""
    row = bench.measure("text", ("ours", "quantized"), folder, rounds=1, repeats=2)
    assert row.error == 0
    for side in (row.ours, row.peer):
        assert side.run > 0 and side.resident > side.mlx > 0
