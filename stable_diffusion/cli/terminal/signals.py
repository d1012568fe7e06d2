"""Handle Ctrl-C and SIGTERM: the first ends the program in order, the second at once.

Python runs its own signal handlers between operations, and a step of denoising is one long
operation. So a thread watches too: it says that the program is going to stop, and stops it at once
if a second signal arrives.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
PATIENCE = 0.5  # seconds: a program that stops sooner does not announce it


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the program to end."""


def interrupted_status(interruption: KeyboardInterrupt) -> int:
    """Return the exit status of an interrupted program, as shells define it: 128 + the signal."""
    is_term = isinstance(interruption, Terminated)
    return 128 + (signal.SIGTERM if is_term else signal.SIGINT)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block, as Python raises KeyboardInterrupt on Ctrl-C.

    A second signal ends the process at once, whatever it is doing, with the status that
    `interrupted_status` returns. Only the main thread can handle signals: in others this does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers_before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, _terminate)
    if handlers_before[signal.SIGINT] == signal.SIG_DFL:  # a signal that is ignored stays ignored
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
    """Handle SIGTERM."""
    raise Terminated


def _watch(reader: int) -> None:
    """Read the numbers of signals as they arrive, until the other end of the pipe is closed."""
    is_stopping = False
    while number := os.read(reader, 1):
        if number[0] not in SIGNALS:
            continue
        if is_stopping:
            os._exit(128 + number[0])
        is_stopping = True
        if not select([reader], [], [], PATIENCE)[0]:
            name = SIGNALS[signal.Signals(number[0])]
            print(f"\nstopping after this step; {name} again stops at once", file=sys.stderr)
