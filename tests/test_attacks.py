"""A few cases of every attack; `tests/fuzz.py` runs thousands."""

import contextlib
import mmap
from pathlib import Path
from random import Random
from time import process_time

import pytest
from attacks import harness, load
from attacks.harness import (
    ATTACKS,
    DEFECTS,
    Attack,
    Case,
    Defect,
    Memory,
    Outcome,
    Refused,
    check_ending,
    judge,
    require,
)

load()
FIRST = 1_000_000  # seed: not those of the long run


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.quick])
def test_attack(name, tmp_path):
    for seed in range(FIRST, FIRST + ATTACKS[name].quick):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome, what = judge(ATTACKS[name], seed, folder)
        assert outcome not in DEFECTS, f"{name}:{seed} {what}"


def outcome(run, folder: Path) -> Outcome:
    return judge(Attack("harness.test", 1, run), 0, folder)[0]


def test_outcomes(tmp_path):
    """The harness sees every kind of defect."""

    def raises(error: BaseException):
        def run(case: Case) -> None:
            raise error

        return run

    def loses(case: Case) -> None:
        case.keep(case.folder / "a", b"old").write_bytes(b"new")

    def leaves(case: Case) -> None:
        (case.folder / ".a.partial").touch()

    def is_wrong(case: Case) -> None:
        require(False, "wrong")

    assert outcome(lambda case: None, tmp_path) == Outcome.DONE
    assert outcome(raises(ValueError("a line")), tmp_path) == Outcome.REFUSED
    assert outcome(raises(OSError("a line")), tmp_path) == Outcome.REFUSED
    for error in (ValueError(), ValueError("two\nlines"), KeyError("a"), RecursionError("deep")):
        assert outcome(raises(error), tmp_path) == Outcome.TRACEBACK
    assert outcome(is_wrong, tmp_path) == Outcome.WRONG
    assert outcome(loses, tmp_path) == Outcome.LOST
    assert outcome(leaves, tmp_path) == Outcome.LOST


def test_memory_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "MAX_MEMORY", 100_000_000)
    assert outcome(lambda case: bytes(10), tmp_path) == Outcome.DONE

    def take_memory(case: Case) -> None:
        """Take new memory, not what the process has freed and kept."""
        with mmap.mmap(-1, 200_000_000) as memory:
            memory.write(bytes(200_000_000))

    grown = outcome(take_memory, tmp_path)
    assert grown == (Outcome.WRONG if Memory.STATUS.exists() else Outcome.DONE)


def test_time_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "MAX_SECONDS", 0.2)

    def work(case: Case) -> None:
        start = process_time()
        while process_time() - start < 0.3:
            pass

    assert outcome(lambda case: None, tmp_path) == Outcome.DONE
    assert outcome(work, tmp_path) == Outcome.HANG


def test_scripts_are_judged_by_how_they_end():
    check_ending(0, "warning: the prompt has more than 77 tokens\n")
    for status, err in ((1, "10%\rerror: no\n"), (2, "usage: x\nx.py: error: no\n")):
        with contextlib.suppress(Refused):
            check_ending(status, err)
            raise AssertionError(err)
    for status, err in (
        (1, "Traceback (most recent call last):\nValueError: x\n"),
        (0, "/a/image.py:3: DecompressionBombWarning: large\n"),
        (1, ""),
        (1, "error: one\nerror: two\n"),
        (-9, ""),
    ):
        with pytest.raises(Defect):
            check_ending(status, err)


def test_the_same_seed_makes_the_same_case(tmp_path):
    drawn = []
    for _ in range(2):
        outcome(lambda case: drawn.append(case.rng.random()), tmp_path)
    assert drawn[0] == drawn[1] == Random("harness.test:0").random()
