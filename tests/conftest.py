"""Fixtures that several test files share.

Slow imports are inside functions: the process that distributes the tests does not need them.
"""

import gc
import os
import sys

# Before the first import of huggingface_hub: the tests reach no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Before the first import of torch, which shares the cores with other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without byte code each program that a test starts would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Before the first import of mlx, which must find a fast BLAS loaded.
import stable_diffusion  # noqa: F401  isort: skip

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kinds import KINDS

from stable_diffusion.device import compile_kernels, cpu_kernels, kernel_calls
from stable_diffusion.model_io import loaders
from stable_diffusion.tokenizer.added_tokens import AddedTokens
from stable_diffusion.tokenizer.files import SmallFiles
from stable_diffusion.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from oracle import Oracle


def pytest_configure() -> None:
    """Compile the kernels before several processes do, and stop the collection of garbage.

    `pytest_collection_finish` starts it again when all modules are imported. Their byte code is
    kept for the next run: to compile the tests takes seconds.
    """
    sys.dont_write_bytecode = False
    if cpu_kernels.is_used():
        compile_kernels.load()
    gc.disable()


def pytest_collection_finish() -> None:
    """Freeze what has been imported: to search it for garbage takes a tenth of the time.

    The usual thresholds are for small programs. With the networks that the tests keep, searches
    would take another fifteenth.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all processes of this run."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Callable[[str], Path]:
    """Return a function that returns the folder of a tiny checkpoint of a kind.

    diffusers has written it. Not to be changed.
    """
    from checkpoints import write_checkpoint

    @cache
    def write(kind: str) -> Path:
        folder = shared / kind
        if not folder.exists():
            made = write_checkpoint(kind, tmp_path_factory.mktemp("made") / kind)
            with suppress(OSError):  # another process was faster, and wrote the same
                made.rename(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[str], Path]) -> "Callable[[str], Oracle]":
    """Return a function that returns diffusers with the checkpoint of a kind."""
    from oracle import Oracle

    return cache(lambda kind: Oracle(checkpoint(kind)))


@pytest.fixture(scope="session")
def converted(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that converts a kind of model once, and returns the folder.

    Its further arguments are options of `python -m stable_diffusion.convert`. Not to be changed.
    """
    from stable_diffusion.cli.convert import main

    @cache
    def convert(kind: str, *options: str) -> Path:
        folder = tmp_path_factory.mktemp("converted") / kind
        assert main([str(checkpoint(kind)), str(folder), *options]) == 0
        return folder

    return convert


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a checkpoint, which may then be changed."""
    return lambda kind: shutil.copytree(checkpoint(kind), tmp_path / kind)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return each kind of checkpoint in turn."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def cores() -> Iterator[int]:
    """Let tests compute on one core, and return how many programs would use here, at least two.

    There are tests of several cores, and for networks as tiny as these, two cores double the work.
    """
    with pytest.MonkeyPatch.context() as patch:
        n = max(2, kernel_calls.CORES)
        patch.setattr(kernel_calls, "CORES", 1)
        yield n


@pytest.fixture
def all_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute on all cores in this test."""
    monkeypatch.setattr(kernel_calls, "CORES", cores)


@pytest.fixture(autouse=True, scope="session")
def processors_compute_alike() -> Iterator[None]:
    """Keep weights in float16 on all processors. `test_half_kernels` tests those in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernels, "multiplies_halves", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def tokenizers_are_read_once() -> Iterator[None]:
    """Keep the tokenizers of files with the same contents: reading takes as long as a picture."""
    known: dict[object, Tokenizer] = {}

    def keep(read: Callable[..., Tokenizer]) -> Callable[..., Tokenizer]:
        @wraps(read)
        def read_once(*arguments: Path | SmallFiles | str) -> Tokenizer:
            files = chain.from_iterable(a if isinstance(a, tuple) else [a] for a in arguments)
            contents = [file.read_bytes() if isinstance(file, Path) else file for file in files]
            key = read.__name__, *contents
            if key not in known:
                known[key] = read(*arguments)
            return _copy(known[key])

        return read_once

    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_tokenizer", "read_tokenizer_json"):
            patch.setattr(loaders, name, keep(getattr(loaders, name)))
        yield


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that learns tokens without teaching them to the original."""
    new = Tokenizer.__new__(Tokenizer)
    for name, value in vars(tokenizer).items():
        setattr(new, name, value.copy() if isinstance(value, dict | AddedTokens) else value)
    return new
