"""What the machine is: its device, memory, system and versions. No names of people, no paths."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

import stable_diffusion
from stable_diffusion.device import backend, memory

from .devices import has_gpu
from .findings import Findings, Options

ROOT = Path(__file__).parents[2]
# Of `mx.device_info`; others, such as serial numbers, belong to nobody else.
PUBLIC_KEYS = {
    *("device_name", "architecture", "memory_size", "max_buffer_length"),
    *("max_recommended_working_set_size", "total_memory", "free_memory"),
    *("compute_capability_major", "compute_capability_minor"),
}
# What a process may use of the memory: Metal recommends two thirds to three quarters.
USABLE_SHARE = 0.75


def describe_machine(options: Options) -> Findings:
    """Return what the machine is, a row for each fact."""
    findings = Findings()
    for title, value in (_describe_device() | _describe_system() | describe_versions()).items():
        findings.measure({"fact": title, "value": value})
    findings.facts = {
        "backend": find_backend(),
        "device": find_device_name(),
        "usable_bytes": read_usable_memory(),
    }
    if not has_gpu():
        findings.note(
            "no GPU: the CPU is compared with itself, by MLX's own operations, chosen as on Metal"
        )
    return findings


def find_backend() -> str:
    """Return the backend of MLX: "metal", "cuda" or "cpu"."""
    return str(backend.find_backend())


def find_device_name() -> str:
    """Return the name of the device, such as "Apple M2 Pro"."""
    return str(mx.device_info().get("device_name", "unnamed device"))


def make_key(is_quick: bool) -> dict[str, Any]:
    """Return what must be equal for results to be used again."""
    device = {"device": find_device_name(), "backend": find_backend(), "quick": is_quick}
    return device | describe_versions()


def read_usable_memory() -> int:
    """Return how many bytes a process may use on the device."""
    info = mx.device_info()
    recommended = info.get("max_recommended_working_set_size")
    return int(recommended or USABLE_SHARE * memory.read_total_memory())


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, MLX and this program, with the state of its files."""
    return {
        "Python": platform.python_version(),
        "MLX": version("mlx"),
        "program": f"{stable_diffusion.__version__}, {_describe_checkout()}",
        "TF32": os.environ.get("MLX_ENABLE_TF32", "MLX's default"),
    }


def _describe_device() -> dict[str, str]:
    facts = {"backend": find_backend()}
    for key, value in mx.device_info().items():
        if key not in PUBLIC_KEYS:
            continue
        is_size = isinstance(value, int) and value > 1e6
        facts[key.replace("_", " ")] = f"{value / 1e9:.1f} GB" if is_size else str(value)
    return facts | {"usable memory": f"{read_usable_memory() / 1e9:.1f} GB"}


def _describe_system() -> dict[str, str]:
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "memory": f"{_read_system_memory() / 1e9:.1f} GB",
        "cores": str(os.cpu_count()),
    }
    if platform.system() == "Darwin":
        facts["macOS"] = platform.mac_ver()[0]
        facts["free memory"] = _find_line(["memory_pressure", "-Q"], "free percentage")
        facts["power"] = _find_line(["pmset", "-g", "batt"], "drawing from")
        facts["low power mode"] = _find_line(["pmset", "-g"], "lowpowermode")
    elif platform.system() == "Linux":
        facts["free memory"] = f"{_read_available_memory() / 1e9:.1f} GB"
    return {title: value for title, value in facts.items() if value}


def _read_system_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_available_memory() -> int:
    """Return the memory that Linux could give to a process, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _find_line(command: list[str], words: str) -> str:
    """Return the first line of a command's output with some words; "" if there is none."""
    return next((line.strip() for line in _run(command).splitlines() if words in line), "")


def _describe_checkout() -> str:
    """Return the commit of this repository, with a digest of what has changed since."""
    commit = _run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
    if not commit:
        return "no repository"
    changes = _run(["git", "-C", str(ROOT), "diff", "HEAD", "--", "stable_diffusion", "benchmarks"])
    digest = hashlib.sha256(changes.encode()).hexdigest()[:8]
    return f"commit {commit}, changed ({digest})" if changes else f"commit {commit}"


def _run(command: list[str]) -> str:
    """Return the output of a command; "" if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout
