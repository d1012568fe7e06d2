"""Fixtures that several test files share."""

import os

# Before the first import of huggingface_hub: the tests reach no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# And that of torch: it shares the cores with other files of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before the first import of mlx, which must find a fast BLAS loaded.
import stable_diffusion  # noqa: F401  isort: skip

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from checkpoints import KINDS, write_checkpoint
from oracle import Oracle


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a kind, written by diffusers. Not to be changed."""
    return cache(lambda kind: write_checkpoint(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[[str], Path]) -> Callable[[str], Oracle]:
    """diffusers with the same checkpoint."""
    return cache(lambda kind: Oracle(checkpoint(kind)))


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint, that may be changed."""
    return lambda kind: shutil.copytree(checkpoint(kind), tmp_path / kind)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of checkpoint in turn."""
    return request.param
