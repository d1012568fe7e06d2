"""Compare the speed of this port with diffusers on this machine; write a table and a plot.

    pip install -r requirements.txt -r tests/requirements.txt -r benchmarks/requirements.txt
    python benchmarks/bench.py             # everything
    python benchmarks/bench.py --quick     # a few minutes once the checkpoints exist
    python benchmarks/bench.py --only unet decode

It first writes checkpoints of the real sizes with random weights, 16 GB, to the cache folder. Then
both sides run in turn, every time in a new process, so that other programs on the machine slow down
both; the figures are medians. The floor is the time of diffusers' operations, counted by torch, at
the rate of large matrix products, which is measured in the same run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from tasks import MEMORY, QUANTIZED, TASKS, Task
from worker import peak_resident

HERE = Path(__file__).parent
ROOT = HERE.parent
NAMES = {"sd": "SD 2.1", "sdxl": "SDXL-turbo"}
CONTROL_PICTURE = ROOT / "images" / "square.png"  # any picture
CACHE = Path.home() / ".cache" / "stable_diffusion_benchmark"


class Side(NamedTuple):
    """Medians of one side of a task: seconds and bytes."""

    run: float
    resident: int
    mlx: int = 0  # the peak of MLX's own allocations
    operations: int = 0


class Row(NamedTuple):
    """A task: this port (`ours`), its peer, and the difference of their results."""

    task: Task
    ours: Side
    peer: Side
    error: float  # relative L2

    @property
    def ratio(self) -> float:
        """Return our time divided by the time of the peer."""
        return self.ours.run / self.peer.run


def write_checkpoints(folder: Path, models: Iterable[str]) -> None:
    """Write the checkpoints that do not exist, each completely or not at all."""
    for model in models:
        if not (folder / model).exists():
            part = folder / f"{model}.part"
            print(f"Writing {folder / model} …", flush=True)
            subprocess.run([sys.executable, HERE / "full_size.py", model, part], check=True)
            part.rename(folder / model)


def measure(name: str, sides: tuple[str, str], folder: Path, rounds: int, repeats: int) -> Row:
    """Run one task on both sides in turn, `rounds` times."""
    task = (TASKS | QUANTIZED)[name]
    reports: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as results:
        files = {side: Path(results) / f"{side}.npy" for side in sides}
        for round_ in range(rounds):
            for side in sides:
                say(f"{task.title}: {side}, {round_ + 1} of {rounds}")
                options = ["--repeats", str(repeats), "--result", files[side]]
                if side == "theirs" and round_ == 0:
                    options.append("--count")
                command = [HERE / "worker.py", side, name, folder / task.model, *options]
                reports[side].append(json.loads(run_python(command).splitlines()[-1]))
        error = relative_l2(*(np.load(files[side]) for side in sides))
    return Row(task, *(summarize(reports[side], task) for side in sides), error)


def summarize(reports: list[dict], task: Task) -> Side:
    """Return the medians of a side's reports; the time of a load task is that of loading."""
    if task.part == "load":
        times = [report["load"] for report in reports]
    else:
        times = [seconds for report in reports for seconds in report["runs"]]
    return Side(
        run=median(times),
        resident=max(report["resident"] for report in reports),
        mlx=max(report.get("mlx", 0) for report in reports),
        operations=reports[0].get("operations", 0),
    )


def relative_l2(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the relative difference, 0 if nothing was computed."""
    norm = float(np.linalg.norm(theirs.astype(np.float64)))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs)) / norm if norm else 0.0


def measure_product_rate() -> tuple[float, str]:
    """Return the device, and how fast it multiplies matrices of 2048 × 2048 in float32.

    Returns:
        Floating-point operations per second, and the name of the device.
    """
    code = (
        "import stable_diffusion, time, mlx.core as mx\n"
        "from stable_diffusion.layers import Linear\n"
        "x, multiply, best = mx.random.normal((2048, 2048)), Linear(2048, 2048, bias=False), 9.0\n"
        "for _ in range(20):\n"
        "    start = time.perf_counter(); mx.eval(multiply(x))\n"
        "    best = min(best, time.perf_counter() - start)\n"
        "print(2 * 2048**3 / best, mx.default_device(), sep='\\n')"
    )
    rate, device = run_python(["-c", code]).splitlines()
    return float(rate), device


def measure_script_peak(model: Path, size: int, control: Path | None) -> int:
    """Return the peak memory, in bytes, of the script with `-q` for one picture in one step.

    Args:
        control: the folder of a ControlNet, if there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", model, "--width", size, "--height", size, "--n_images", 1, "-q"]
        options += ["--steps", 1, "--cfg", 1, "--seed", 1, "--output", Path(folder) / "out.png"]
        if control is not None:
            options += ["--control", f"{control}={CONTROL_PICTURE}"]
        command = [sys.executable, ROOT / "txt2image.py", *options, "a vase"]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: txt2image.py with {model}")
    return peak_resident(usage)


def run_python(command: list) -> str:
    """Run Python and return its standard output; standard error is passed on."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command[:5])}")
    return done.stdout


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few tasks, once each")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=[*TASKS, *QUANTIZED])
    parser.add_argument("--checkpoints", type=Path, default=CACHE, help=f"folder ({CACHE})")
    parser.add_argument("--out", type=Path, default=Path("."), help="for bench.md and bench.png")
    parser.add_argument("--rounds", type=int, default=3, help="times that both sides run in turn")
    args = parser.parse_args()
    whole = not (args.only or args.quick)
    quick = [name for name, task in TASKS.items() if task.is_quick]
    names = args.only or ([*TASKS, *QUANTIZED] if whole else quick)
    rounds, repeats = (1, 1) if args.quick else (args.rounds, 3)

    folder = args.checkpoints.expanduser().resolve()
    needed = {(TASKS | QUANTIZED)[name].model for name in names}
    if whole:
        needed |= {control for *_, control in MEMORY.values() if control is not None}
    write_checkpoints(folder, sorted(needed))
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rate, device = measure_product_rate()
    heading = describe_machine(rate, device)
    rows = []
    for name in names:
        sides = ("quantized", "ours") if name in QUANTIZED else ("ours", "theirs")
        rows.append(measure(name, sides, folder, rounds, repeats))
        say(f"{rows[-1].task.title}: {rows[-1].ratio:.2f} of the peer's time")
        report = [heading, "", *make_table(rows, rate)]
        (args.out / "bench.md").write_text("\n".join(report) + "\n")  # in case a later task fails
    if whole:
        report += ["", *measure_memory(folder)]
    if not args.only:
        report += ["", *count_operations()]
    (args.out / "bench.md").write_text("\n".join(report) + "\n")
    print("\n".join(report))
    plot(rows, rate, args.out / "bench.png")
    say(f"{args.out / 'bench.md'}, bench.png: {(time.monotonic() - started) / 60:.1f} minutes")


def say(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def describe_machine(rate: float, device: str) -> str:
    """Return the processor, the rate of products and the versions of libraries."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{lines[0].split(': ')[1]}, {len(lines)} cores" if lines else cpu
    versions = f"MLX {version('mlx')} ({device}), torch {version('torch')}"
    return f"{cpu}; matrix products at {rate / 1e9:.0f} GFLOP/s; {versions}."


def make_table(rows: list[Row], rate: float) -> list[str]:
    """Return the lines of a Markdown table in seconds and gigabytes."""
    lines = [
        "| | this port | peer | ratio | floor | peak: ours | MLX's | peer's | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = f"{row.peer.operations / rate:.2f} s" if row.peer.operations else ""
        lines.append(
            f"| {row.task.title} | {row.ours.run:.2f} s | {row.peer.run:.2f} s "
            f"| **{row.ratio:.2f}** | {floor} | {row.ours.resident / 1e9:.2f} GB "
            f"| {row.ours.mlx / 1e9:.2f} GB | {row.peer.resident / 1e9:.2f} GB "
            f"| {row.error:.0e} |"
        )
    return lines


def measure_memory(folder: Path) -> list[str]:
    """Return a Markdown table of the peak resident size of the script."""
    lines = ["| one picture, the whole process | peak resident size |", "|---|---|"]
    for title, (model, size, control) in MEMORY.items():
        say(title)
        network = None if control is None else folder / control
        peak = measure_script_peak(folder / model, size, network)
        lines.append(f"| {title} | {peak / 1e9:.2f} GB |")
    return lines


def count_operations() -> list[str]:
    """Return a Markdown table of the operations that a GPU launches for real models."""
    from operations import make_table

    return make_table()


def plot(rows: list[Row], rate: float, file: Path) -> None:
    """Plot our time relative to the peer's, and the floor, one bar a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.peer.operations]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(8, 1 + 0.5 * len(rows)), layout="constrained")
    titles = [row.task.title for row in rows]
    axes.barh(titles, [row.ratio for row in rows], color="#4c72b0", label="this port")
    floors = [row.peer.operations / rate / row.peer.run for row in rows]
    axes.plot(floors, titles, "k|", markersize=18, label="floor: products only")
    axes.axvline(1, color="#c44e52", label="diffusers")
    axes.invert_yaxis()
    axes.set_xlabel("time relative to diffusers")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
