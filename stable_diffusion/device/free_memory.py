"""How much memory is free for this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from . import backend, memory

CGROUPS = Path("/sys/fs/cgroup")
# By version: the folder of the hierarchy, the limit, what is used, and how the names in memory.stat
# begin that count the group with all groups in it.
CGROUP_FILES = {
    2: ("", "memory.max", "memory.current", ""),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
# Copies of files, such as a checkpoint that was read before, which the system gives up if memory is
# short. `MemAvailable` counts them as available, too.
GIVEN_UP = ("inactive_file", "active_file")


def read_free_memory(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Return how many bytes the arrays of this process may take in addition.

    On Linux it is what the system calls available, or less if a container limits it. Metal says how
    much the GPU should use at most. On other systems it is all the memory.
    """
    if backend.is_gpu():
        info = mx.device_info()
        for key in ("max_recommended_working_set_size", "free_memory"):  # Metal and CUDA
            if key in info:
                return int(info[key]) - mx.get_active_memory()
        return memory.read_total_memory()
    available = _read_available(proc / "meminfo")
    return min([available, *_find_rooms(proc / "self" / "cgroup", cgroups)])


def read_resident_memory(proc: Path = Path("/proc")) -> int:
    """Return the resident memory of this process, in bytes; its peak where that is unknown."""
    try:
        pages = int((proc / "self" / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return memory.read_peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read_available(meminfo: Path) -> int:
    """Return the available memory of the system, in bytes; all of it where that is unknown."""
    try:
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return memory.read_total_memory()


def _find_rooms(cgroup: Path, folder: Path) -> Iterator[int]:
    """Yield the room, in bytes, that each group of processes with this one in it has left.

    Args:
        cgroup: the file with the groups, "ID:CONTROLLERS:PATH" in each line.
        folder: where the hierarchies of groups are mounted.
    """
    try:
        lines = [line.split(":", 2) for line in cgroup.read_text().splitlines()]
    except (OSError, ValueError):  # no such file, or a name that is not UTF-8
        return
    for _, controllers, path in lines:
        version = 1 if controllers else 2
        if version == 1 and "memory" not in controllers.split(","):
            continue
        hierarchy, limit, used, prefix = CGROUP_FILES[version]
        # Inside a container the path may be that outside of it: then only the root is there.
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            room = _read_room(folder / hierarchy / each, limit, used, prefix)
            if room is not None:
                yield room


def _read_room(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """Return the room that a group has left, in bytes; None if it has no limit."""
    try:
        room = int((group / limit).read_text()) - int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return room + sum(int(stat.get(prefix + name, 0)) for name in GIVEN_UP)
    except (OSError, ValueError):  # no such file, or "max"
        return None
