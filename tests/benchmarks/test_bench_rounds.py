"""What the benchmark runs, keeps and reports, with workers that only pretend to measure."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MACHINE = {"processor": "this one"}
TRIO = ["ours", "diffusers", "openvino"]


@pytest.fixture(scope="module")
def bench():
    """Return the module."""
    sys.path.insert(0, str(BENCHMARKS))
    import bench

    return bench


class Workers:
    """Pretends to run workers: each says the next of its seconds, and writes an array."""

    def __init__(self, bench, seconds: dict[str, list[float]]):
        self.bench, self.seconds, self.runs = bench, seconds, []
        self.values = {"openvino": 1.0}  # what arrays hold besides ones

    def __call__(self, command: list) -> str:
        program = command[1]
        times = self.seconds[program]
        if not times:
            raise self.bench.WorkerError("no such instruction")
        self.runs.append(program)
        file = command[command.index("--result") + 1]
        assert file.is_absolute()  # workers have another working directory
        np.save(file, np.full(4, self.values.get(program, 1.0)))
        report = {"load": 9.0, "runs": [times.pop(0)], "resident": 2e9}
        if "--check" in command and program == "diffusers":
            report["operations"] = 5e9
        return f"noise\n{json.dumps(report)}\n"


@pytest.fixture
def workers(bench, monkeypatch):
    """Return workers with enough seconds for three rounds of the trio."""
    workers = Workers(bench, {"ours": [1, 9, 2], "diffusers": [4, 5, 3], "openvino": [3, 3, 3]})
    monkeypatch.setattr(bench, "run_python", workers)
    return workers


def make_results(bench, folder: Path, machine: dict[str, str] = MACHINE):
    """Return the results in a folder."""
    results = bench.Results(folder, machine)
    results.facts.setdefault("rate", 1e9)
    return results


def test_programs_run_in_turn_and_medians_are_reported(bench, workers, tmp_path):
    results = make_results(bench, tmp_path)
    bench.measure("unet", TRIO, results, tmp_path, rounds=3, repeats=3)
    assert workers.runs == TRIO * 3
    assert results.summarize("unet", "ours").run == 2
    assert results.find_ratio("unet", "ours") == 0.5
    lines = bench.make_report(results, ["a note"])
    assert "| UNet step, SD 2.1 | 2.00 s (0.50) | 4.00 s | 3.00 s (0.75) | 5.00 s |" in lines
    assert "| UNet step, SD 2.1 | 2.00 GB | 2.00 GB | 2.00 GB |" in lines
    assert "| UNet step, SD 2.1 | 0e+00 |  | 0e+00 |" in lines
    assert "- a note" in lines and "- processor: this one" in lines


def test_a_run_that_was_cut_off_goes_on(bench, workers, tmp_path):
    left = iter([False] * 4)
    results = make_results(bench, tmp_path)
    bench.measure("unet", TRIO, results, tmp_path, 3, 3, lambda: next(left, True))
    assert workers.runs == [*TRIO, "ours"]
    again = make_results(bench, tmp_path)
    assert again.is_continued
    bench.measure("unet", TRIO, again, tmp_path, 3, 3)
    assert workers.runs == TRIO * 3
    assert again.summarize("unet", "diffusers").run == 4
    assert again.summarize("unet", "diffusers").operations == 5e9
    bench.measure("unet", TRIO, make_results(bench, tmp_path), tmp_path, 3, 3)
    assert len(workers.runs) == 9


@pytest.mark.parametrize("content", ['{"machine": 1}', "[]", '{"machine"', None])
def test_results_of_another_machine_or_a_broken_file_are_not_used(bench, tmp_path, content):
    results = make_results(bench, tmp_path)
    results.add("unet", "ours", {"load": 1, "runs": [1], "resident": 1})
    if content is not None:
        (tmp_path / "bench.json").write_text(content)
    machine = MACHINE if content else {"processor": "another"}
    other = make_results(bench, tmp_path, machine)
    assert not other.is_continued and other.summarize("unet", "ours") is None


def test_long_runs_and_pictures_have_one_round(bench, workers, tmp_path):
    results = make_results(bench, tmp_path)
    workers.seconds["diffusers"][0] = bench.SLOW_RUN + 1
    bench.measure("unet", ["ours", "diffusers"], results, tmp_path, 3, 3)
    assert workers.runs == ["ours", "diffusers", "ours", "ours"]
    bench.measure("picture", ["openvino"], results, tmp_path, 3, 3)
    assert workers.runs[4:] == ["openvino"]


def test_a_program_that_fails_leaves_its_cell_empty(bench, workers, tmp_path):
    workers.seconds["openvino"] = []
    results = make_results(bench, tmp_path)
    bench.measure("unet", TRIO, results, tmp_path, 2, 3)
    assert workers.runs == ["ours", "diffusers"] * 2
    lines = bench.make_report(results, [])
    assert "- UNet step, SD 2.1, OpenVINO, float32: no such instruction" in lines
    assert not [line for line in lines if line.startswith("|") and "OpenVINO" in line]


def test_a_wrong_result_does_not_count_as_fast(bench, workers, tmp_path):
    from report import _list_bars

    workers.values["openvino"] = 1.1
    results = make_results(bench, tmp_path)
    bench.measure("unet", TRIO, results, tmp_path, 1, 3)
    lines = bench.make_report(results, [])
    assert "| UNet step, SD 2.1 | 1.00 s (0.25) | 4.00 s | wrong result | 5.00 s |" in lines
    assert "| UNet step, SD 2.1 | 0e+00 |  | 1e-01 |" in lines
    assert [program for program, _ in _list_bars(results, "unet")] == ["ours", "diffusers"]


def test_parts_of_a_picture_belong_to_their_tasks(bench, monkeypatch, tmp_path):
    parts = {"text": [1.0], "unet": [20.0, 22.0, 21.0], "decode": [90.0]}
    report = {"load": 5.0, "parts": parts, "resident": 3e9, "error": 2e-3}
    runs = []
    monkeypatch.setattr(bench, "run_python", lambda command: runs.append(1) or json.dumps(report))
    results = make_results(bench, tmp_path)
    for task in ("unet", "decode", "text"):
        bench.measure(task, ["sd.cpp"], results, tmp_path, 3, 3)
    assert len(runs) == 1
    seconds = {task: results.summarize(task, "sd.cpp").run for task in parts}
    assert seconds == {"text": 1, "unet": 21, "decode": 90}
    assert results.find_difference("unet", "sd.cpp") == 2e-3
    assert results.summarize("unet2", "sd.cpp") is None


class FakeLibrary:
    """Pretends to be the module of stable-diffusion.cpp, and says what it says."""

    SDContext = SDContextParams = SDImageGenParams = MagicMock
    SDType, Prediction, RngType, SampleMethod = {"F32": 0}, MagicMock(), MagicMock(), MagicMock()

    def __init__(self, clock: list[float], lines: list[str]):
        self.clock, self.lines = clock, lines
        self.SDContext = lambda _: SimpleNamespace(
            generate_with_params=self.draw, close=lambda: None
        )

    def set_log_callback(self, callback) -> None:
        self.log = callback

    def set_progress_callback(self, callback) -> None:
        self.report = callback

    def draw(self, request) -> list:
        for line in self.lines[:1]:
            self.log(1, line)
        self.report(7, 1227, 0.1)  # of loading
        for step in range(request.sample_params.sample_steps + 1):
            self.report(step, request.sample_params.sample_steps, 0.0)
            self.clock[0] += 10 + step
        for line in self.lines[1:]:
            self.log(1, line)
        return [MagicMock()]


LINES = [
    "stable-diffusion.cpp:3358 - get_learned_condition completed, taking 1.56s",
    "vae.hpp:207  - computing vae decode graph completed, taking 93.20s",
    "stable-diffusion.cpp:3402 - decode_first_stage completed, taking 93.26s\n",
]


@pytest.mark.parametrize("lines", [LINES, LINES[:2]])
def test_the_log_of_stable_diffusion_cpp_tells_the_times(bench, monkeypatch, tmp_path, lines):
    from tasks import TASKS

    clock = [100.0]
    library = FakeLibrary(clock, lines)
    monkeypatch.setitem(sys.modules, "cyllama", SimpleNamespace(sd=library))
    monkeypatch.delitem(sys.modules, "tasks_sd_cpp", raising=False)
    import tasks_sd_cpp

    monkeypatch.setattr(tasks_sd_cpp.time, "perf_counter", lambda: clock[0])
    if lines != LINES:
        with pytest.raises(SystemExit, match="does not tell the times"):
            tasks_sd_cpp.measure_parts(TASKS["unet"], tmp_path, repeats=3)
        return
    report = tasks_sd_cpp.measure_parts(TASKS["unet"], tmp_path, repeats=3)
    assert report["parts"] == {"text": [1.56], "decode": [93.26], "unet": [11, 12, 13]}


def test_quick_needs_no_optional_package(bench, monkeypatch, tmp_path, capsys):
    import programs

    seconds = {"ours": [1.0] * 3, "diffusers": [2.0] * 3}
    monkeypatch.setattr(bench, "run_python", Workers(bench, seconds))
    monkeypatch.setattr(programs, "is_installed", lambda package: False)
    monkeypatch.setattr(programs, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(bench, "measure_product_rate", lambda: (1e9, "cpu"))
    monkeypatch.setattr(bench, "write_checkpoints", lambda *_: None)
    monkeypatch.setattr(bench, "count_operations", lambda: ["operations"])
    monkeypatch.setattr(bench, "plot", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--out", "runs"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 0
    report = (tmp_path / "runs" / "bench.md").read_text()
    assert "| VAE decode, 512×512 | 1.00 s (0.50) | 2.00 s | 5.00 s |" in report
    assert report.endswith("operations\n")
    said = capsys.readouterr().err
    assert "OpenVINO, float32 is left out: openvino is not installed" in said
    assert "diffusers, bfloat16 is left out: this processor does not multiply bfloat16" in said


@pytest.mark.parametrize(
    "flags, sets, half",
    [
        ("fpu avx2 avx512f avx512_bf16", ["AVX2", "AVX-512", "AVX-512 BF16"], True),
        ("avx2 avx512f avx512vl", ["AVX2", "AVX-512"], False),
        ("amx_bf16 avx2", ["AVX2", "AMX"], True),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads a file of Linux")
def test_the_processor_is_described(bench, tmp_path, flags, sets, half):
    import processor

    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: A Chip: 2\nflags\t\t: {flags}\n\n")
    assert processor.list_instruction_sets(info) == sets
    assert processor.multiplies_bfloat16(info) == half
    assert processor.read_name(info).startswith("A Chip: 2, ")
    assert processor.multiplies_bfloat16(tmp_path / "none")


def test_every_task_has_programs_and_a_reference(bench):
    from programs import PROGRAMS, list_programs
    from tasks import TASKS

    for name, task in TASKS.items():
        programs = list_programs(task, list(PROGRAMS))
        assert task.reference in programs, name
        assert programs[-1] == task.reference or not task.programs
    assert list_programs(TASKS["unet"], ["ours", "sd.cpp"]) == ["ours", "sd.cpp"]
    assert list_programs(TASKS["unet2"], ["ours", "sd.cpp"]) == ["ours"]


def test_the_error_of_a_worker_is_its_last_line(bench):
    with pytest.raises(bench.WorkerError, match="^what went wrong$"):
        bench.run_python(
            ["-c", "import sys; print('x', file=sys.stderr); sys.exit('what went wrong')"]
        )
    with pytest.raises(bench.WorkerError, match="signal 9"):
        bench.run_python(["-c", "import os; os.kill(os.getpid(), 9)"])
