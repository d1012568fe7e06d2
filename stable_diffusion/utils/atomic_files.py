"""Files and folders in the making: they appear whole under their names, or not at all.

Each is made beside its place, under a name that nobody can guess, and gets its own name when it is
complete. Until then the program holds a lock on it, which ends with the program, however that ends:
what another program can lock is abandoned. Unlike the number of a process, this holds between
containers, and between machines, that share a folder.

Where a file system has no locks, the name says so, and nothing is taken for abandoned. The names
with the number of a process, which earlier versions gave, are left alone, too: nothing tells
whether such a file is still being written.
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

MAX_ATTEMPTS = 20  # a program that sweeps up may take a file for abandoned before it is locked
TOKEN_BYTES = 8  # of a random name: too many to guess
UNLOCKED = "unlocked-"  # begins the token of what could not be locked
FILE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.partial", re.DOTALL)
FOLDER = re.compile(r"(?P<name>.+)\.unfinished-[0-9a-f]{16}", re.DOTALL)

TO_MAKE_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR
TO_LOCK_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_RDWR  # over NFS locks ask for writing, too
TO_LOCK_FOLDER = os.O_NOFOLLOW | os.O_DIRECTORY | os.O_RDONLY
PERMISSIONS = 0o666  # of a new file, without those that the umask takes away
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # no disk to wait for


def write_whole(path: Path, content: bytes | memoryview, *, overwrites: bool = True) -> None:
    """Write a file that appears whole under its name, or not at all, even if the power fails.

    Raises:
        FileExistsError: there is a file, and `overwrites` is off.
        OSError: writing failed.
    """
    for _ in range(MAX_ATTEMPTS):
        with _making(path, is_folder=False) as (partial, descriptor):
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            _sync(descriptor)
            try:
                if overwrites:
                    os.replace(partial, path)
                else:
                    _rename_if_free(partial, descriptor, path)
                return
            except (
                FileNotFoundError
            ):  # deleted by one that saw no lock: machines may not share them
                continue
    raise OSError(errno.EBUSY, "another program deletes what is being written", str(path))


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Within, there is a folder to fill, which is called `folder` in the end.

    Where an error or an interruption leaves the block, nothing is left of it.

    Raises:
        OSError: it cannot be made, or cannot have its name.
    """
    with _making(folder, is_folder=True) as (partial, _):
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with _opened(path, os.O_RDONLY) as descriptor:
                    _sync(descriptor)
        partial.rename(folder)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove what programs that have ended left half made of these files and folders.

    What is still being made stays, and so does what cannot be judged or is another user's.
    """
    paths = set(paths)
    for parent in {path.parent for path in paths}:
        try:
            names = os.listdir(parent)
        except OSError:  # it may not be there, or be written to but not read
            continue
        for name in names:
            for pattern in (FILE, FOLDER):
                match = pattern.fullmatch(name)
                if match is not None and parent / match["name"] in paths:
                    with suppress(OSError):
                        _remove_if_abandoned(parent / name, is_folder=pattern is FOLDER)


@contextmanager
def _making(path: Path, is_folder: bool) -> Iterator[tuple[Path, int]]:
    """Within, there is an empty file or folder beside `path`, locked, and open as a descriptor.

    In the end it is removed, unless it was renamed.
    """
    can_lock = True
    for _ in range(MAX_ATTEMPTS):
        token = secrets.token_hex(TOKEN_BYTES)
        partial = _partial(path, token if can_lock else UNLOCKED + token, is_folder)
        try:
            descriptor = _create(partial, is_folder)
        except FileExistsError:  # not ours
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
    raise OSError(errno.EBUSY, "other programs take every name to write it under", str(path))


def _partial(path: Path, token: str, is_folder: bool) -> Path:
    """Return the name of what is not finished; see `FILE` and `FOLDER`."""
    name = f"{path.name}.unfinished-{token}" if is_folder else f".{path.name}.{token}.partial"
    return path.with_name(name)


def _create(partial: Path, is_folder: bool) -> int:
    """Make what must not be there yet, and open it; nothing is left of it if that fails.

    Raises:
        FileExistsError: there is something, if only a link.
        OSError: it cannot be made.
    """
    try:
        if not is_folder:
            return os.open(partial, TO_MAKE_FILE, PERMISSIONS)
        partial.mkdir()
        return os.open(partial, TO_LOCK_FOLDER)
    except FileExistsError:
        raise
    except BaseException:  # also an interruption
        _remove(partial, is_folder)
        raise


def _remove(partial: Path, is_folder: bool) -> None:
    """Delete what was made, if it is still there and can be deleted."""
    if is_folder:
        shutil.rmtree(partial, ignore_errors=True)
    else:
        with suppress(OSError):
            partial.unlink()


def _remove_if_abandoned(partial: Path, is_folder: bool) -> None:
    """Delete what no program holds a lock on.

    Raises:
        OSError: it is something else, cannot be opened, or the file system has no locks.
    """
    mode = os.lstat(partial).st_mode  # a device is better not even opened
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        return
    with _opened(partial, TO_LOCK_FOLDER if is_folder else TO_LOCK_FILE) as descriptor:
        if _lock(descriptor) and _is_named(descriptor, partial):
            _remove(partial, is_folder)


def _lock(descriptor: int) -> bool:
    """Lock what is open, and return whether that was possible: nobody else holds a lock on it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Return whether `path` is a name of what is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _rename_if_free(partial: Path, descriptor: int, path: Path) -> None:
    """Give a file its name, but never another's.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be given.
    """
    try:
        os.link(partial, path)  # unlike a rename, refuses what exists
    except FileExistsError:
        # A server whose answer was lost is asked once more, and finds the link that it made.
        if not _is_named(descriptor, path):
            raise
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links, as exFAT: take the name first
        with _opened(path, TO_MAKE_FILE) as place:
            try:
                os.replace(partial, path)
            except BaseException:  # also an interruption
                if _is_named(place, path):
                    path.unlink()
                raise


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Within, a file or folder is open as a descriptor."""
    descriptor = os.open(path, flags, PERMISSIONS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Wait until a file is on the disk, lest a power cut leave an empty one under its name."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
