"""Run on a CPU what would run on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from stable_diffusion.device import backend


@contextmanager
def as_on(kind: backend.Backend) -> Iterator[None]:
    """Choose everything that is chosen by the device as on that backend, inside the block."""
    with mock.patch.object(backend, "find_backend", lambda: kind):
        yield
