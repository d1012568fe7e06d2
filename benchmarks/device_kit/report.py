"""The report as Markdown, to paste into an issue."""

from collections.abc import Iterable, Sequence
from typing import Any

from .parts import Part
from .published import find_published
from .results import DONE, LEFT_OUT, Results


def write_report(parts: Sequence[Part], results: Results) -> str:
    """Return the report of the parts that have a result."""
    found = [(part, results.parts[part.name]) for part in parts if part.name in results.parts]
    lines = [
        f"# Stable Diffusion for MLX on {results.fact('machine', 'device', 'an unknown device')}",
        "",
    ]
    lines += [f"- {line}" for line in summarize(parts, results)]
    for part, result in found:
        if result.status == DONE:
            lines += ["", f"## {part.title}", *_describe_findings(result.findings)]
    lines += ["", "## Published by others", ""]
    figures = find_published(results.fact("machine", "device", ""))
    lines += make_table([figure._asdict() for figure in figures])
    return "\n".join(lines) + "\n"


def summarize(parts: Sequence[Part], results: Results) -> list[str]:
    """Return what failed and what was left out, a line each, and how many checks passed."""
    found = [(part, results.parts[part.name]) for part in parts if part.name in results.parts]
    lines = []
    n_checks = sum(len(result.findings.get("checks", ())) for _, result in found)
    failures = [(part, failure) for part, result in found for failure in result.failures]
    for part, failure in failures:
        first, *others = failure.splitlines()
        lines += [f"FAILED: {part.title}: {first}", *(f"    {line}" for line in others)]
    lines += [
        f"left out: {part.title}: {result.reason}"
        for part, result in found
        if result.status == LEFT_OUT
    ]
    n_missing = len(parts) - len(found)
    if n_missing:
        lines.append(f"not run yet: {n_missing} of {len(parts)} parts")
    lines.append(f"{n_checks} checks, {len(failures)} failures")
    return lines


def make_table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table of rows, which are values by titles of columns."""
    rows = list(rows)
    titles = list(dict.fromkeys(title for row in rows for title in row))
    cells = [[str(row.get(title, "")) for title in titles] for row in rows]
    lines = [titles, ["---"] * len(titles), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _describe_findings(findings: dict[str, Any]) -> list[str]:
    """Return the tables and notes of a part."""
    lines: list[str] = []
    if findings["checks"]:
        lines += ["", *make_table(map(_describe_check, findings["checks"]))]
    if findings["figures"]:
        lines += ["", *make_table(findings["figures"])]
    if findings["notes"]:
        lines += ["", *(f"- {note}" for note in findings["notes"])]
    return lines


def _describe_check(check: dict[str, Any]) -> dict[str, str]:
    limits, verdict = check["limits"], "passed" if check["passed"] else "**FAILED**"
    bounds = f"at most {limits['error']:.0e}, at least {limits['psnr']:.0f} dB" if limits else ""
    return {
        "checked": check["what"],
        "relative L2": "not finite" if check["error"] is None else f"{check['error']:.1e}",
        "PSNR": "not finite" if check["psnr"] is None else f"{check['psnr']:.0f} dB",
        "limits": bounds,
        "result": verdict if limits else "for information",
    }
