"""The tables and the plot of a benchmark's results."""

from collections.abc import Callable
from pathlib import Path

from programs import PROGRAMS
from results import Results
from tasks import TASKS

GIGA = 1e9
# A result that is further from diffusers' than this is marked: it does not count as fast.
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 1e-2, "quantized": 1.0}
MAX_ROUNDED_DIFFERENCE = 1e-2  # of a picture of 8 bits, whose rounding alone is 2e-3
LONGEST_BAR = 1.6  # of the plot; longer ones are cut, and their number tells their length
COLORS = {
    "ours": "#1f77b4",
    "ours-bf16": "#9ecae1",
    "diffusers": "#d62728",
    "diffusers-bf16": "#f4a6a0",
    "openvino": "#2ca02c",
    "openvino-bf16": "#a1d99b",
    "sd.cpp": "#7f7f7f",
    "sd.cpp-f16": "#c7c7c7",
}


def make_report(results: Results, notes: list[str]) -> list[str]:
    """Return the lines of the report in Markdown."""
    lines = [f"- {title}: {value}" for title, value in results.machine.items()]
    lines.append(f"- matrix products of 2048 × 2048: {results.facts['rate'] / GIGA:.0f} GFLOP/s")
    for with_quantized in (False, True):
        names = [name for name, task in TASKS.items() if bool(task.programs) == with_quantized]
        lines += _make_tables(results, names)
    lines += ["", *(f"- {note}" for note in notes)]
    for task, reasons in results.failures.items():
        for program, reason in reasons.items():
            lines.append(f"- {TASKS[task].title}, {PROGRAMS[program].title}: {reason}")
    return lines


def _make_tables(results: Results, names: list[str]) -> list[str]:
    """Return tables of times, peaks of memory and differences, if something was measured."""
    columns = [p for p in PROGRAMS if any(results.get(name, p) for name in names)]
    rows = [name for name in names if any(results.get(name, p) for p in columns)]
    if not rows:
        return []
    lines = ["", "Seconds, and in brackets the ratio to the reference:", ""]
    lines += _make_table(results, rows, columns, _format_time, floor=True)
    lines += ["", "Peak memory of the process:", ""]
    lines += _make_table(results, rows, columns, _format_memory)
    lines += ["", "Relative L2 from the reference:", ""]
    return lines + _make_table(results, rows, columns, _format_difference)


def _make_table(
    results: Results,
    rows: list[str],
    columns: list[str],
    format_cell: Callable[[Results, str, str], str],
    floor: bool = False,
) -> list[str]:
    """Return the lines of a table: a row for each task, a column for each program.

    Args:
        floor: add the time of the matrix products alone.
    """
    titles = [PROGRAMS[program].title for program in columns] + ["floor"] * floor
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in rows:
        cells = [format_cell(results, name, program) for program in columns]
        if floor:
            seconds = find_floor(results, name)
            cells.append("" if seconds is None else f"{seconds:.2f} s")
        lines.append(f"| {TASKS[name].title} | {' | '.join(cells)} |")
    return lines


def find_floor(results: Results, task: str) -> float | None:
    """Return the seconds of the products of a task; None if they were not counted."""
    reference = results.summarize(task, TASKS[task].reference)
    if reference is None or not reference.operations:
        return None
    return reference.operations / results.facts["rate"]


def is_wrong(results: Results, task: str, program: str) -> bool:
    """Return whether a result is too far from the reference's to count."""
    difference = results.find_difference(task, program)
    if difference is None:
        return False
    is_rounded = PROGRAMS[program].tells_parts
    limit = MAX_ROUNDED_DIFFERENCE if is_rounded else MAX_DIFFERENCE[PROGRAMS[program].precision]
    return not difference <= limit


def _format_time(results: Results, task: str, program: str) -> str:
    summary = results.summarize(task, program)
    if summary is None:
        return ""
    if is_wrong(results, task, program):
        return "wrong result"
    ratio = results.find_ratio(task, program)
    if program == TASKS[task].reference or ratio is None:
        return f"{summary.run:.2f} s"
    return f"{summary.run:.2f} s ({ratio:.2f})"


def _format_memory(results: Results, task: str, program: str) -> str:
    summary = results.summarize(task, program)
    return "" if summary is None else f"{summary.resident / GIGA:.2f} GB"


def _format_difference(results: Results, task: str, program: str) -> str:
    difference = results.find_difference(task, program)
    is_reference = program == TASKS[task].reference
    return "" if difference is None or is_reference else f"{difference:.0e}"


def plot(results: Results, file: Path) -> None:
    """Plot the ratios to diffusers in float32: a group for each task, a bar for each program."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name, task in TASKS.items() if not task.programs and task.part != "load"]
    names = [name for name in names if results.get(name, "diffusers")]
    if not names:
        return
    n_bars = sum(len(_list_bars(results, name)) + 1 for name in names)
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.16 * n_bars), layout="constrained")
    bars = _draw_groups(results, names, axes)
    axes.axvline(1, color=COLORS["diffusers"], linewidth=0.8, linestyle="--")
    axes.set_xlim(0, LONGEST_BAR)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("time relative to diffusers in float32; shorter is faster")
    axes.spines[["top", "right"]].set_visible(False)
    titles = {name: program.title.replace("`", "") for name, program in PROGRAMS.items()}
    titles["floor"] = "products alone"
    shown = [name for name in titles if name in bars]
    handles, labels = [bars[name] for name in shown], [titles[name] for name in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw_groups(results: Results, names: list[str], axes) -> dict:
    """Draw the groups of bars, and return one bar of each program and one line for a floor."""
    bars, ticks, y = {}, [], 0.0
    for name in names:
        top = y - 0.5
        for program, ratio in _list_bars(results, name):
            bars[program] = axes.barh(y, ratio, height=0.85, color=COLORS[program])
            label = {"va": "center", "fontsize": 7, "bbox": {"color": "white", "pad": 0.5}}
            if ratio < LONGEST_BAR:
                axes.text(ratio + 0.015, y, f"{ratio:.2f}", **label)
            else:
                axes.text(LONGEST_BAR - 0.03, y, f"{ratio:.2f} →", ha="right", **label)
            y += 1
        ticks.append((top + y - 0.5) / 2)
        reference = results.summarize(name, "diffusers")
        if (floor := find_floor(results, name)) is not None and reference is not None:
            x = floor / reference.run
            bars["floor"] = axes.vlines(x, top, y - 0.5, "black", linewidth=1.2)
        y += 1
    axes.set_yticks(ticks, [TASKS[name].title.replace(", ", ",\n", 1) for name in names])
    return bars


def _list_bars(results: Results, task: str) -> list[tuple[str, float]]:
    """Return the programs with a right result, and their ratios."""
    bars = []
    for program in PROGRAMS:
        ratio = results.find_ratio(task, program)
        if ratio is not None and not is_wrong(results, task, program):
            bars.append((program, ratio))
    return bars
