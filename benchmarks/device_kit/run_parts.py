"""Run the parts, each in a process of its own, within a budget of time."""

import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from .parts import Part
from .results import DONE, FAILED, LEFT_OUT, Result, Results

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "device.py"
LAST_LINES = 8  # of a process that failed, for the report
# A process may take several times as long as estimated before it is ended.
PATIENCE, MIN_SECONDS = 5, 60
# Until the rates are measured: those of a slow machine, in FLOP/s.
DEFAULT_RATES = 1e12, 1e11


def run_parts(
    parts: Sequence[Part], results: Results, minutes: float, options: Sequence[str] = ()
) -> None:
    """Run the parts that are not done yet, and add their results.

    Args:
        minutes: the budget; parts that would not fit into the rest of it are left out.
        options: of this program, for the processes.
    """
    end = time.monotonic() + 60 * minutes
    for i, part in enumerate(parts, 1):
        heading = f"[{i}/{len(parts)}] {part.title}"
        if results.is_done(part.name):
            print(f"{heading}: done before", flush=True)
            continue
        seconds = part.estimate(
            results.fact("machine", "backend", ""),
            results.fact("rates", "rate", DEFAULT_RATES[0]),
            results.fact("rates", "cpu_rate", DEFAULT_RATES[1]),
        )
        left = end - time.monotonic()
        reason = find_reason_to_leave_out(part, results, seconds, left)
        if reason is None:
            print(f"{heading}: about {seconds:.0f} s", flush=True)
            timeout = max(MIN_SECONDS, PATIENCE * seconds)
            result = run_part(part, options, min(left, timeout))
            if result.seconds >= left and left < timeout:
                result = Result(LEFT_OUT, "the time was over before it was done", result.seconds)
        else:
            result = Result(LEFT_OUT, reason)
        results.add(part.name, result)
        print(f"{heading}: {describe(result)}", flush=True)


def find_reason_to_leave_out(
    part: Part, results: Results, seconds: float, left: float
) -> str | None:
    """Return why a part should not run; None if it should.

    Args:
        seconds: how long it takes, about.
        left: the rest of the budget, in seconds.
    """
    backend = results.fact("machine", "backend")
    if backend is not None and backend not in part.backends:
        return f"it says nothing about the backend {backend}"
    usable = results.fact("machine", "usable_bytes", float("inf"))
    if 1e9 * part.memory > usable:
        return f"it needs {part.memory:.0f} GB, and {usable / 1e9:.0f} GB may be used"
    if seconds > left:
        return f"it takes about {seconds:.0f} s, and {max(0, left):.0f} s are left"
    return None


def run_part(part: Part, options: Sequence[str], timeout: float) -> Result:
    """Run a part in a process of its own; a crash, or a timeout in seconds, is a result, too."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "findings.json"
        command = [sys.executable, str(PROGRAM), "--part", part.name, "--findings", str(file)]
        start = time.monotonic()
        status, lines = _run_process([*command, *options], part.environment, timeout)
        seconds = round(time.monotonic() - start, 1)
        if status == 0 and file.exists():
            return Result(DONE, "", seconds, json.loads(file.read_text()))
    if seconds >= timeout:
        ending = f"not finished after {seconds:.0f} s"
    elif status < 0:
        ending = f"ended by {signal.Signals(-status).name}"
    else:
        ending = f"ended with status {status}"
    return Result(FAILED, "\n".join([ending, *map(hide_names, lines)]), seconds)


def _run_process(
    command: list[str], environment: dict[str, str], timeout: float
) -> tuple[int, list[str]]:
    """Run a command, print its lines as they come; return its status and its last lines."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    lines: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        return process.wait(), list(lines)
    finally:
        timer.cancel()
        process.kill()  # if this was interrupted
        process.wait()


def hide_names(line: str) -> str:
    """Return a line of a process without the folders and the name of the user."""
    for path, name in ((str(ROOT), "."), (sys.prefix, "python"), (str(Path.home()), "~")):
        line = line.replace(path, name)
    return line.replace(f"/{_find_user()}/", "/user/")


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "user"


def describe(result: Result) -> str:
    """Return the outcome of a part in a few words."""
    if result.status != DONE:
        return f"{result.status}: {result.reason.splitlines()[0]}"
    failures, n = result.failures, len(result.findings["checks"])
    checks = f"{n - len(failures)} of {n} checks passed, " if n else ""
    return f"{checks}{result.seconds:.0f} s"
