"""Run one task on one side; `bench.py` starts this in a process of its own.

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

import numpy as np
from tasks import QUANTIZED, TASKS

sys.path.insert(0, str(Path(__file__).parents[1]))  # stable_diffusion


def peak_resident(usage: resource.struct_rusage) -> int:
    """Return the peak memory of a process in bytes."""
    return usage.ru_maxrss if sys.platform == "darwin" else 1024 * usage.ru_maxrss


def main(arguments: list[str] | None = None) -> None:
    """Load, warm up, run, and print the report.

    Args:
        arguments: those of the command line; None for this process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", "theirs", "quantized"])
    parser.add_argument("task", choices=[*TASKS, *QUANTIZED])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--result", type=Path, help="where to save the last run's result")
    parser.add_argument("--count", action="store_true", help="count operations (theirs)")
    args = parser.parse_args(arguments)
    task = replace((TASKS | QUANTIZED)[args.task], quantized=args.side == "quantized")
    side = importlib.import_module("tasks_diffusers" if args.side == "theirs" else "tasks_mlx")

    start = time.perf_counter()
    run = side.prepare(task, args.folder)
    report = {"load": time.perf_counter() - start, "runs": []}
    if not task.is_picture:
        run()  # pictures need no warm-up, and their networks are freed on the way
    for _ in range(1 if task.is_picture else args.repeats):
        start = time.perf_counter()
        result = run()
        report["runs"].append(time.perf_counter() - start)
    report["resident"] = peak_resident(resource.getrusage(resource.RUSAGE_SELF))
    if args.side == "theirs":
        if args.count:
            report["operations"] = side.count_operations(task, args.folder)
    else:
        report["mlx"] = side.mx.get_peak_memory()
    if args.result:
        np.save(args.result, result)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
