"""Fixtures that several test files share.

What is slow to import is imported where it is used: the process that hands out tests needs none.
"""

import gc
import os

# Before the first import of huggingface_hub: the tests reach no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# And that of torch: it shares the cores with other files of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before the first import of mlx, which must find a fast BLAS loaded.
import stable_diffusion  # noqa: F401  isort: skip

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kinds import KINDS

from stable_diffusion import pipeline
from stable_diffusion.device import compile_kernels, cpu_kernels, kernel_calls
from stable_diffusion.model_io import convert
from stable_diffusion.model_io.model import Model
from stable_diffusion.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from oracle import Oracle


def pytest_configure() -> None:
    """Compile the kernels, before there are others who would.

    Collect no garbage while modules are read; `pytest_collection_finish` ends that.
    """
    if cpu_kernels.is_used():
        compile_kernels.load()
    gc.disable()


def pytest_collection_finish() -> None:
    """What torch and diffusers are made of is not garbage: to look takes a tenth of the time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def unchanged() -> set[str]:
    """The names of models that no test changes."""
    return {"tiny"}


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, unchanged: set[str]
) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a kind, written by diffusers. Not to be changed."""
    from checkpoints import write_checkpoint

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all processes of this run

    @cache
    def write(kind: str) -> Path:
        folder = shared / kind
        if not folder.exists():
            made = write_checkpoint(kind, tmp_path_factory.mktemp("made") / kind)
            with suppress(OSError):  # another process was faster, and wrote the same
                made.rename(folder)
        unchanged.add(str(folder))
        return folder

    return write


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[str], Path]) -> "Callable[[str], Oracle]":
    """diffusers with the same checkpoint."""
    from oracle import Oracle

    return cache(lambda kind: Oracle(checkpoint(kind)))


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint, that may be changed."""
    return lambda kind: shutil.copytree(checkpoint(kind), tmp_path / kind)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of checkpoint in turn."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def cores() -> Iterator[int]:
    """The cores that programs would compute on here, two at least. Tests compute on one.

    Others have tests of their own, and networks as tiny as these are twice the work on two.
    """
    with pytest.MonkeyPatch.context() as patch:
        n = max(2, kernel_calls.CORES)
        patch.setattr(kernel_calls, "CORES", 1)
        yield n


@pytest.fixture
def all_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test computes on all of them."""
    monkeypatch.setattr(kernel_calls, "CORES", cores)


@pytest.fixture(autouse=True, scope="session")
def tokenizers_are_read_once(unchanged: set[str]) -> Iterator[None]:
    """Those of unchanged models: to read one takes as long as a tiny picture."""
    load = pipeline.load_tokenizer
    read = cache(load)

    def load_tokenizer(model: Model, *keys: str) -> Tokenizer:
        if model.name not in unchanged:
            return load(model, *keys)
        known = read(model.name, *keys)
        tokenizer = Tokenizer.__new__(Tokenizer)  # one that learns words by itself
        vars(tokenizer).update(vars(known), _ids=dict(known._ids), _added=list(known._added))
        return tokenizer

    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline, convert):
            patch.setattr(module, "load_tokenizer", load_tokenizer)
        yield
