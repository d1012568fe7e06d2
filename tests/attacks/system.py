"""The system around the scripts: signals, streams, disks, memory, and other programs."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from shutil import which

from ours import ROOT
from PIL import Image

import txt2image
from attacks.harness import Case, Defect, Outcome, Refused, attack, check_ending, require
from attacks.programs import SECONDS, run_program
from stable_diffusion.cli.terminal import signals
from stable_diffusion.cli.terminal.console import FAILED

USUAL = ("--model=tiny", "--steps=2", "--seed=1", "--low-memory")
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tif")
MAY_MOUNT = os.geteuid() == 0 and which("unshare") is not None


def require_whole(file: Path) -> None:
    """Check that a file is a complete picture."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise Defect(Outcome.LOST, f"{file.name} is broken: {error}") from None


def pictures(folder: Path) -> list[Path]:
    """Return the files with final names in a folder; all must be complete."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    for path in found:
        require_whole(path)
    return found


def old_picture(file: Path, **options: object) -> bytes:
    """Write a picture and return the content of the file. The options are Pillow's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(file, **options)
    return file.read_bytes()


def outputs(case: Case) -> tuple[list[str], int]:
    """Return options that say where to write, and how many pictures they ask for."""
    n, suffix = case.rng.choice([1, 2, 3]), case.rng.choice(SUFFIXES)
    prompts = case.folder / "p.txt"
    prompts.write_text("".join(f"{word}\n" for word in ("a star", "a heart", "a ring")[:n]))
    preview = ["--preview=1"] if case.rng.random() < 0.3 else []
    count = [f"--n_images={n}", *preview]
    kind = case.rng.choice(["grid", "folder", "pattern", "prompts", "both"])
    match kind:
        case "grid":
            return [f"--output={case.folder}/o{suffix}", *count, "a star"], 1
        case "folder":
            return [f"--output={case.folder}/d/", *count, "a star"], n
        case "pattern":
            return [f"--output={case.folder}/{{seed}}{suffix}", "--force", *count, "a star"], n
        case "both":
            grid = f"--grid={case.folder}/g.png"
            return [f"--output={case.folder}/d/", grid, *count, "a star"], n + 1
    return [f"--prompts-file={prompts}", f"--output={case.folder}/d/", *preview], n


# --- signals -------------------------------------------------------------------------------------


class _At:
    """Sends this process a signal as it begins a certain call of a function of the package."""

    def __init__(self, n: int, number: signal.Signals) -> None:
        self._n, self._number = n, number
        self.count = 0

    def __call__(self, frame, event: str, _: object) -> None:
        if event != "call" or "stable_diffusion" not in frame.f_code.co_filename:
            return
        if signal.getsignal(signal.SIGTERM) is signals._terminate:
            self.count += 1
            if self.count == self._n:
                signal.raise_signal(self._number)


@contextlib.contextmanager
def signalled(n: int, number: signal.Signals = signal.SIGINT) -> Iterator[_At]:
    """Send a signal at the n-th call inside the block."""
    before, at = signal.signal(signal.SIGINT, signal.default_int_handler), _At(n, number)
    sys.setprofile(at)
    try:
        yield at
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)


@cache
def calls_of_a_run() -> int:
    """Return about how many functions of the package are called for three pictures."""
    with tempfile.TemporaryDirectory() as folder, signalled(0) as at:
        Case(Random(0), Path(folder)).script(
            txt2image.main, *USUAL, "--n_images=3", f"--output={folder}/d/", "a star"
        )
    return at.count


@attack("system", cases=600, quick=1)
def interrupted(case: Case) -> None:
    """Send SIGINT or SIGTERM at any call: the program ends in order and keeps what is finished."""
    options, n = outputs(case)
    old = case.keep(case.folder / "old.png", old_picture(case.folder / "old.png"))
    moment = case.rng.randint(1, calls_of_a_run())
    number = case.rng.choice([signal.SIGINT, signal.SIGTERM])
    try:
        with signalled(moment, number):
            case.script(txt2image.main, *USUAL, *options)
    except Refused as refused:
        require(refused.status == 128 + number, f"status {refused.status}: {refused}")
        require("error: interrupted" in str(refused), str(refused))
        pictures(case.folder)
        raise
    require_whole(old)
    require(len(pictures(case.folder)) == n + 1, "pictures are missing")


# --- streams, names and surroundings -------------------------------------------------------------

REDIRECTIONS = ("", ">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", "| head -0")
ENVIRONMENTS = (
    {},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
    {"NO_COLOR": "1", "TERM": "dumb"},
    {"TERM": "", "COLUMNS": "0"},
    {"HOME": ""},
    {"HOME": "/nowhere", "PYTHONUNBUFFERED": "1"},
    {"PYTHONUNBUFFERED": ""},
)
NAMES = (b"o", "é".encode(), b"a\nb", b"\xff", b"\x1b[31m", "\U0001f600".encode(), b"%s{{", b"-q")


@attack("system", cases=150, quick=0)
def surroundings(case: Case) -> None:
    """Use closed, full or ASCII streams, odd names, and a folder that was deleted."""
    redirection, environment = case.rng.choice(REDIRECTIONS), case.rng.choice(ENVIRONMENTS)
    name = case.rng.choice(NAMES) + b".png"
    output = os.fsencode(case.folder) + b"/" + name
    command = [sys.executable, "txt2image.py", *USUAL, "--n_images=1", b"--output=" + output, "x"]
    is_gone = case.rng.random() < 0.2
    if is_gone:
        (case.folder / "gone").mkdir()
        command[1] = f"{ROOT}/txt2image.py"
    start = f'cd "{case.folder}/gone" && rmdir "{case.folder}/gone" && ' if is_gone else ""
    pipe = "; exit ${PIPESTATUS[0]}" if "|" in redirection else ""
    done = run_program(
        ["bash", "-c", f'{start}"$0" "$@" {redirection}{pipe}', *command],
        cwd=ROOT,
        # An absolute path, as the working directory may be deleted.
        env={**os.environ, "PYTHONPATH": f"{ROOT}", **environment},
    )
    err = done.stderr.decode(errors="replace")
    if redirection == ">/dev/full":
        require(done.returncode == FAILED, f"status {done.returncode}")
        with contextlib.suppress(Refused):
            check_ending(done.returncode, err)
    else:
        check_ending(done.returncode, err)
    require("Exception ignored" not in err, err)
    require(os.listdir(os.fsencode(case.folder)) == [name], "no picture")
    with open(output, "rb") as file, Image.open(file) as image:
        image.load()


# --- disks ---------------------------------------------------------------------------------------


@attack("system", cases=200, quick=2)
def limited_files(case: Case) -> None:
    """Limit the size of files: as on a full disk, the old file stays or the new is complete."""
    suffix = case.rng.choice(SUFFIXES)
    output = case.folder / f"o{suffix}"
    before = old_picture(output)
    most = int(10 ** case.rng.uniform(0, 5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    preview = ["--preview=1"] if case.rng.random() < 0.5 else []
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        case.script(txt2image.main, *USUAL, *preview, f"--output={output}", "a star")
    except Refused as refused:
        require("cannot be written: File too large" in str(refused), str(refused))
        if output.read_bytes() != before:
            raise Defect(Outcome.LOST, "the old picture is gone") from None
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    require(output.read_bytes() != before, "as if it were written")
    require_whole(output)


@attack("system", cases=40 if MAY_MOUNT else 0, quick=0)
def disks(case: Case) -> None:
    """Use a disk that is full or read-only."""
    disk, after = case.folder / "disk", case.folder / "after"
    disk.mkdir()
    old = case.folder / "old.png"
    case.keep(old, old_picture(old))
    kind = f"size={case.rng.choice([4, 8, 16, 32, 64])}k" if case.rng.random() < 0.7 else "ro"
    mount = f"mount -t tmpfs tmpfs disk && cp old.png disk/ && mount -o remount,{kind} disk"
    target = case.rng.choice(["disk/old.png", "disk/d/", "disk/{seed}.png", "disk/new.bmp"])
    script = f'{mount} || exit 99; "$@"; status=$?; cp -a disk after; exit $status'
    command = [sys.executable, f"{ROOT}/txt2image.py", *USUAL, f"--output={target}", "a star"]
    done = run_program(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        cwd=case.folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    )
    require(done.returncode != 99, done.stderr.decode())
    found = pictures(after)
    if not target.endswith("old.png") or done.returncode != 0:
        same = (after / "old.png").read_bytes() == old.read_bytes()
        if not same:
            raise Defect(Outcome.LOST, "the old picture has changed")
    check_ending(done.returncode, done.stderr.decode(errors="replace"))
    require(kind != "ro", "written where nothing can be")
    require(len(found) == (1 if target.endswith("old.png") else 2 if ".bmp" in target else 5), "no")


# --- memory --------------------------------------------------------------------------------------

# Limits the memory to what is in use after all imports, and the given number of bytes.
LIMITED = """
import resource, sys, txt2image
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]),) * 2)
raise SystemExit(txt2image.main(sys.argv[2:]))
"""

# How MLX ends the process: without memory for a thread, or if an array without memory is used by
# other threads.
BY_MLX = (-signal.SIGABRT, -signal.SIGSEGV)


@attack("system", cases=60, quick=0)
def memory(case: Case) -> None:
    """Limit the memory, so that it ends at any moment."""
    most = int(10 ** case.rng.uniform(4, 9.2))
    output = case.folder / "o.png"
    case.keep(case.folder / "old.png", old_picture(case.folder / "old.png"))
    side = case.rng.choice(["--width=64", "--width=512"])
    size = [side, side.replace("width", "height")]
    command = [*USUAL, "--n_images=1", *size, f"--output={output}", "a star"]
    done = run_program(
        [sys.executable, "-c", LIMITED, str(most), *command],
        cwd=ROOT,
    )
    err = done.stderr.decode(errors="replace")
    require(output.exists() == (done.returncode == 0), f"status {done.returncode}: {err[-500:]}")
    if done.returncode in BY_MLX:
        pictures(case.folder)
        return
    if err.strip().splitlines()[-1:] and "OpenBLAS error" in err.strip().splitlines()[-1]:
        raise Refused(err.strip().splitlines()[-1], done.returncode)  # MLX ended the process
    check_ending(done.returncode, err)
    pictures(case.folder)


# --- other programs ------------------------------------------------------------------------------


@attack("system", cases=25, quick=0)
def at_once(case: Case) -> None:
    """Start several runs with the same name for their output."""
    options, n = outputs(case)
    command = [sys.executable, "txt2image.py", *USUAL, *options]
    start = partial(subprocess.Popen, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    runs = [start(command) for _ in range(case.rng.choice([2, 3]))]
    endings = [(run.communicate(timeout=SECONDS)[1].decode(), run.returncode) for run in runs]
    n_done = 0
    for err, status in endings:
        with contextlib.suppress(Refused):
            check_ending(status, err)
            n_done += 1
    require(n_done == len(runs), f"{endings}")
    found = [path for path in pictures(case.folder) if "preview" not in path.name]
    is_counted = any(word.endswith("/d/") for word in options) and "a star" in options[-1]
    has_grid = any("--grid" in word for word in options)
    expected = (n - has_grid) * len(runs) + has_grid if is_counted else n
    require(len(found) == expected, f"{len(found)} pictures of {expected}")
