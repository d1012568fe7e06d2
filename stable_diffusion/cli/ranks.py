"""Several processes that make the pictures of one call: the ranks that `mlx.launch` starts.

All of them run the same program. The first one names, writes and reports; the others hand it their
pictures, and are silent. A rank that fails says so where the others wait for it, and all end.
"""

import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import mlx.core as mx
import numpy as np

# What launchers tell the processes they start: mlx.launch, and two kinds of MPI.
LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
WELL, FAILED = 0, 1  # exit statuses


class RankError(Exception):
    """A rank has failed: the first that did, and its exit status."""

    def __init__(self, rank: int, status: int):
        super().__init__(f"rank {rank} failed with status {status}")
        self.rank = rank
        self.status = status


class Ranks:
    """This process and the others. All of them must call the same methods in the same order."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank = rank
        self.size = size
        self._has_ended = False

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that names, writes and reports."""
        return self.rank == 0

    def together(self, work: Callable[[], int]) -> int:
        """Do `work`, and return its exit status, or that of the first rank that failed.

        Only the first rank is heard, or, of another that failed, the last line.
        """
        if self.size == 1:
            return work()
        said = io.StringIO()
        stdout, stderr = (sys.stdout, sys.stderr) if self.is_first else (io.StringIO(), said)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                status = work()
            except SystemExit as stop:  # argparse's
                status = stop.code
            except Exception:
                self._end(FAILED)
                raise
        failed = self._end(status)
        if failed is None:
            return status
        if failed.rank == self.rank and not self.is_first:
            *_, line = ["", *said.getvalue().splitlines()]
            print(f"rank {self.rank}: {line}", file=sys.stderr, flush=True)
        return failed.status

    def share(self, numbers: Sequence[int]) -> list[int]:
        """The first rank's numbers, in place of as many others.

        Raises:
            RankError, ConnectionError: see `meet`.
        """
        self.meet()
        return self._gather(np.array(numbers, np.int64))[0].tolist()

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        self.meet()
        return int(self._gather(np.array(number, np.int64)).min())

    def require_same(self, what: object, complaint: str) -> None:
        """Raise ValueError where `what` is not, as `repr` says it, the same on all ranks."""
        self.meet()
        sums = self._gather(np.array(zlib.crc32(repr(what).encode()), np.int64))
        others = np.flatnonzero(sums != sums[0])
        if len(others):
            raise ValueError(f"rank {others[0]} was {complaint}")

    def gather(self, images: Iterable[np.ndarray]) -> Sequence[Iterable[np.ndarray]]:
        """The pictures of each rank, uint8 [H, W, 3]; there may be none of a rank.

        One rank alone has its pictures as they come.

        Raises:
            RankError, ConnectionError: see `meet`.
        """
        if self.size == 1:
            return [images]
        images = list(images)
        images = np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)  # [B, H, W, 3]
        self.meet()
        shapes = self._gather(np.array(images.shape, np.int64))  # [ranks, 4]
        sizes = shapes.prod(axis=1)
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: images.size] = images.reshape(-1)
        rows = self._gather(padded)
        return [
            row[:size].reshape(shape) for row, size, shape in zip(rows, sizes, shapes, strict=True)
        ]

    def meet(self, status: int = WELL) -> None:
        """Wait for the other ranks; `status` is not `WELL` where this one has failed.

        Raises:
            RankError: a rank has failed.
            ConnectionError: one is gone.
        """
        statuses = self._gather(np.array(status, np.int64))
        failed = np.flatnonzero(statuses)
        if len(failed):
            self._has_ended = True
            raise RankError(int(failed[0]), int(statuses[failed[0]]))

    def _end(self, status: int) -> RankError | None:
        """Tell the others how this rank ended; the first that failed, if any is known of."""
        try:
            if not self._has_ended:
                self.meet(status)
        except RankError as error:
            return error
        except ConnectionError:
            pass
        return None

    def _gather(self, x: np.ndarray) -> np.ndarray:
        """`x` of all ranks, which have the same shape: [ranks, …]."""
        if self.size == 1:
            return x[None]
        try:
            return np.array(mx.distributed.all_gather(mx.array(x)[None]))
        except RuntimeError:
            self._has_ended = True
            raise ConnectionError("the connection to another rank is lost") from None


@cache
def launched_ranks() -> Ranks:
    """The ranks that this process was started with: itself alone, but for a launcher."""
    if not any(name in os.environ for name in LAUNCHERS):
        return Ranks()  # without a look at what MPI may be installed
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"error: the ranks do not find each other: {error}") from None
    return Ranks(group.rank(), group.size())
