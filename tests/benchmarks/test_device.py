"""The kit finds what is wrong on a device, survives crashes and interruptions, and reports."""

import getpass
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from gpu import as_on

from stable_diffusion import vae_strips
from stable_diffusion.device import cpu_kernels
from stable_diffusion.device.backend import Backend
from stable_diffusion.layers import Conv3x3

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = (
    *("check_choices", "check_convolutions", "check_networks", "check_pictures"),
    *("count_products", "devices", "findings", "machine", "measure", "networks"),
    *("parts", "published", "report", "results", "run_parts", "timing"),
)

# Stands for benchmarks/device.py: a part does what its name says, without MLX.
PROGRAM = """
import json, os, pathlib, sys, time
name, file = sys.argv[sys.argv.index("--part") + 1], sys.argv[sys.argv.index("--findings") + 1]
print("this is", name, pathlib.Path.home())
if name == "crashing":
    os.abort()
if name == "hanging":
    time.sleep(60)
if name == "raising":
    raise RuntimeError("[metal::malloc] too much")
check = {"what": "a check", "error": 0.5, "psnr": None, "limits": {"error": 0.1, "psnr": 40.0}}
findings = {"checks": [], "figures": [{"ran": os.getpid()}], "notes": [], "facts": {}}
findings["notes"] = [os.environ.get("MLX_ENABLE_TF32", ""), *sys.argv[1:]]
if name == "failing":
    findings["checks"] = [check | {"passed": False}]
pathlib.Path(file).write_text(json.dumps(findings))
"""


@pytest.fixture(scope="module")
def kit():
    """Return the modules of the kit by their names, and `device`, the program."""
    sys.path.insert(0, str(BENCHMARKS))
    modules = {name: importlib.import_module(f"device_kit.{name}") for name in MODULES}
    return SimpleNamespace(device=importlib.import_module("device"), **modules)


@pytest.fixture
def program(kit, tmp_path, monkeypatch):
    """Run a program without MLX for each part."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    monkeypatch.setattr(kit.run_parts, "PROGRAM", file)


@pytest.fixture
def sizes(kit):
    """Return the smallest sizes at which each choice is made."""
    sizes = kit.check_choices._choose_small_sizes()
    return sizes._replace(tokens=300, pixels=64, width=32, side=9, channels=32, latents=4)


def make_part(kit, name: str, **options):
    return kit.parts.Part(name, f"Part {name}", None, seconds=1, **options)


def run(kit, names, folder, minutes=1.0, key=None, options=(), **part_options):
    """Run parts by their names, and return their results."""
    results = kit.results.Results(folder / "device.json", key or {"device": "A"})
    parts = [make_part(kit, name, **part_options) for name in names]
    kit.run_parts.run_parts(parts, results, minutes, options)
    return results


# --- checks ---------------------------------------------------------------------------------------


def find_failures(kit, findings) -> list[str]:
    return [check.what for check in findings.checks if not check.is_passed]


@pytest.fixture
def cases(kit):
    """Return the smallest cases: a text encoder, and a UNet."""
    tiny = kit.networks.find_model("tiny")
    text = replace(tiny.text_encoders[0], vocab_size=49_408, num_hidden_layers=1)
    return lambda: iter(
        [kit.networks.text_case("text", text), kit.networks.unet_case("UNet", tiny.unet, 4)]
    )


def test_networks_agree_with_the_cpu(kit, cases):
    findings = kit.check_networks.check_cases(cases(), ["float32", "float16"])
    assert len(findings.checks) == 4 and not find_failures(kit, findings)
    # Not the same computation twice: rounding differs.
    assert all(check.error > 0 for check in findings.checks)
    half = [check.error for check in findings.checks if "float16" in check.what]
    assert min(half) > 1e-4


def test_a_wrong_network_fails(kit, cases):
    """Attention that the device gets wrong is found; the CPU's kernels do not use it."""
    wrong = mock.patch.object(
        mx.fast, "scaled_dot_product_attention", lambda queries, *_, **__: queries
    )
    with wrong:
        findings = kit.check_networks.check_cases(cases(), ["float32"])
    assert find_failures(kit, findings) == ["text, float32", "UNet, float32"]


def test_numbers_that_are_not_finite_fail(kit):
    findings = kit.findings.Findings()
    limits = kit.findings.Limits(0.1, 20)
    right = np.array([1.0, 2.0])
    findings.compare("nan", np.array([1.0, np.nan]), right, limits)
    findings.compare("infinite", np.array([1.0, np.inf]), right, limits)
    findings.compare("close", np.array([1.0, 2.01]), right, limits)
    findings.compare("equal", right, right, limits)
    findings.compare("free", -right, right, None)
    assert find_failures(kit, findings) == ["nan", "infinite"]
    close, equal = findings.checks[2:4]
    assert close.error == pytest.approx(0.01 / 5**0.5)
    assert close.psnr == pytest.approx(20 * np.log10(1 / (0.01 / 2**0.5)))
    assert (equal.error, equal.psnr) == (0, 200)
    as_json = json.loads(json.dumps(findings.as_json(), allow_nan=False))
    assert as_json["checks"][0]["psnr"] is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["float32", "float16"])
def test_choices_agree_with_the_plain_way(kit, sizes, dtype):
    findings = kit.findings.Findings()
    kit.check_choices._compare(findings, sizes, [dtype], is_timed=False)
    checks = kit.check_choices
    assert len(findings.checks) == len((*checks.CHOICES, *checks.CHOICES_BY_TYPE[dtype]))
    assert not find_failures(kit, findings)


def count_attention(way) -> list[tuple[int, ...]]:
    """Return the shapes of the queries of each attention that MLX is asked for."""
    shapes = []
    attend = mx.fast.scaled_dot_product_attention

    def spy(queries, *arguments, **options):
        shapes.append(queries.shape)
        return attend(queries, *arguments, **options)

    with mock.patch.object(mx.fast, "scaled_dot_product_attention", spy):
        mx.eval(way())
    return shapes


def test_the_two_ways_differ(kit, sizes):
    """Heads are padded, scores are in chunks, and strips are several: else nothing is compared."""
    with as_on(Backend.METAL):
        padded = kit.check_choices.padded_heads(sizes, mx.float32)
        assert count_attention(padded.chosen)[0][-1] == 64
        assert count_attention(padded.plain)[0][-1] == 40
        chunks = kit.check_choices.attention_in_chunks(sizes, mx.float32)
        assert len(count_attention(chunks.chosen)) >= 8
        assert len(count_attention(chunks.plain)) == 1
        strips = kit.check_choices.strips_of_decode(sizes, mx.float32)
        split = mock.Mock(wraps=vae_strips._split)
        with mock.patch.object(vae_strips, "_split", split):
            mx.eval(strips.chosen())
            sizes = [(x.shape[1] * x.shape[2], n) for x, n in (c.args for c in split.mock_calls)]
            assert any(n_pixels > n for n_pixels, n in sizes)
            split.reset_mock()
            mx.eval(strips.plain())
            assert not split.called


def test_weights_are_the_same_in_each_type(kit):
    """And no layer explodes: the standard deviation of outputs is about that of the inputs."""
    layers = [kit.networks.fill(Conv3x3(32, 64), dtype) for dtype in (mx.float32, mx.float16)]
    assert layers[1].weight.dtype == mx.float16
    for name in ("weight", "bias"):
        single, half = (np.array(layer[name].astype(mx.float32)) for layer in layers)
        assert np.abs(single - half).max() < 1e-7
    x = mx.random.normal((1, 16, 16, 32), key=mx.random.key(0))
    assert 0.6 < mx.std(layers[0](x)).item() < 1.5


def test_products_are_counted(kit):
    def function(x, w):
        y = mx.conv2d(x, w, padding=1)  # 2 · 9 · 8 · (6 · 6 · 16)
        return y.reshape(36, 16) @ mx.ones((16, 5))  # 2 · 16 · (36 · 5)

    n = kit.count_products.count_products(function, mx.ones((1, 6, 6, 8)), mx.ones((16, 3, 3, 8)))
    assert n == 2 * 9 * 8 * 6 * 6 * 16 + 2 * 16 * 36 * 5


def test_products_of_a_network_are_counted_on_a_mac_too(kit):
    """There the CPU has no kernels, so constants are part of the graph."""
    case = kit.networks.unet_case("UNet", kit.networks.SMALL_SD, side=4)

    def count() -> int:
        return kit.count_products.count_products(
            lambda *inputs: case.run(case.network, *inputs), *case.inputs
        )

    with mock.patch.object(cpu_kernels, "is_used", lambda: False):
        on_a_mac = count()
    assert on_a_mac >= count() > 1e7  # without kernels the products of constants count, too


@pytest.fixture
def as_with_a_gpu(kit, sizes, monkeypatch):
    """Run what only runs with a GPU, with small networks, on this CPU."""
    tiny = kit.networks.find_model("tiny")
    model = SimpleNamespace(
        title="small", unet=kit.networks.SMALL_SD, autoencoder=tiny.autoencoder, size=32
    )
    for module in (kit.measure, kit.check_convolutions, kit.check_choices):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
        monkeypatch.setattr(module, "find_model", lambda _: model)
    monkeypatch.setattr(kit.measure, "MODELS", {"sd-1.5": model})
    monkeypatch.setattr(kit.measure, "count_step", mock.Mock(return_value=(700, 2**20)))
    for name, value in {"GPU_MATRIX": 64, "MATRIX": 64, "GPU_COPIED": 2**12}.items():
        monkeypatch.setattr(kit.measure, name, value)
    monkeypatch.setattr(kit.check_convolutions, "SIZES", kit.check_convolutions.QUICK_SIZES[:1])
    monkeypatch.setattr(kit.check_convolutions, "DECODE_SIDE", 4)
    monkeypatch.setattr(kit.check_choices, "_choose_real_sizes", lambda: sizes)
    few = (kit.check_choices.group_norm,)  # the others are tested above
    monkeypatch.setattr(kit.check_choices, "CHOICES", few)
    monkeypatch.setattr(kit.check_choices, "CHOICES_BY_TYPE", {mx.float32: (), mx.float16: few})
    monkeypatch.setattr(kit.timing, "MAX_REPEATS", 1)
    enable = mx.enable_compile
    monkeypatch.setattr(mx, "enable_compile", lambda: None)  # the C++ compiler takes a minute
    mx.disable_compile()
    with as_on(Backend.METAL):
        yield
    enable()


def test_what_only_a_gpu_runs(kit, as_with_a_gpu):
    options = kit.findings.Options()
    rates = kit.measure.measure_rates(options)
    assert {*rates.facts} == {"rate", "cpu_rate"} and len(rates.figures) == 5
    (step,) = kit.measure._measure_step("sd-1.5", 32).figures
    assert step["launched"] == "700" and "next step queued" in step
    assert kit.measure._measure_decode(64).figures[0]["products"] == "0.00 TFLOP"
    convolutions = kit.check_convolutions.check_with_tf32(options)
    assert len(convolutions.checks) == 4 and all(check.is_passed for check in convolutions.checks)
    choices = kit.check_choices.check_real(options)
    assert len(choices.figures) == len(choices.checks) == 3


# --- parts ----------------------------------------------------------------------------------------


def test_parts_have_names_of_their_own(kit):
    names = [part.name for part in kit.parts.PARTS]
    assert len({*names}) == len(names)
    assert tuple(names[:2]) == kit.parts.PLANNING
    quick = [part for part in kit.parts.PARTS if part.is_quick]
    assert sum(part.seconds for part in quick) <= 60 * kit.device.QUICK_MINUTES


def test_parts_can_be_chosen(kit):
    choose = kit.device.choose_parts
    assert [part.name for part in choose(False, ["sdxl"])] == ["machine", "rates", "sdxl"]
    quick, full = ({part.name for part in choose(is_quick, None)} for is_quick in (True, False))
    assert "sdxl" in full - quick and "step-small" in quick - full


def test_times_are_estimated(kit):
    part = make_part(kit, "one", device=4, cpu=3, seconds_on_cpu=50)
    assert part.estimate("metal", 2e12, 1e12) == pytest.approx(1 + 2 + 3)
    assert part.estimate("cpu", 2e12, 1e12) == 50
    assert replace(part, seconds_on_cpu=None).estimate("cpu", 2e12, 1e12) == pytest.approx(6)


def test_a_second_call_continues(kit, program, tmp_path):
    first = run(kit, ["one"], tmp_path)
    second = run(kit, ["one", "two"], tmp_path)
    third = run(kit, ["one", "two"], tmp_path, key={"device": "B"})
    ran = [results.parts["one"].findings["figures"] for results in (first, second, third)]
    assert ran[0] == ran[1] != ran[2]
    assert second.is_continued and not third.is_continued
    assert {*third.parts} == {"one", "two"}


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 0}', "\x00"])
def test_a_broken_file_begins_again(kit, program, tmp_path, content):
    (tmp_path / "device.json").write_text(content)
    assert run(kit, ["one"], tmp_path).is_done("one")


def test_a_crash_is_one_failed_part(kit, program, tmp_path):
    results = run(kit, ["crashing", "raising", "failing", "fine"], tmp_path)
    statuses = [result.status for result in results.parts.values()]
    assert statuses == ["failed", "failed", "done", "done"]
    assert results.parts["crashing"].reason.startswith("ended by SIGABRT\nthis is crashing ~")
    assert "RuntimeError: [metal::malloc] too much" in results.parts["raising"].reason
    assert [len(result.failures) for result in results.parts.values()] == [1, 1, 1, 0]
    kit.run_parts.PROGRAM.write_text(PROGRAM.replace("os.abort()", "pass"))
    again = run(kit, ["crashing", "fine"], tmp_path)  # only what failed runs again
    assert again.parts["crashing"].status == "done"
    assert again.parts["fine"].findings == results.parts["fine"].findings


def test_a_part_that_hangs_is_ended(kit, program, tmp_path, monkeypatch):
    monkeypatch.setattr(kit.run_parts, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(kit.run_parts, "PATIENCE", 0.5)
    result = run(kit, ["hanging"], tmp_path).parts["hanging"]
    assert result.status == "failed" and re.match("not finished after . s", result.reason)


def test_parts_that_do_not_fit_are_left_out(kit, program, tmp_path):
    results = run(kit, ["one", "two"], tmp_path, minutes=0.01)
    assert [result.status for result in results.parts.values()] == ["left out"] * 2
    assert results.parts["one"].reason == "it takes about 1 s, and 1 s are left"
    with_more_time = run(kit, ["one", "two"], tmp_path)
    assert [result.status for result in with_more_time.parts.values()] == ["done"] * 2


def test_the_budget_ends_a_part_without_a_failure(kit, program, tmp_path):
    results = run(kit, ["hanging", "two"], tmp_path, minutes=1.5 / 60)
    assert [result.status for result in results.parts.values()] == ["left out"] * 2
    assert not any(result.failures for result in results.parts.values())


def test_parts_for_other_devices_are_left_out(kit, program, tmp_path):
    results = kit.results.Results(tmp_path / "device.json", {})
    facts = {"facts": {"backend": "metal", "usable_bytes": 5e9}}
    results.add("machine", kit.results.Result("done", findings=facts))
    find = kit.run_parts.find_reason_to_leave_out
    part = make_part(kit, "one", memory=4)
    assert find(part, results, 1, 60) is None
    assert find(replace(part, memory=6), results, 1, 60) == "it needs 6 GB, and 5 GB may be used"
    assert "metal" in find(replace(part, backends={"cuda"}), results, 1, 60)


def test_a_process_gets_its_variables_and_options(kit, program, tmp_path):
    results = run(kit, ["one"], tmp_path, options=["--quick"], environment={"MLX_ENABLE_TF32": "1"})
    notes = results.parts["one"].findings["notes"]
    assert notes[0] == "1" and "--quick" in notes


# --- the program and its report -------------------------------------------------------------------


def test_the_program_runs_a_part_and_reports(kit, tmp_path, capfd):
    """Really: a process that asks MLX. The rest does not fit into nine seconds."""
    assert kit.device.main(["--quick", "--minutes", "0.15", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "device.md").read_text()
    content = json.loads((tmp_path / "device.json").read_text())
    assert content["schema"] == 1 and content["key"]["quick"] is True
    assert content["parts"]["machine"]["status"] == "done"
    assert content["parts"]["rates"]["status"] == "left out"
    assert "| backend | cpu |" in report and "no GPU" in report and "## Published" in report
    output = capfd.readouterr().out
    assert "left out: What the device could do" in output
    assert output.splitlines()[-1].startswith("Wrote ")
    for text in (report, json.dumps(content)):
        assert str(Path.home()) not in text and f"/{getpass.getuser()}/" not in text


def test_a_failure_is_the_exit_status(kit, program, tmp_path, monkeypatch, capsys):
    parts = (make_part(kit, "failing", is_quick=True), make_part(kit, "crashing", is_quick=True))
    monkeypatch.setattr(kit.device, "PARTS", parts)
    assert kit.device.main(["--quick", "--out", str(tmp_path)]) == 1
    report = (tmp_path / "device.md").read_text()
    limits = "at most 1e-01, at least 40 dB"
    assert f"| a check | 5.0e-01 | not finite | {limits} | **FAILED** |" in report
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED: Part failing: a check" in lines
    assert "FAILED: Part crashing: ended by SIGABRT" in lines
    assert lines[-2] == "1 checks, 2 failures"


def test_an_interruption_keeps_what_is_done(kit, program, tmp_path, monkeypatch):
    parts = (make_part(kit, "one"), make_part(kit, "two"), make_part(kit, "three"))
    monkeypatch.setattr(kit.device, "PARTS", parts)
    run_part = kit.run_parts.run_part

    def interrupt(part, *arguments):
        if part.name == "two":
            raise KeyboardInterrupt
        return run_part(part, *arguments)

    with mock.patch.object(kit.run_parts, "run_part", interrupt):
        assert kit.device.main(["--out", str(tmp_path)]) == 130
    assert {*json.loads((tmp_path / "device.json").read_text())["parts"]} == {"one"}
    assert "not run yet: 2 of 3 parts" in (tmp_path / "device.md").read_text()


def test_published_figures_are_those_of_the_device(kit):
    find = kit.published.find_published
    assert {figure.device for figure in find("Apple M2 Pro")} == {"M2 Pro"}
    assert {figure.device for figure in find("NVIDIA H100 80GB HBM3")} == {"H100"}
    assert find("Apple M2") == list(kit.published.FIGURES)


def test_tables_have_all_columns(kit):
    lines = kit.report.make_table([{"a": 1}, {"a": 2, "b": 3}])
    assert lines == ["| a | b |", "| --- | --- |", "| 1 |  |", "| 2 | 3 |"]
