"""Let several processes make the pictures of one call: the ranks that `mlx.launch` starts.

All of them run the same program. The first one names and writes the files and prints; the others
send it their pictures, and print nothing. A rank that fails says so when the others wait for it
next, and all end.
"""

import io
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache

import mlx.core as mx
import numpy as np

from .terminal.console import FAILED, SUCCEEDED

# Variables that launchers set for the processes they start: mlx.launch, and two kinds of MPI.
LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class RankError(Exception):
    """A rank has failed.

    Attributes:
        rank: the first rank that failed.
        status: its exit status.
    """

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
        self._is_stuck = False  # a thread waits for the other ranks, and cannot be ended

    @property
    def is_first(self) -> bool:
        """Return whether this rank names and writes the files, and prints."""
        return self.rank == 0

    def run_together(self, work: Callable[[], int]) -> int:
        """Do `work`; return its exit status, or that of the first rank that failed.

        Only the first rank prints. If another one fails, that one prints its last line. If a
        signal interrupts this rank while it waits for the others, the process ends here.
        """
        if self.size == 1:
            return work()
        status = self._print_from_first(work)
        if self._is_stuck:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # an ordinary exit waits for the thread
        return status

    def _print_from_first(self, work: Callable[[], int]) -> int:
        """Do `work` with what other ranks than the first print held back; see `run_together`."""
        output = io.StringIO()
        stdout, stderr = (sys.stdout, sys.stderr) if self.is_first else (io.StringIO(), output)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                status = work()
            except SystemExit as stop:  # argparse raises it
                code = SUCCEEDED if stop.code is None else stop.code
                status = code if isinstance(code, int) else FAILED
            except Exception:
                self._end(FAILED)
                raise
        failed = self._end(status)
        if failed is None:
            return status
        if failed.rank == self.rank and not self.is_first:
            *_, line = ["", *output.getvalue().splitlines()]
            print(f"rank {self.rank}: {line}", file=sys.stderr, flush=True)
        return failed.status

    def share(self, numbers: Sequence[int]) -> list[int]:
        """Return the first rank's numbers; the others give as many, which are not used.

        Raises:
            RankError, ConnectionError: see `meet`.
        """
        self.meet()
        return self._gather(np.array(numbers, np.int64))[0].tolist()

    def share_smallest(self, number: int) -> int:
        """Return the smallest of all ranks' numbers.

        Raises:
            RankError, ConnectionError: see `meet`.
        """
        self.meet()
        return int(self._gather(np.array(number, np.int64)).min())

    def require_same(self, what: object, complaint: str) -> None:
        """Check that `what` has the same `repr` on all ranks.

        Raises:
            ValueError: if it does not; the message has the rank and the complaint.
            RankError, ConnectionError: see `meet`.
        """
        self.meet()
        sums = self._gather(np.array(zlib.crc32(repr(what).encode()), np.int64))
        others = np.flatnonzero(sums != sums[0])
        if len(others):
            raise ValueError(f"rank {others[0]} was {complaint}")

    def gather(self, pictures: Iterable[np.ndarray]) -> Sequence[Iterable[np.ndarray]]:
        """Return the pictures of each rank, uint8 [H, W, 3]; a rank may have none.

        A single process gets its own pictures one by one, as they are made.

        Raises:
            RankError, ConnectionError: see `meet`.
        """
        if self.size == 1:
            return [pictures]
        made = list(pictures)
        stacked = np.stack(made) if made else np.zeros((0, 0, 0, 3), np.uint8)  # [B, H, W, 3]
        self.meet()
        shapes = self._gather(np.array(stacked.shape, np.int64))  # [ranks, 4]
        sizes = shapes.prod(axis=1)
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: stacked.size] = stacked.reshape(-1)
        rows = self._gather(padded)
        return [
            row[:size].reshape(shape) for row, size, shape in zip(rows, sizes, shapes, strict=True)
        ]

    def meet(self, status: int = SUCCEEDED) -> None:
        """Wait for the other ranks.

        Args:
            status: not `SUCCEEDED` if this rank has failed.

        Raises:
            RankError: if a rank has failed.
            ConnectionError: if a rank has disappeared.
        """
        statuses = self._gather(np.array(status, np.int64))
        failed = np.flatnonzero(statuses)
        if len(failed):
            self._has_ended = True
            raise RankError(int(failed[0]), int(statuses[failed[0]]))

    def _end(self, status: int) -> RankError | None:
        """Tell the others how this rank ended; return the first that failed, if one is known."""
        try:
            if not self._has_ended:
                self.meet(status)
        except RankError as error:
            return error
        except ConnectionError:
            pass
        return None

    def _gather(self, x: np.ndarray) -> np.ndarray:
        """Return `x` of all ranks, [ranks, …]; it has the same shape on each.

        MLX may wait forever for a rank that has disappeared, and Python handles no signal
        meanwhile. So another thread waits for MLX: a signal interrupts this one.

        Raises:
            ConnectionError: if a rank has disappeared.
        """
        if self.size == 1:
            return x[None]
        gathered: list[np.ndarray] = []

        def wait() -> None:
            with suppress(RuntimeError):
                gathered.append(np.array(mx.distributed.all_gather(mx.array(x)[None])))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            self._has_ended = self._is_stuck = True
            raise
        if not gathered:
            self._has_ended = True
            raise ConnectionError("the connection to another rank is lost")
        return gathered[0]


@cache
def find_ranks() -> Ranks:
    """Return the ranks that this process was started with; without a launcher it is alone.

    Raises:
        SystemExit: if the ranks cannot connect to each other.
    """
    if not any(name in os.environ for name in LAUNCHERS):
        return Ranks()  # without trying an MPI that may be installed
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"error: the ranks cannot connect to each other: {error}") from None
    return Ranks(group.rank(), group.size())
