"""Define attacks, run a case of one, and judge its outcome.

A module of attacks has functions like this one:

    @attack("images", cases=500)
    def damaged(case: Case) -> None:
        file = case.keep(case.folder / "a.png", content=...)   # must stay as it is
        image = read_image(file)                               # may raise ValueError or OSError
        require(np.isfinite(image).all(), "not finite")        # else a wrong success

All randomness comes from `case.rng`, so that name and seed reproduce a case.
"""

import contextlib
import io
import os
import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random

MAX_SECONDS = 30  # of processor time, for a case and the programs that it runs
MAX_MEMORY = 2 << 30  # bytes that a case may add to what its process holds
RAW_WARNING = re.compile(r"\.py:\d+: \w*Warning: ")
ERROR_LINE = re.compile(r"(?:[\w. -]+: )?error: .")  # argparse's has the program before it
LEFTOVERS = ("*.partial", "*.incomplete", "*.tmp", "*.unfinished-*")
ENDINGS = (1, 2, 130, 143)  # failed, wrong usage, interrupted


class Outcome(StrEnum):
    """How a case ended; all but the first two are defects."""

    DONE = "done"
    REFUSED = "refused in one line"
    TRACEBACK = "tracebacks"
    HANG = "hangs over 30 s"
    WRONG = "wrong successes"
    LOST = "files lost"


DEFECTS = (Outcome.TRACEBACK, Outcome.HANG, Outcome.WRONG, Outcome.LOST)


class Defect(Exception):
    """A defect that an attack found."""

    def __init__(self, outcome: Outcome, what: str) -> None:
        super().__init__(what)
        self.outcome = outcome


class Refused(Exception):
    """A script ended with a line that says why."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True)
class Attack:
    """One way of attacking: `run` raises if it finds a defect."""

    name: str  # CLASS.FUNCTION
    cases: int  # of a full run
    run: Callable[["Case"], None]
    quick: int = 0  # cases of the test suite

    @property
    def group(self) -> str:
        """Return the class of the attack."""
        return self.name.split(".")[0]


ATTACKS: dict[str, Attack] = {}


def attack(
    group: str, cases: int, quick: int = 5
) -> Callable[[Callable[["Case"], None]], Callable]:
    """Register a function as an attack of the class `group`; `quick` is 0 if it is slow."""

    def register(run: Callable[["Case"], None]) -> Callable[["Case"], None]:
        name = f"{group}.{run.__name__}"
        ATTACKS[name] = Attack(name, cases, run, quick)
        return run

    return register


def require(condition: object, what: str) -> None:
    """Raise a defect, a wrong success, unless a condition holds."""
    if not condition:
        raise Defect(Outcome.WRONG, what)


@dataclass
class Case:
    """One run of an attack: its random numbers, an empty folder, and files that must not change."""

    rng: Random
    folder: Path
    seed: int = 0  # of the case, to choose a row of a table
    kept: dict[Path, bytes] = field(default_factory=dict)

    def keep(self, file: Path, content: bytes | None = None) -> Path:
        """Write `content` if given; the file must have the same bytes at the end."""
        if content is not None:
            file.write_bytes(content)
        self.kept[file] = file.read_bytes()
        return file

    def script(self, main: Callable[[Sequence[str]], int], *arguments: object) -> tuple[str, str]:
        """Run a script in this process; return its standard output and standard error.

        Raises:
            Refused: if it ended with one line that says why.
            Defect: if it failed without such a line, or printed raw warnings of Python.
        """
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "replace"))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(record=True) as raw,
        ):
            warnings.simplefilter("default")
            for hidden in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", hidden)  # as Python does
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(errors="replace"))
        if raw:
            raise Defect(Outcome.TRACEBACK, f"a raw warning: {raw[0].message}")
        check_ending(status, texts[1])
        return texts[0], texts[1]


def check_ending(status: int, err: str) -> None:
    """Judge a script by its exit status and its standard error; raise as `Case.script` does."""
    if RAW_WARNING.search(err) or "Traceback (most recent call last)" in err:
        raise Defect(Outcome.TRACEBACK, err[-2000:])
    lines = err.strip().splitlines() or [""]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    if status in ENDINGS and errors == lines[-1:]:
        raise Refused(errors[0], status)
    if status != 0:
        raise Defect(Outcome.TRACEBACK, f"status {status}, standard error: {err[-2000:]!r}")


def judge(attack: Attack, seed: int, folder: Path) -> tuple[Outcome, str]:
    """Run one case in an empty folder; return its outcome and a description."""
    case = Case(Random(f"{attack.name}:{seed}"), folder, seed)
    memory, start = Memory(), sum(os.times()[:4])
    outcome, what = _run(attack, case)
    if outcome in DEFECTS:
        return outcome, what
    if (took := sum(os.times()[:4]) - start) > MAX_SECONDS:
        return Outcome.HANG, f"{took:.0f} s of processors; {what}"
    for file, content in case.kept.items():
        if not file.is_file() or file.read_bytes() != content:
            return Outcome.LOST, f"{file.name} has changed; {what}"
    left = [file.name for pattern in LEFTOVERS for file in folder.rglob(pattern)]
    if left:
        return Outcome.LOST, f"left behind: {', '.join(left)}; {what}"
    if memory.growth() > MAX_MEMORY:
        return Outcome.WRONG, f"{memory.growth() / 1e9:.1f} GB of memory; {what}"
    return outcome, what


def _run(attack: Attack, case: Case) -> tuple[Outcome, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack.run(case)
    except Refused as end:
        return Outcome.REFUSED, str(end)
    except Defect as defect:
        return defect.outcome, str(defect)
    except (ValueError, OSError) as error:  # which the scripts turn into one line
        message = str(error)
        if message and len(message.splitlines()) == 1:
            return Outcome.REFUSED, message
        return Outcome.TRACEBACK, f"not one line: {message!r}\n{traceback.format_exc()}"
    except BaseException:
        return Outcome.TRACEBACK, traceback.format_exc()
    return Outcome.DONE, ""


class Memory:
    """Measures the growth of this process's peak memory since the object was made (Linux)."""

    STATUS, PEAK_TO_ZERO = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            self.PEAK_TO_ZERO.write_text("5")
        self._before = self._read("VmRSS")

    def growth(self) -> int:
        """Return the growth in bytes; 0 if the system does not say it."""
        return self._read("VmHWM") - self._before

    def _read(self, key: str) -> int:
        if not self.STATUS.exists():
            return 0
        found = re.search(rf"{key}:\s+(\d+) kB", self.STATUS.read_text())
        return 1024 * int(found[1]) if found else 0
