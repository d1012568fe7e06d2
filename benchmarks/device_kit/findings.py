"""What a part finds: checks, which pass or fail, and figures."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np


class Limits(NamedTuple):
    """The largest relative L2 error and the lowest PSNR with which a check passes."""

    error: float
    psnr: float


# Rounding of MLX's own operations is about 1e-6 in float32; products in TF32 would give 5e-3.
# In float16, Winograd's convolution on Metal loses up to 6e-3 each, by a model of it.
LIMITS = {mx.float32: Limits(1e-4, 80), mx.float16: Limits(3e-2, 45)}


class Check(NamedTuple):
    """A result, compared with the right one.

    Attributes:
        error: relative L2; not finite if the result is not.
        psnr: in dB; the peak is the range of the right result.
        limits: None if there is nothing to fail: the figure decides something later.
    """

    what: str
    error: float
    psnr: float
    limits: Limits | None

    @property
    def is_passed(self) -> bool:
        """Return whether the result is within the limits, if there are any."""
        if self.limits is None:
            return True
        return self.error <= self.limits.error and self.psnr >= self.limits.psnr


@dataclass
class Options:
    """What the parts are asked for.

    Attributes:
        is_quick: whether to take fewer and smaller sizes.
    """

    is_quick: bool = False


@dataclass
class Findings:
    """The checks and figures of a part, and notes about what was left out.

    Attributes:
        figures: the rows of the part's table: values by the titles of their columns.
        facts: what the other parts are planned by; not in the tables.
    """

    checks: list[Check] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def compare(
        self, what: str, result: np.ndarray, right: np.ndarray, limits: Limits | None
    ) -> None:
        """Add a check of a result, and print it."""
        check = Check(what, relative_l2(result, right), psnr(result, right), limits)
        self.checks.append(check)
        verdict = "" if check.is_passed else ": FAILED"
        print(f"  {what}: {check.error:.1e}, {check.psnr:.0f} dB{verdict}", flush=True)

    def measure(self, row: dict[str, Any]) -> None:
        """Add a row of figures, by the titles of their columns, and print it."""
        self.figures.append(row)
        print("  " + ", ".join(f"{title}: {value}" for title, value in row.items()), flush=True)

    def note(self, text: str) -> None:
        """Add a note, and print it."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def as_json(self) -> dict[str, Any]:
        """Return the findings as JSON has them; numbers that are not finite are None."""
        checks = [
            {
                "what": check.what,
                "error": _finite(check.error),
                "psnr": _finite(check.psnr),
                "limits": None if check.limits is None else check.limits._asdict(),
                "passed": check.is_passed,
            }
            for check in self.checks
        ]
        return {
            "checks": checks,
            "figures": self.figures,
            "notes": self.notes,
            "facts": self.facts,
        }


def relative_l2(result: np.ndarray, right: np.ndarray) -> float:
    """Return the norm of the difference, divided by the norm of the right result."""
    difference, norm = (np.linalg.norm(x.astype(np.float64)) for x in (result - right, right))
    return float(difference / norm)


def psnr(result: np.ndarray, right: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; at most 200, for equal results."""
    if not np.isfinite(result).all():
        return -math.inf
    error = np.sqrt(np.mean((result - right).astype(np.float64) ** 2))
    peak = float(right.max() - right.min())
    return 200.0 if error == 0 else min(200.0, float(20 * np.log10(peak / error)))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
