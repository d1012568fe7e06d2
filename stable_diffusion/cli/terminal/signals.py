"""Ctrl-C, and SIGTERM likewise: the first ends the program in order, a second one at once.

Python runs its own handlers between operations, and a step of denoising is one long operation. So
a thread watches, too: it says that the program will end, and ends it when asked again.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
PATIENCE = 0.5  # seconds in which a program that ends anyway need not say so


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the program to end."""


def status_of(interruption: KeyboardInterrupt) -> int:
    """That of a program which was interrupted, as a shell has it."""
    is_term = isinstance(interruption, Terminated)
    return 128 + (signal.SIGTERM if is_term else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt.

    A second signal ends the process at once, whatever it is doing, with the status of
    `status_of`. Does nothing where it is not the main thread that asks, which alone can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers_before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, _terminate)
    if handlers_before[signal.SIGINT] == signal.SIG_DFL:  # what is ignored stays so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _terminate(*_: object) -> None:
    raise Terminated


def _watch(reader: int) -> None:
    """Read the numbers of signals, as they arrive, until the other end of the pipe is closed."""
    is_asked = False
    while number := os.read(reader, 1):
        if number[0] not in SIGNALS:
            continue
        if is_asked:
            os._exit(128 + number[0])
        is_asked = True
        if not select([reader], [], [], PATIENCE)[0]:
            again = SIGNALS[number[0]]
            print(f"\nends after this step; {again} again ends at once", file=sys.stderr)
