"""Run the long fuzzing: many cases of each attack, and a table of the outcomes.

PYTHONPATH=. python tests/fuzz.py [CLASS | CLASS.ATTACK …] [--cases N] [--seed S]
PYTHONPATH=. python tests/fuzz.py --only CLASS.ATTACK:SEED    repeat one case with its error

With --sanitizer address, kernels are compiled such that a wrong memory access ends the process.
"""

import stable_diffusion  # noqa: F401  isort: skip  (before mlx, for its BLAS)

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import NoReturn

from attacks import load
from attacks.harness import ATTACKS, DEFECTS, Attack, Outcome, judge

from stable_diffusion.device import compile_kernels

SANITIZER = "KERNEL_SANITIZER"  # environment variable that passes the option to workers

HANG = 30  # seconds that a case may take
PATIENCE = 600  # seconds of a second try: the machine may have been busy
START = 300  # of a worker, with its imports, on a busy machine
SHOWN = 20  # defects of an attack that are printed


def main() -> int:
    """Run the attacks asked for and print the table; return 1 if there is a defect."""
    load()
    parser = argparse.ArgumentParser(description="Attack the program, and print the defects.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--cases", type=int, help="of each attack (default: its own number)")
    parser.add_argument("--seed", type=int, default=0, help="of each attack's first case")
    parser.add_argument("--only", metavar="ATTACK:SEED", help="one case")
    parser.add_argument("--show", action="store_true", help="print how each case ended")
    parser.add_argument("--sanitizer", help="of g++, for the kernels: address")
    args = parser.parse_args()
    if args.sanitizer is not None and SANITIZER not in os.environ:
        _start_again(args.sanitizer)
    if args.only:
        name, seed = args.only.split(":")
        counts = {name: _attack(ATTACKS[name], 1, int(seed), verbose=True)}
    else:
        chosen = [
            a for a in ATTACKS.values() if not args.names or {a.name, a.group} & {*args.names}
        ]
        if not chosen:
            parser.error(f"no such attack: {' '.join(args.names)}")
        counts = {}
        for attack in chosen:
            counts[attack.name] = _attack(attack, args.cases or attack.cases, args.seed, args.show)
    _print_table(counts)
    return int(any(count[defect] for count in counts.values() for defect in DEFECTS))


def _start_again(sanitizer: str) -> NoReturn:
    """Replace this process by one into which the sanitizer's library is loaded first."""
    # The sanitizer looks in libstdc++ for the function that throws exceptions.
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in (f"lib{sanitizer[0]}san.so", "libstdc++.so")
    ]
    os.environ |= {
        SANITIZER: sanitizer,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python has leaks at its end
    }
    os.execv(sys.executable, [sys.executable, *sys.argv])


def _use_sanitizer() -> None:
    """Compile the kernels for the sanitizer that was asked for, if any."""
    if sanitizer := os.environ.get(SANITIZER):
        options = f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"
        compile_kernels.FLAGS = (*compile_kernels.FLAGS, *options)
        if compile_kernels.load() is None:
            raise SystemExit("the kernels cannot be compiled for the sanitizer")


def _attack(attack: Attack, n: int, first: int, verbose: bool = False) -> Counter[Outcome]:
    """Run `n` cases of an attack from the seed `first` on, print defects, and count outcomes."""
    count, shown, start = Counter(), 0, monotonic()
    for seed, (outcome, what) in enumerate(_outcomes(attack, n, first), start=first):
        count[outcome] += 1
        if verbose or (outcome in DEFECTS and shown < SHOWN):
            shown += 1
            text = what if verbose else what.strip()[-1000:]
            print(f"{attack.name}:{seed} {outcome.name}: {text}", flush=True)
    told = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
    print(f"{attack.name}: {told}; {monotonic() - start:.0f} s", flush=True)
    return count


def _outcomes(attack: Attack, n: int, first: int) -> Iterator[tuple[Outcome, str]]:
    """Yield the outcome of each case, run in a process that is replaced if it hangs or dies.

    A case hangs if it does so twice, or takes too much processor time; see `judge`.
    """
    context = multiprocessing.get_context("spawn")
    seed, end, hung = first, first + n, None
    while seed < end:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, attack.name, seed, end), daemon=True)
        worker.start()
        theirs.close()
        try:
            started = ours.poll(START) and ours.recv()
            if not started:
                raise RuntimeError("the worker did not start")
            while seed < end:
                if not _is_ready(ours, PATIENCE if seed == hung else HANG):
                    if seed == hung:
                        yield Outcome.HANG, "killed, twice"
                        seed += 1
                    hung = seed
                    break
                outcome = ours.recv()
                seed += 1
                yield outcome
            else:
                worker.join(HANG)
        except EOFError:
            worker.join()
            yield Outcome.TRACEBACK, f"the process died: exit code {worker.exitcode}"
            seed += 1
        finally:
            worker.kill()
            worker.join()
            ours.close()


def _is_ready(connection: Connection, seconds: int) -> bool:
    """Return whether something arrives in time. Seconds are counted: a machine may be suspended."""
    return any(connection.poll(1) for _ in range(seconds))


def _work(to: Connection, name: str, first: int, end: int) -> None:
    """Run cases and send their outcomes, in a process of its own."""
    _use_sanitizer()
    load()
    to.send(True)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for seed in range(first, end):
            folder = root / str(seed)
            folder.mkdir()
            to.send(judge(ATTACKS[name], seed, folder))
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _print_table(counts: dict[str, Counter[Outcome]]) -> None:
    """Print the outcomes of each class of attacks in Markdown."""
    groups: dict[str, Counter[Outcome]] = {}
    for name, count in counts.items():
        groups.setdefault(name.split(".")[0], Counter()).update(count)
    titles = ["class of attack", "cases", Outcome.REFUSED, *DEFECTS]
    print(f"\n| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for group, count in groups.items():
        numbers = [count.total(), count[Outcome.REFUSED], *(count[defect] for defect in DEFECTS)]
        print(f"| {group} | {' | '.join(f'{number:,}' for number in numbers)} |")


if __name__ == "__main__":
    raise SystemExit(main())
