"""The benchmark measures the same work in all programs, and its report says what was measured."""

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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


@pytest.fixture
def results(bench, tmp_path):
    """Return results without any report."""
    results = bench.Results(tmp_path, {"processor": "this one"})
    results.facts["rate"] = 1e9
    return results


def test_all_compute_the_same(bench, folder, results, in_this_process):
    from report import make_report

    bench.measure("unet", ["ours", "diffusers"], results, folder, rounds=1, repeats=1)
    assert 0 < results.find_difference("unet", "ours") < 1e-5
    ours, theirs = (results.summarize("unet", name) for name in ("ours", "diffusers"))
    assert ours.run > 0 and theirs.run > 0 and theirs.operations > 1e7
    (row,) = [line for line in make_report(results, []) if " s (" in line]
    assert row.startswith("| UNet step, SD 2.1 |")
    assert f"({ours.run / theirs.run:.2f})" in row and f"{theirs.operations / 1e9:.2f} s" in row


@pytest.mark.parametrize("task, most", [("control", 1e-5), ("xl-picture", 1e-3)])
def test_steps_with_control_and_pictures_are_the_same(
    bench, folder, results, in_this_process, task, most
):
    bench.measure(task, ["ours", "diffusers"], results, folder, rounds=1, repeats=1)
    assert 0 < results.find_difference(task, "ours") < most


def test_workers_are_processes(bench, folder, results):
    """Check that each has its own memory; text encoders are not quantized, so results are equal."""
    bench.measure("text", ["ours", "quantized"], results, folder, rounds=1, repeats=1)
    assert not results.failures
    arrays = [np.load(results.array_file("text", name)) for name in ("ours", "quantized")]
    assert np.array_equal(*arrays)
    for name in ("ours", "quantized"):
        side = results.summarize("text", name)
        assert side.n_runs == 1 and side.run > 0 and side.resident > side.mlx > 0


@pytest.mark.parametrize("part", ["text", "unet", "decode", "encode"])
def test_diffusers_in_bfloat16_computes_nearly_the_same(bench, folder, monkeypatch, part):
    """Check that its inputs and networks have one type."""
    import tasks_diffusers
    from results import relative_l2
    from tasks import TASKS

    monkeypatch.setattr(tasks_diffusers, "LATENTS", LATENTS)
    picture = np.zeros((1, 32, 32, 3), np.float32)
    monkeypatch.setattr(tasks_diffusers, "random_picture", lambda: picture)
    wide, half = (
        tasks_diffusers.prepare(replace(TASKS[part], precision=precision), folder / "sd")()
        for precision in ("float32", "bfloat16")
    )
    assert half.dtype == np.float32
    assert 1e-4 < relative_l2(half, wide) < 5e-2


@pytest.mark.parametrize("model, part", [("sd", "decode"), ("sdxl", "unet")])
def test_openvino_computes_the_same(bench, folder, tmp_path, monkeypatch, model, part):
    pytest.importorskip("openvino")
    import convert_checkpoints
    import tasks_diffusers
    import tasks_openvino
    from results import relative_l2
    from tasks import TASKS, Task

    for module in (tasks_diffusers, tasks_openvino):
        monkeypatch.setattr(module, "LATENTS", LATENTS)
    (tmp_path / model).symlink_to(folder / model)
    convert_checkpoints.main(["openvino", str(tmp_path / model), part])
    task = Task("", model, part, batch=1 if part == "decode" else TASKS[part].batch)
    ours, theirs = (
        module.prepare(task, tmp_path / model)() for module in (tasks_openvino, tasks_diffusers)
    )
    assert ours.shape == theirs.shape
    assert 0 < relative_l2(ours, theirs) < 1e-5
