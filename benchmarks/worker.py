"""Run one task in one program; `bench.py` starts this in a process of its own.

    python benchmarks/worker.py ours unet FOLDER --repeats 3 --result FILE

Prints one line of JSON: the seconds to load, the seconds of each run, and peak memory in bytes.
"""

import argparse
import importlib
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from programs import PROGRAMS
from tasks import TASKS, Task

sys.path.insert(0, str(Path(__file__).parents[1]))  # stable_diffusion

SHORT_RUN = 2.0  # seconds; what takes longer runs once in a process, after a run that warms up


def peak_resident(usage: resource.struct_rusage) -> int:
    """Return the peak memory of a process in bytes."""
    return usage.ru_maxrss if sys.platform == "darwin" else 1024 * usage.ru_maxrss


def main(arguments: list[str] | None = None) -> None:
    """Load, warm up, run, and print the report.

    Args:
        arguments: those of the command line; None for this process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=1, help="runs, if they are short")
    parser.add_argument("--result", type=Path, help="where to save the last run's result")
    parser.add_argument(
        "--check", action="store_true", help="count operations, or compare with diffusers"
    )
    args = parser.parse_args(arguments)
    program = PROGRAMS[args.program]
    task = replace(TASKS[args.task], precision=program.precision)
    module = importlib.import_module(program.module)

    if program.tells_parts:
        report = module.measure_parts(task, args.folder, args.repeats)
    else:
        report = measure_runs(module, task, args.folder, args.repeats, args.result)
    report["resident"] = peak_resident(resource.getrusage(resource.RUSAGE_SELF))
    if program.module == "tasks_mlx":
        report["mlx"] = module.mx.get_peak_memory()
    if args.check and hasattr(module, "check"):
        report |= module.check(task, args.folder)
    print(json.dumps(report))


def measure_runs(
    module: ModuleType, task: Task, folder: Path, repeats: int, result_file: Path | None
) -> dict[str, Any]:
    """Return the seconds to load and of each run; write the last result.

    Pictures need no warm-up, and their networks are freed on the way, so they run once.
    """
    start = time.perf_counter()
    run = module.prepare(task, folder)
    load = time.perf_counter() - start
    if task.is_picture:
        repeats = 1
    else:
        start = time.perf_counter()
        run()
        if time.perf_counter() - start > SHORT_RUN:
            repeats = 1
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        runs.append(time.perf_counter() - start)
    if result_file is not None:
        np.save(result_file, result)
    return {"load": load, "runs": runs}


if __name__ == "__main__":
    main()
