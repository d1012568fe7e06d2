"""Files in memory, to load libraries from. Only the standard library may be imported here."""

import fcntl
import os

FIRST_FREE = 3  # the standard streams have the descriptors below


def create_memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory.

    It is never a descriptor of a standard stream, even if a stream is closed: otherwise what is
    printed would be written into the file. Close it only if no library was loaded from it:
    the dynamic linker knows libraries by /proc/self/fd/NUMBER, and would take the next file with
    this number for the same library.

    Args:
        name: only shown in lists of open files; several files may have the same name.

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
