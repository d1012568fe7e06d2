"""Compare the speed of this program with others on this machine; write tables and a plot.

    pip install -r requirements.txt -r tests/requirements.txt -r benchmarks/requirements.txt
    pip install -r benchmarks/requirements-peers.txt   # optional: OpenVINO, stable-diffusion.cpp
    python benchmarks/bench.py             # everything
    python benchmarks/bench.py --quick     # a few minutes once the checkpoints exist
    python benchmarks/bench.py --only unet decode --peers diffusers openvino

It first writes checkpoints of the real sizes with random weights, 16 GB, to the cache folder. Then
the programs run in turn, every time in a new process, so that other programs on the machine slow
down all of them; the figures are medians. The floor is the time of diffusers' operations, counted
by torch, at the rate of large matrix products, which is measured in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from convert_checkpoints import find_converted, find_single_file
from processor import describe_machine
from programs import PROGRAMS, find_reason_to_leave_out, list_programs
from report import make_report, plot
from results import Results
from tasks import MEMORY, TASKS
from worker import peak_resident

HERE = Path(__file__).parent
ROOT = HERE.parent
CONTROL_PICTURE = ROOT / "images" / "square.png"  # any picture
CACHE = Path.home() / ".cache" / "stable_diffusion_benchmark"
SLOW_RUN = 30.0  # seconds; what takes longer runs in one round only
OWN = {name for name, program in PROGRAMS.items() if program.module == "tasks_mlx"}


class WorkerError(Exception):
    """A process failed; the text says why."""


def write_checkpoints(folder: Path, models: Iterable[str]) -> None:
    """Write the checkpoints that do not exist, each completely or not at all."""
    for model in models:
        if not (folder / model).exists():
            part = folder / f"{model}.part"
            print(f"Writing {folder / model} …", flush=True)
            subprocess.run([sys.executable, HERE / "full_size.py", model, part], check=True)
            part.rename(folder / model)


def convert_checkpoints(folder: Path, tasks: list[str], programs: list[str]) -> None:
    """Convert the checkpoints for the programs that have formats of their own."""
    for name in tasks:
        model, part = folder / TASKS[name].model, TASKS[name].part
        for program in {PROGRAMS[each].module for each in list_programs(TASKS[name], programs)}:
            if program == "tasks_openvino":
                kind, file = ["openvino", model, part], find_converted(model, part)
            elif program == "tasks_sd_cpp":
                kind, file = ["sd.cpp", model], find_single_file(model)
            else:
                continue
            if not file.exists():
                say(f"Writing {file} …")
                try:
                    run_python([HERE / "convert_checkpoints.py", *kind])
                except WorkerError as error:  # its tasks will fail, those of others not
                    say(f"failed: {error}")


def measure(
    task: str,
    programs: list[str],
    results: Results,
    folder: Path,
    rounds: int,
    repeats: int,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Run one task in the programs in turn, and keep their reports.

    What `results` have is not run again. A program that fails is not tried again.

    Args:
        repeats: runs of each process, if they are short.
        is_over: returns whether no further process may begin.
    """
    for round_ in range(rounds):
        for program in programs:
            done = len(results.get(task, program))
            if done > round_ or program in results.failures.get(task, {}):
                continue
            if is_over() or (done and not needs_rounds(task, program, results)):
                continue
            say(f"{TASKS[task].title}: {PROGRAMS[program].title}, {round_ + 1}")
            options = ["--repeats", repeats, "--result", results.array_file(task, program)]
            if not done:
                options.append("--check")
            command = [HERE / "worker.py", program, task, folder / TASKS[task].model, *options]
            try:
                report = json.loads(run_python(command).splitlines()[-1])
            except WorkerError as error:
                results.fail(task, program, str(error))
                say(f"failed: {error}")
                continue
            if "parts" in report:
                results.add_parts(task, program, report)
            else:
                results.add(task, program, report)


def needs_rounds(task: str, program: str, results: Results) -> bool:
    """Return whether a program runs a task in further rounds after the first.

    It does not if it takes long, or if it tells several parts, which take longer together.
    """
    summary = results.summarize(task, program)
    if TASKS[task].is_picture or PROGRAMS[program].tells_parts or summary is None:
        return False
    return summary.run < SLOW_RUN


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
    """Run Python and return its standard output; standard error is kept for a failure.

    Raises:
        WorkerError: if it fails; the text is the last line of its standard error.
    """
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode < 0:
        raise WorkerError(f"ended by signal {-done.returncode}; 9 may mean too little memory")
    if done.returncode:
        raise WorkerError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return done.stdout


def read_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few tasks, once each")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=TASKS, help=" ".join(TASKS))
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="PROGRAM",
        choices=PROGRAMS.keys() - OWN,
        help=" ".join(name for name in PROGRAMS if name not in OWN) + "; default: all",
    )
    parser.add_argument("--checkpoints", type=Path, default=CACHE, help=f"folder ({CACHE})")
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="for bench.md, bench.png and bench.json"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that all run in turn")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="time after which no other process begins"
    )
    return parser.parse_args()


def choose_programs(peers: list[str] | None) -> tuple[list[str], list[str]]:
    """Return the names of the programs to measure, and a line for each that is left out.

    Args:
        peers: those to compare with; None for all.
    """
    chosen, notes = [], []
    for name, program in PROGRAMS.items():
        if peers is not None and name not in OWN and name not in peers:
            continue
        reason = find_reason_to_leave_out(program)
        if reason is None:
            chosen.append(name)
        else:
            notes.append(f"{program.title} is left out: {reason}")
    return chosen, notes


def main() -> None:
    """Measure, print and write."""
    args = read_arguments()
    started = time.monotonic()
    whole = not (args.only or args.quick)
    tasks = args.only or [name for name, task in TASKS.items() if whole or task.is_quick]
    rounds, repeats = (1, 1) if args.quick else (args.rounds, 3)
    programs, notes = choose_programs(args.peers)
    for note in notes:
        say(note)

    folder = args.checkpoints.expanduser().resolve()
    needed = {TASKS[name].model for name in tasks}
    if whole:
        needed |= {control for *_, control in MEMORY.values() if control is not None}
    write_checkpoints(folder, sorted(needed))
    convert_checkpoints(folder, tasks, programs)
    out = args.out.expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out, describe_machine())
    if results.is_continued:
        say(f"{out / 'bench.json'}: what it has is not measured again")
    if "rate" not in results.facts:
        results.facts["rate"], results.facts["device"] = measure_product_rate()

    def is_over() -> bool:
        return time.monotonic() - started > 60 * args.minutes

    for name in tasks:
        chosen = list_programs(TASKS[name], programs)
        measure(name, chosen, results, folder, rounds, repeats, is_over)
        write_report(results, notes, out)  # in case a later task fails
    extra = measure_memory(folder) if whole and not is_over() else []
    if not args.only:
        extra += ["", *count_operations()]
    write_report(results, notes, out, extra)
    print((out / "bench.md").read_text())
    say(f"{out / 'bench.md'}, bench.png: {(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(1 if results.failures else 0)


def write_report(
    results: Results, notes: list[str], folder: Path, extra: Iterable[str] = ()
) -> None:
    """Write the tables and the plot."""
    report = make_report(results, notes)
    (folder / "bench.md").write_text("\n".join([*report, *extra]) + "\n")
    plot(results, folder / "bench.png")


def say(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def measure_memory(folder: Path) -> list[str]:
    """Return a Markdown table of the peak resident size of the script."""
    lines = ["", "| one picture, the whole process | peak resident size |", "|---|---|"]
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


if __name__ == "__main__":
    main()
