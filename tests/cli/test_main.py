"""The programs: how they are started, and what becomes of their errors and warnings."""

import tomllib
import warnings
from importlib.metadata import EntryPoint

import pytest
from ours import ROOT

from stable_diffusion import __main__ as package_main
from stable_diffusion.cli import main
from stable_diffusion.cli.job import UsageError
from stable_diffusion.overflow import Fault, FaultyResultError, RecomputeWarning
from stable_diffusion.utils.wording import InputWarning

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def run_help(name: str, started_as: str, monkeypatch, capsys) -> str:
    """Return what a command of pyproject.toml prints for --help."""
    function = EntryPoint(name, SCRIPTS[name], "console_scripts").load()
    monkeypatch.setattr("sys.argv", [started_as, "--help"])
    with pytest.raises(SystemExit) as stopped:
        function()
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_commands():
    """Each does what a script does, and is listed by `python -m stable_diffusion`."""
    assert SCRIPTS.keys() == main.COMMANDS.keys()
    for name, script in main.COMMANDS.items():
        assert (ROOT / script).is_file()
        assert f"  {name} " in package_main.COMMANDS
        assert f"  python {script} " in package_main.COMMANDS


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_program_as_it_was_started(name, monkeypatch, capsys):
    installed = run_help(name, f"/usr/bin/{name}", monkeypatch, capsys)
    assert installed.startswith(f"usage: {name} [options]")
    assert f" {name} --" in installed and ".py --" not in installed
    script = main.COMMANDS[name]
    text = run_help(name, script, monkeypatch, capsys)
    assert text.startswith(f"usage: {script} [options]")
    assert f" python {script} --" in text and name not in text


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("no"), 2, "error: no"),
        (ValueError("no"), 1, "error: no"),
        (FileNotFoundError(2, "No such file", "a.png"), 1, "error: a.png: No such file"),
        (KeyboardInterrupt("2 are left"), 130, "error: interrupted: 2 are left"),
        (
            FaultyResultError("latents", Fault.NOT_FINITE),
            1,
            "error: the latents are not finite numbers, though all weights are: the model "
            "overflows: try another --sampler, a smaller --cfg, or less of --lora or "
            "--control",
        ),
        (
            FaultyResultError("latents", Fault.NOT_FINITE, ["a: b"]),
            1,
            "error: the latents are not finite numbers, because these weights are not: a: b; get "
            "the file again",
        ),
    ],
)
def test_errors_are_lines(capsys, error, status, line):
    def fail() -> None:
        raise error

    assert main.report_errors(fail) == status
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bug_is_a_traceback():
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        main.report_errors(fail)


def test_warnings_are_lines(capsys):
    """One about prompts is printed once for each topic; one about precision has an option."""

    def warn() -> None:
        for warning in (
            UserWarning("a"),
            UserWarning("a"),
            InputWarning("b"),
            InputWarning("b"),
            RecomputeWarning("latents", Fault.NOT_FINITE, gives_up_float16=True),
            RecomputeWarning("latents", Fault.CONSTANT, gives_up_float16=False),
        ):
            warnings.warn(warning, stacklevel=1)

    assert main.report_errors(warn) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: a",
        "warning: a",
        "warning: b",
        "warning: the latents are not finite numbers in half precision: computing them again in "
        "float32 (--no-float16 avoids this)",
        "warning: the latents are constant: computing them again",
    ]
