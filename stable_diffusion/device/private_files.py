"""Files and folders that belong to this user alone, and temporary folders to work in.

A folder to work in is locked. If its process is killed, the lock is gone, and the next process
removes the folder. A file ends in a digest of its name and content.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "stable-diffusion-mlx"  # in the user's cache folder
WORKING_PREFIX = "stable-diffusion-mlx-compiling-"  # of the names of temporary folders
MIN_FREE = 2**25  # bytes: objects, the library and g++'s temporary files take a quarter of it
MAX_SIZE = 2**26  # bytes of a library
MAX_AGE = 24 * 60 * 60  # seconds; on a disk without locks, older folders are not in use


def is_private(status: os.stat_result) -> bool:
    """Return whether this user owns a file or folder, and nobody else can write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open a folder, and yield its descriptor.

    Raises:
        OSError: if it is a symbolic link, or cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_own(kept: Path) -> bytes | None:
    """Return the content of a file that `write_own` wrote.

    Returns None if the file is missing or not complete, or if another user could have written it.
    """
    try:
        with open_folder(kept.parent) as folder:
            if not is_private(os.fstat(folder)):
                return None
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # do not wait for a pipe's writer
            with open(os.open(kept.name, flags, dir_fd=folder), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not is_private(status):
                    return None
                written = file.read(MAX_SIZE)
    except OSError:
        return None
    content = written[: -hashlib.sha256().digest_size]
    return content if written == content + _compute_digest(kept.name, content) else None


def write_own(content: bytes, kept: Path, folder: Path) -> None:
    """Write a file and its digest in one atomic step.

    Args:
        content: the content of the file.
        kept: the path of the file.
        folder: the folder for a temporary file, on the same disk.

    Raises:
        OSError: if it cannot be written.
    """
    whole = folder / kept.name
    with open(whole, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content + _compute_digest(kept.name, content))
        file.flush()
        os.fsync(file.fileno())
    if kept.is_dir() and not kept.is_symlink():
        kept.rename(folder / "in-the-way")
    whole.replace(kept)
    with open_folder(kept.parent) as descriptor:
        os.fsync(descriptor)


def _compute_digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def prepare_folder(folder: Path) -> None:
    """Make a folder in the cache folder that nobody else can write.

    Raises:
        OSError: if that is not possible, or if the disk is full.
    """
    if folder.is_symlink():
        raise OSError(f"{folder} is a symbolic link")
    for each in (folder.parent, folder):  # not their parents: a missing home stays missing
        each.mkdir(mode=0o700, exist_ok=True)
    with open_folder(folder) as descriptor:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise OSError(f"{folder} belongs to another user")
        if not is_private(status):
            os.fchmod(descriptor, 0o700)
    if shutil.disk_usage(folder).free < MIN_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextmanager
def make_working_folder(parent: Path) -> Iterator[Path]:
    """Make and lock a temporary folder, yield it, and remove it at the end."""
    remove_left_behind(parent)
    descriptor = None
    while descriptor is None:
        folder = Path(tempfile.mkdtemp(prefix=WORKING_PREFIX, dir=parent))
        descriptor = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Lock a new folder, and return its descriptor.

    Returns None if another process has removed it before it was locked.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    is_there = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = folder.exists()
    except BlockingIOError:
        is_there = False
    except OSError:  # a disk without locks
        pass
    if is_there:
        return descriptor
    os.close(descriptor)
    return None


def remove_left_behind(parent: Path) -> None:
    """Remove the working folders of processes that were killed."""
    with suppress(OSError):
        status = os.stat(parent, follow_symlinks=False)
        if not is_private(status) and not status.st_mode & stat.S_ISVTX:
            return  # other users could replace our folder
        for name in os.listdir(parent):
            is_old_kind = name.startswith("tmp") and parent.name == FOLDER
            if name.startswith(WORKING_PREFIX) or is_old_kind:
                with suppress(OSError), open_folder(parent / name) as folder:
                    if _is_left_behind(folder, is_old_kind):
                        shutil.rmtree(parent / name, ignore_errors=True)


def _is_left_behind(folder: int, is_old_kind: bool) -> bool:
    """Return whether a folder is ours, and no process is working in it."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        return False
    is_old = time.time() - status.st_mtime > MAX_AGE
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return is_old
    return is_old or not is_old_kind  # earlier versions did not lock


def describe_error(error: OSError) -> str:
    """Return the message of an error, after the name of the file if there is one."""
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
