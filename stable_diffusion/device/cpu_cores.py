"""How many cores of a Linux CPU this process may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def count_cores() -> int:
    """Return as many as the process's affinity and its container's quota allow; at least 1."""
    if sys.platform != "linux":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), *map(int, _quotas())))


def _quotas() -> Iterator[float]:
    """Yield the cores' worth of time that each control group around this process may take."""
    yield os.cpu_count() or 1
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _upwards(ROOT, path):
                yield from _quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in _upwards(ROOT / "cpu", path):
                yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and those above it; within a container it may be the root."""
    folder = root / path.lstrip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _quota(*files: Path) -> Iterator[float]:
    """Yield what quota and period, in one file or two, make; nothing if there is no quota."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return
