"""Count the cores of a Linux CPU that this process may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def count_cores() -> int:
    """Return how many cores the process's affinity and its container's quota allow, at least 1."""
    if sys.platform != "linux":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), *map(int, _read_quotas())))


def _read_quotas() -> Iterator[float]:
    """Yield the number of cores, then the quota, in cores, of each control group of the process."""
    yield os.cpu_count() or 1
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _walk_up(ROOT, path):
                yield from _read_quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in _walk_up(ROOT / "cpu", path):
                yield from _read_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _walk_up(root: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and the folders above it; in a container it may be the root."""
    folder = root / path.lstrip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _read_quota(*files: Path) -> Iterator[float]:
    """Yield quota / period, which are in one or two files; nothing if there is no quota."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return
