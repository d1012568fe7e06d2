"""One task on one side in a process of its own; `bench.py` starts it.

    python benchmarks/worker.py ours unet FOLDER --repeats 3 --result FILE

Prints one line of JSON: seconds to load and of each run, and peak memory in bytes.
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
    """The most memory that a process has had, in bytes."""
    return usage.ru_maxrss if sys.platform == "darwin" else 1024 * usage.ru_maxrss


def main() -> None:
    """Load, warm up, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", "theirs", "quantized"])
    parser.add_argument("task", choices=[*TASKS, *QUANTIZED])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--result", type=Path, help="where to save the last run's result")
    parser.add_argument("--count", action="store_true", help="count operations (theirs)")
    args = parser.parse_args()
    task = replace((TASKS | QUANTIZED)[args.task], quantized=args.side == "quantized")
    side = importlib.import_module("theirs" if args.side == "theirs" else "ours")

    start = time.perf_counter()
    run = side.prepare(task, args.folder)
    report = {"load": time.perf_counter() - start, "runs": []}
    if not task.is_picture:
        run()  # a picture warms up by itself, and takes the model apart
    for _ in range(1 if task.is_picture else args.repeats):
        start = time.perf_counter()
        result = run()
        report["runs"].append(time.perf_counter() - start)
    report["resident"] = peak_resident(resource.getrusage(resource.RUSAGE_SELF))
    if args.side == "theirs":
        if args.count:
            report["operations"] = side.operations(task, args.folder)
    else:
        report["mlx"] = side.mx.get_peak_memory()
    if args.result:
        np.save(args.result, result)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
