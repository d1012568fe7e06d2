"""What computes: the processor, the instructions of it that matter here, and the versions."""

import hashlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
PACKAGE = Path(__file__).parents[1] / "stable_diffusion"
# Of x86-64; names of Linux and of the manuals.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX",
}
MULTIPLY_BFLOAT16 = {"AVX-512 BF16", "AMX"}
PACKAGES = ("mlx", "torch", "diffusers", "openvino", "cyllama")


def read_name(info: Path = CPU_INFO) -> str:
    """Return the name of the processor, and the number of its cores."""
    name = _read_field("model name", info) or platform.processor() or platform.machine()
    return f"{name}, {count_cores()} cores"


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_instruction_sets(info: Path = CPU_INFO) -> list[str]:
    """Return those of `INSTRUCTION_SETS` that the processor has; none if Linux does not say."""
    flags = set(_read_field("flags", info).split())
    return [title for flag, title in INSTRUCTION_SETS.items() if flag in flags]


def multiplies_bfloat16(info: Path = CPU_INFO) -> bool:
    """Return whether the processor multiplies bfloat16; True if that is not known."""
    if not _read_field("flags", info):
        return True
    return not MULTIPLY_BFLOAT16.isdisjoint(list_instruction_sets(info))


def is_installed(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def describe_machine() -> dict[str, str]:
    """Return the facts that must be equal for measurements to belong to one run."""
    facts = {"processor": read_name()}
    if sets := list_instruction_sets():
        facts["instructions"] = ", ".join(sets)
    facts["system"] = f"{platform.system()}, Python {platform.python_version()}"
    facts |= {package: version(package) for package in PACKAGES if is_installed(package)}
    return facts | {"this program": _digest_sources()}


def _digest_sources() -> str:
    """Return a digest of this program's sources, which change between versions."""
    digest = hashlib.sha256()
    for suffix in ("*.py", "*.h", "*.cpp"):
        for path in sorted(PACKAGE.rglob(suffix)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _read_field(name: str, info: Path) -> str:
    """Return the first value of a field of Linux's file about processors; "" if there is none."""
    if sys.platform != "linux" or not info.exists():
        return ""
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
