"""Files in memory, to load libraries from. Only the standard library may be imported here."""

import fcntl
import os

FIRST_FREE = 3  # descriptors below are those of the standard streams


def create_memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory.

    It is never one of the standard streams' descriptors, even if a stream is closed: otherwise
    what is printed would be written into the file. Close it only if no library was loaded from it:
    the dynamic linker knows libraries by /proc/self/fd/NUMBER, and would take the next file with
    this number for the same library.

    Args:
        name: for lists of open files only; several files may have the same one.

    Raises:
        OSError: if the system has no files in memory.
    """
    try:
        low = os.memfd_create(name)
    except AttributeError:  # a Python for an older Linux
        raise OSError("there are no files in memory") from None
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    finally:
        os.close(low)
