"""What workers reported, kept in a file, so that a run that was cut off can be continued."""

import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from tasks import TASKS

Report = dict[str, Any]  # of one worker


class Summary(NamedTuple):
    """What the reports of a program say about a task, in seconds and bytes."""

    run: float  # the median
    n_runs: int
    resident: int  # the peak
    mlx: int  # the peak of MLX's own allocations
    operations: int  # floating-point operations; 0 if they were not counted


class Results:
    """The reports of all workers, by task and program, and the last array of each.

    Attributes:
        facts: what was found once, such as the rate of products.
    """

    def __init__(self, folder: Path, machine: dict[str, str]):
        """Take up the results in a folder if they are of the same machine and versions."""
        self.folder, self.machine = folder, machine
        self.facts: dict[str, Any] = {}
        self._reports: dict[str, dict[str, list[Report]]] = {}
        self.failures: dict[str, dict[str, str]] = {}  # of this run; the next one tries again
        self.is_continued = self._read()

    def _read(self) -> bool:
        """Read the file; return False if there is none of this machine."""
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return False
        if not isinstance(content, dict) or content.get("machine") != self.machine:
            return False
        self.facts, self._reports = content["facts"], content["tasks"]
        return True

    @property
    def _file(self) -> Path:
        return self.folder / "bench.json"

    def write(self) -> None:
        """Write the file, completely or not at all."""
        content = {"machine": self.machine, "facts": self.facts, "tasks": self._reports}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1))
        part.replace(self._file)

    def array_file(self, task: str, program: str) -> Path:
        """Return the file of what a program computed."""
        folder = self.folder / "arrays"
        folder.mkdir(exist_ok=True)
        return folder / f"{task}-{program}.npy"

    def add(self, task: str, program: str, report: Report) -> None:
        """Keep a report."""
        self._reports.setdefault(task, {}).setdefault(program, []).append(report)
        self.write()

    def add_parts(self, task: str, program: str, report: Report) -> None:
        """Keep the report of a program that tells the seconds of each part of a picture.

        Each part belongs to the task of the same model that runs it alone.
        """
        rest = {key: value for key, value in report.items() if key != "parts"}
        for name, other in TASKS.items():
            same_model = other.model == TASKS[task].model and other.batch == TASKS[task].batch
            if same_model and not other.programs and other.part in report["parts"]:
                self.add(name, program, rest | {"runs": report["parts"][other.part]})

    def fail(self, task: str, program: str, reason: str) -> None:
        """Remember why a program could not run a task."""
        self.failures.setdefault(task, {})[program] = reason

    def get(self, task: str, program: str) -> list[Report]:
        """Return the reports of a program on a task."""
        return self._reports.get(task, {}).get(program, [])

    def summarize(self, task: str, program: str) -> Summary | None:
        """Return the medians of a program on a task, None if it was not measured.

        The time of a task of loading is that of loading.
        """
        reports = self.get(task, program)
        if not reports:
            return None
        if TASKS[task].part == "load":
            times = [report["load"] for report in reports]
        else:
            times = [seconds for report in reports for seconds in report["runs"]]
        return Summary(
            run=median(times),
            n_runs=len(times),
            resident=max(report["resident"] for report in reports),
            mlx=max(report.get("mlx", 0) for report in reports),
            operations=max(report.get("operations", 0) for report in reports),
        )

    def find_ratio(self, task: str, program: str) -> float | None:
        """Return the time divided by the reference's; None if one of them was not measured."""
        own = self.summarize(task, program)
        reference = self.summarize(task, TASKS[task].reference)
        return None if own is None or reference is None else own.run / reference.run

    def find_difference(self, task: str, program: str) -> float | None:
        """Return the relative L2 from the reference's result; None if they were not compared."""
        told = [report["error"] for report in self.get(task, program) if "error" in report]
        if told:
            return max(told)
        reference = TASKS[task].reference
        files = [self.array_file(task, each) for each in (program, reference)]
        if TASKS[task].part == "load" or not all(file.exists() for file in files):
            return None
        return relative_l2(*(np.load(file) for file in files))


def relative_l2(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of `theirs`."""
    difference = ours.astype(np.float64) - theirs
    return float(np.linalg.norm(difference) / np.linalg.norm(theirs.astype(np.float64)))
