"""Write files and folders atomically: they appear complete under their names, or not at all.

Each is written beside its destination, under a random temporary name, and renamed when it is
complete. Until then the program holds a lock on it. The lock ends with the program, even if it is
killed: a temporary file that another program can lock is abandoned. Unlike process ids, this also
works between containers, and between machines, that share a folder.

If a file system has no locks, the temporary name says so, and such a file is never removed as
abandoned. Names with a process id, which earlier versions used, are not removed either, because
such a file may still be written.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .fold_name import fold_name

MAX_ATTEMPTS = 20  # another program may remove a file as abandoned before it is locked
TOKEN_BYTES = 8  # of a random name: enough that nobody can guess it
UNLOCKED = "unlocked-"  # prefix of the token if the file system has no locks
# Temporary names.
FILE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.partial", re.DOTALL)
FOLDER = re.compile(r"(?P<name>.+)\.unfinished-[0-9a-f]{16}", re.DOTALL)

CREATE_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR
LOCK_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_RDWR  # NFS locks only what is open for writing
LOCK_FOLDER = os.O_NOFOLLOW | os.O_DIRECTORY | os.O_RDONLY
PERMISSIONS = 0o666  # of a new file, before the umask
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # the file system cannot


def write_atomically(path: Path, content: bytes | memoryview, *, overwrites: bool = True) -> None:
    """Write a file that appears complete or not at all, even if the power fails.

    Args:
        overwrites: whether an existing file is replaced.

    Raises:
        FileExistsError: if the file exists and `overwrites` is False.
        OSError: if writing fails.
    """
    for _ in range(MAX_ATTEMPTS):
        with _create_locked(path, is_folder=False) as (partial, descriptor):
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            _sync(descriptor)
            try:
                if overwrites:
                    os.replace(partial, path)
                else:
                    _rename_if_free(partial, descriptor, path)
                return
            except FileNotFoundError:
                continue  # removed by another machine, which does not see our lock
    raise OSError(errno.EBUSY, "another program removes the unfinished file", str(path))


@contextmanager
def create_folder_atomically(folder: Path) -> Iterator[Path]:
    """Create a temporary folder to fill inside the block, and rename it to `folder` at the end.

    If an error or an interruption leaves the block, the temporary folder is removed.

    Raises:
        OSError: if it cannot be created or renamed.
    """
    with _create_locked(folder, is_folder=True) as (partial, _):
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with _open(path, os.O_RDONLY) as descriptor:
                    _sync(descriptor)
        partial.rename(folder)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove unfinished versions of these files and folders left by programs that have ended.

    Those that are still being written stay, and those that cannot be locked or removed, such as
    another user's.
    """
    paths = list(paths)
    folded = {fold_name(path) for path in paths}
    for parent in {path.parent for path in paths}:
        try:
            names = os.listdir(parent)
        except OSError:  # it does not exist, or may not be listed
            continue
        for name in names:
            for pattern in (FILE, FOLDER):
                match = pattern.fullmatch(name)
                if match is not None and fold_name(parent / match["name"]) in folded:
                    with suppress(OSError):
                        _remove_if_abandoned(parent / name, is_folder=pattern is FOLDER)


@contextmanager
def _create_locked(path: Path, is_folder: bool) -> Iterator[tuple[Path, int]]:
    """Create an empty file or folder beside `path`, and lock it inside the block.

    At the end it is removed, unless it was renamed.

    Yields:
        Its temporary name, and a descriptor of it.
    """
    can_lock = True
    for _ in range(MAX_ATTEMPTS):
        token = secrets.token_hex(TOKEN_BYTES)
        partial = _temporary_name(path, token if can_lock else UNLOCKED + token, is_folder)
        try:
            descriptor = _create(partial, is_folder)
        except FileExistsError:  # of another program
            continue
        try:
            if can_lock:
                try:
                    is_ours = _lock(descriptor) and os.path.lexists(partial)
                except OSError:  # ENOLCK, EOPNOTSUPP or, for folders over NFS, EBADF
                    can_lock = is_ours = False
            else:
                is_ours = True
            if is_ours:
                yield partial, descriptor
                return
        finally:
            _remove(partial, is_folder)
            os.close(descriptor)
    raise OSError(errno.EBUSY, "other programs use every temporary name", str(path))


def _temporary_name(path: Path, token: str, is_folder: bool) -> Path:
    """Return the name of an unfinished file or folder; see `FILE` and `FOLDER`."""
    name = f"{path.name}.unfinished-{token}" if is_folder else f".{path.name}.{token}.partial"
    return path.with_name(name)


def _create(partial: Path, is_folder: bool) -> int:
    """Create a file or folder and return a descriptor of it; if that fails, remove it.

    Raises:
        FileExistsError: if the name exists, even as a dangling link.
        OSError: if it cannot be created.
    """
    try:
        if not is_folder:
            return os.open(partial, CREATE_FILE, PERMISSIONS)
        partial.mkdir()
        return os.open(partial, LOCK_FOLDER)
    except FileExistsError:
        raise
    except BaseException:  # also an interruption
        _remove(partial, is_folder)
        raise


def _remove(partial: Path, is_folder: bool) -> None:
    """Remove a file or folder, if it still exists and can be removed."""
    if is_folder:
        shutil.rmtree(partial, ignore_errors=True)
    else:
        with suppress(OSError):
            partial.unlink()


def _remove_if_abandoned(partial: Path, is_folder: bool) -> None:
    """Remove a file or folder if no program holds a lock on it.

    Raises:
        OSError: if it cannot be opened, or the file system has no locks.
    """
    mode = os.lstat(partial).st_mode  # opening a device may have side effects
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        return
    with _open(partial, LOCK_FOLDER if is_folder else LOCK_FILE) as descriptor:
        if _lock(descriptor) and _is_named(descriptor, partial):
            _remove(partial, is_folder)


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder; return False if another program holds a lock on it.

    Raises:
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Return whether `path` is a name of the open file or folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _rename_if_free(partial: Path, descriptor: int, path: Path) -> None:
    """Rename a file to `path`, but never replace another file.

    Raises:
        FileExistsError: if `path` exists.
        OSError: if renaming fails.
    """
    try:
        os.link(partial, path)  # unlike a rename, refuses what exists
    except FileExistsError:
        # If the answer of a file server was lost, the repeated request finds the link it made.
        if not _is_named(descriptor, path):
            raise
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links, such as exFAT: reserve the name
        with _open(path, CREATE_FILE) as reserved:
            try:
                os.replace(partial, path)
            except BaseException:  # also an interruption
                if _is_named(reserved, path):
                    path.unlink()
                raise


@contextmanager
def _open(path: Path, flags: int) -> Iterator[int]:
    """Open a file or folder as a descriptor, and close it at the end of the block."""
    descriptor = os.open(path, flags, PERMISSIONS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Wait until a file is on the disk, so that a power failure cannot leave an empty one."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
