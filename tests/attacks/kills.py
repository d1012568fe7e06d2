"""Kill runs at random moments: no incomplete file has a final name, the next run continues."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ours import ROOT

import txt2image
from attacks.harness import Case, Defect, Outcome, Refused, attack, require
from attacks.system import USUAL, old_picture, outputs, pictures
from stable_diffusion.cli import convert

MAX_LINES = 9  # that a run may print before it is killed
PAUSE = 0.2  # seconds: about the longest between two lines after the first
START = 1.0  # seconds until the first


def kill(case: Case, *command: str) -> bool:
    """Start a program, and kill it some time after it has printed some lines.

    Returns:
        Whether it was still running.
    """
    n_lines = case.rng.randrange(MAX_LINES)
    pause = case.rng.uniform(0, PAUSE if n_lines else START)
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        for _ in range(n_lines):
            program.stdout.readline()
        time.sleep(pause)
        was_running = program.poll() is None
        program.kill()
        program.stdout.read()
    return was_running


def succeed(case: Case, main: Callable[[Sequence[str]], int], *arguments: object) -> None:
    """Run a script in this process; it must succeed, so that even a refusal is a defect."""
    try:
        case.script(main, *arguments)
    except Refused as refused:
        raise Defect(Outcome.WRONG, f"the next run: {refused}") from None


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the pictures in a folder, without previews; all must be complete."""
    return {path: path.read_bytes() for path in pictures(folder) if "preview" not in path.name}


@attack("kills", cases=200, quick=0)
def pictures_of(case: Case) -> None:
    """Kill runs in folders with pictures, with every way of naming files."""
    options, n = outputs(case)
    for name in ("o.png", "d/old.png", "d/0007.png", "1.png"):
        old_picture(case.folder / name)
    case.keep(case.folder / "d/old.png")
    case.keep(case.folder / "d/0007.png")
    before = contents(case.folder)
    arguments = [*USUAL, *options]
    kill(case, "txt2image.py", "-v", *arguments)
    after = contents(case.folder)
    if not before.keys() <= after.keys():
        raise Defect(Outcome.LOST, f"{before.keys() - after.keys()} are gone")

    succeed(case, txt2image.main, *arguments)
    now = contents(case.folder)
    if "--prompts-file" in options[0]:
        changed = [path.name for path in after if now.get(path) != after[path]]
        require(not changed, f"made again: {changed}")
        require(len(now) == len(before) + n, f"{len(now)} pictures")
    require(after.keys() <= now.keys(), "pictures are gone")


@attack("kills", cases=20, quick=0)
def converted(case: Case) -> None:
    """Kill `python -m stable_diffusion.convert`: a complete folder, or none."""
    folder = case.folder / "new"
    kill(case, "-m", "stable_diffusion.convert", "-q4", "tiny", f"{folder}")
    if not folder.exists():
        succeed(case, convert.main, "-q4", "tiny", folder)
    output = f"--output={case.folder}/o.png"
    succeed(case, txt2image.main, f"--model={folder}", *USUAL[1:], output, "a star")
    pictures(case.folder)
