"""`count_cores` counts the cores of a machine, or of a container with a quota."""

import os
import sys

import pytest

from stable_diffusion.device import cpu_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only a Linux CPU counts them")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that writes control groups with limits, and counts the cores."""
    monkeypatch.setattr(cpu_cores, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu_cores, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)

    def write(lines: str, **limits: str) -> int:
        (tmp_path / "cgroup").write_text(lines)
        for path, text in limits.items():
            file = tmp_path / "fs" / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return cpu_cores.count_cores()

    return write


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"a__b__cpu.max": "max 100000\n", "a__cpu.max": "400000 100000\n"}, 4),
        ({"a__b__cpu.max": "200000 100000\n", "a__cpu.max": "400000 100000\n"}, 2),
        ({"cpu.max": "nonsense\n"}, 16),
        ({"cpu.max": "100 0\n"}, 16),
    ],
)
def test_quotas_of_version_2(groups, limits, cores):
    assert groups("0::/a/b\n", **limits) == cores


def test_quotas_of_version_1(groups):
    lines = "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n"
    limits = {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}
    assert groups(lines, **limits) == 16
    assert groups(lines, **limits | {"cpu__cpu.cfs_quota_us": "250000\n"}) == 2


def test_affinity_counts(groups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert groups("0::/\n", **{"cpu.max": "800000 100000\n"}) == 2


def test_a_path_outside_of_the_root(groups):
    assert groups("0::/../../elsewhere\n", **{"cpu.max": "200000 100000\n"}) == 2
