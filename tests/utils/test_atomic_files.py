"""Atomic files and folders: other programs at the same time, failures, killed programs."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
from ours import ROOT, python
from PIL import Image

from stable_diffusion.utils import atomic_files
from stable_diffusion.utils.atomic_files import (
    create_folder_atomically,
    remove_abandoned,
    write_atomically,
)

TOKEN = "0123456789abcdef"
TAKEN = f".a.png.{TOKEN}.partial"
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")
MAY_UNSHARE = (
    which("unshare") and not subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode
)

# A program that writes numbered files in a folder, names that only one program can have, and one
# name that both overwrite. Each time it removes abandoned files. Both programs are process 1.
SAVES = """
import os, sys
import numpy as np
from stable_diffusion.cli.job import Job
from stable_diffusion.cli.output.file_names import name_files
from stable_diffusion.cli.output.picture_writer import PictureWriter
from stable_diffusion.cli.settings import Settings
from stable_diffusion.utils.atomic_files import remove_abandoned

assert os.getpid() == 1
value, n = int(sys.argv[1]), int(sys.argv[2])
picture = np.full((32, 32, 3), value, np.uint8)
print("ready", flush=True)
sys.stdin.readline()
for i in range(n):
    for output in ("d/", "{seed}.png", "one.png"):
        jobs = [Job("a", seed=i, index=1)]
        try:
            names = name_files(Settings((), output=output, model="tiny"), jobs)
        except ValueError:  # the other one has written {seed}.png
            continue
        remove_abandoned([*names.all_files, names.preview])
        writer = PictureWriter(names, n_rows=1)
        writer.add(jobs[0], picture)
        writer.finish()
"""


def make_failing(number: int):
    """Return a function that fails with an error number of the system."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def unlock_first(n: int, monkeypatch, meanwhile) -> None:
    """Call `meanwhile` before each of the first `n` locks."""
    calls = iter(range(n))

    def lock(descriptor: int, kind: int, flock=fcntl.flock) -> None:
        if next(calls, None) is not None:
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", flock)
                meanwhile()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", lock)


@pytest.mark.skipif(not MAY_UNSHARE, reason="no new process namespaces for this user")
def test_two_programs_that_both_are_process_1(tmp_path):
    """Two containers may share a folder: no file is lost or written through a link."""
    n = 34  # so that both together save some 200 times
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    (tmp_path / "d").mkdir()
    links = [tmp_path / ".one.png.1.partial", tmp_path / f".one.png.{TOKEN}.partial"]
    links += [tmp_path / f"d/.{i:04}.png.1.partial" for i in range(1, 2 * n)]
    for link in links:
        link.symlink_to(victim)
    programs = [
        subprocess.Popen(
            [*NAMESPACE, sys.executable, "-c", SAVES, f"{value}", f"{n}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in (50, 200)
    ]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("\n")
        program.stdin.flush()
    said = "".join(program.communicate(timeout=120)[0] for program in programs)
    assert [program.returncode for program in programs] == [0, 0]
    written = re.findall(r"^Wrote (.+)$", said, re.MULTILINE)
    own = [name for name in written if name != "one.png"]
    assert len(own) == len(set(own)) and written.count("one.png") == 2 * n
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert found == set(written)
    shades = [Image.open(tmp_path / name).getpixel((9, 9))[0] for name in own]
    numbered = [shade for name, shade in zip(own, shades, strict=True) if name.startswith("d/")]
    assert [numbered.count(shade) for shade in (50, 200)] == [n, n]
    assert {f"{seed}.png" for seed in range(n)} <= found
    assert victim.read_bytes() == b"old" and all(link.is_symlink() for link in links)
    assert {*tmp_path.rglob("*.partial")} == {*links}


@pytest.mark.parametrize("plant", ["link", "file", "folder"])
def test_a_name_that_is_taken_is_left_alone(tmp_path, monkeypatch, plant):
    """This holds even if somebody has guessed the temporary name."""
    victim, planted = tmp_path / "victim", tmp_path / TAKEN
    victim.write_bytes(b"old")
    match plant:
        case "link":
            planted.symlink_to(victim)
        case "file":
            planted.write_bytes(b"old")
        case _:
            planted.mkdir()
    tokens = iter([TOKEN, "f" * 16])
    monkeypatch.setattr(atomic_files.secrets, "token_hex", lambda n: next(tokens, TOKEN))
    write_atomically(tmp_path / "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == b"new"
    with pytest.raises(OSError, match="use every temporary name") as error:
        write_atomically(tmp_path / "a.png", b"newer", overwrites=False)
    assert not isinstance(error.value, FileExistsError)  # for which another name would be tried
    assert os.path.lexists(planted) and victim.read_bytes() == b"old"
    assert planted.is_dir() or planted.read_bytes() == b"old"


def test_names_are_random_and_fit(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "replace", lambda partial, _: names.append(Path(partial).name))
    for _ in range(100):
        write_atomically(tmp_path / f"{'x' * 216}.png", b"")
    assert len(set(names)) == 100 and max(map(len, names)) <= 255
    assert all(atomic_files.FILE.fullmatch(name)["name"] == f"{'x' * 216}.png" for name in names)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("overwrites", [True, False])
def test_the_umask_holds(tmp_path, mask, overwrites):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.png", b"new", overwrites=overwrites)
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda d: done.append(os.fstat(d).st_size))
    monkeypatch.setattr(os, "replace", lambda *_: done.append("named"))
    write_atomically(tmp_path / "a.png", b"12345")
    assert done == [5, "named"]
    done.clear()
    monkeypatch.setattr(Path, "rename", lambda *_: done.append("named"))
    with create_folder_atomically(tmp_path / "model") as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "a").write_bytes(b"123")
    assert done == [3, "named"]


@pytest.mark.parametrize(("number", "is_fatal"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_failing_disks_and_file_systems_without_sync(tmp_path, monkeypatch, number, is_fatal):
    monkeypatch.setattr(os, "fsync", make_failing(number))
    try:
        write_atomically(tmp_path / "a.png", b"new")
    except OSError as error:
        assert is_fatal and error.errno == number and not os.listdir(tmp_path)
    else:
        assert not is_fatal and os.listdir(tmp_path) == ["a.png"]


def test_removal_between_creating_and_locking(tmp_path, monkeypatch):
    """Another program removes the file as abandoned; the writer notices and creates another."""
    path = tmp_path / "a.png"
    for n in (1, 5):
        unlock_first(n, monkeypatch, lambda: remove_abandoned([path]))
        write_atomically(path, b"new %d" % n)
        assert path.read_bytes() == b"new %d" % n and os.listdir(tmp_path) == ["a.png"]
        monkeypatch.undo()
    folder = tmp_path / "model"
    unlock_first(2, monkeypatch, lambda: remove_abandoned([folder]))
    with create_folder_atomically(folder) as made:
        (made / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "model"] and os.listdir(folder) == ["a"]


def test_removal_by_a_program_that_holds_the_lock(tmp_path, monkeypatch):
    """The other program is about to remove the file."""
    path, held = tmp_path / "a.png", []

    def lock_to_remove() -> None:
        (partial,) = tmp_path.glob(".*")
        held.append(os.open(partial, os.O_RDWR))
        fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    unlock_first(1, monkeypatch, lock_to_remove)
    write_atomically(path, b"new")
    os.close(held[0])
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("overwrites", [True, False])
def test_a_locked_file_that_was_removed_is_written_again(tmp_path, monkeypatch, overwrites):
    """A machine that does not see our locks removes it."""
    path, calls = tmp_path / "a.png", iter(range(2))
    function = "replace" if overwrites else "link"
    real = getattr(os, function)

    def unlink_first(partial: Path, *rest) -> None:
        if next(calls, None) is not None:
            os.unlink(partial)
        real(partial, *rest)

    monkeypatch.setattr(os, function, unlink_first)
    write_atomically(path, b"new", overwrites=overwrites)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.png"]
    monkeypatch.setattr(os, function, make_failing(errno.ENOENT))
    with pytest.raises(OSError, match="another program removes the unfinished file"):
        write_atomically(tmp_path / "b.png", b"new", overwrites=overwrites)
    assert os.listdir(tmp_path) == ["a.png"]


def test_unfinished_files_of_running_programs_stay(tmp_path):
    path, folder = tmp_path / "a.png", tmp_path / "model"
    with (
        atomic_files._create_locked(path, is_folder=False),
        create_folder_atomically(folder) as made,
    ):
        before = sorted(os.listdir(tmp_path))
        assert len(before) == 2 and made.name in before
        remove_abandoned([path, folder])
        assert sorted(os.listdir(tmp_path)) == before


def test_abandoned_files_are_removed(tmp_path):
    """Others stay: old names, links, pipes, and folders with the name of a file."""
    path = tmp_path / "a\n.png"
    gone = tmp_path / f".a\n.png.{TOKEN}.partial"
    gone.touch()
    model = tmp_path / f"model.unfinished-{TOKEN}"
    (model / "unet").mkdir(parents=True)
    (model / "link").symlink_to(tmp_path)
    kept = [f".b.png.{TOKEN}.partial", ".a\n.png.123.partial", f".a\n.png.{TOKEN}.partial.png"]
    kept += [f".a\n.png.{TOKEN.upper()}.partial", "model.unfinished-12"]
    kept += [f".model.{TOKEN}.partial.d"]
    for name in kept:
        (tmp_path / name).touch()
    link, pipe = (f".a\n.png.{digit * 16}.partial" for digit in "12")
    (tmp_path / link).symlink_to(tmp_path / kept[0])
    os.mkfifo(tmp_path / pipe)
    odd = f".a\n.png.{'3' * 16}.partial"
    (tmp_path / odd).mkdir()
    remove_abandoned([path, tmp_path / "model", tmp_path / "nowhere" / "a.png"])
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, link, pipe, odd])


@pytest.mark.parametrize(("platform", "n_left"), [("darwin", 0), ("linux", 1)])
def test_an_abandoned_file_may_have_another_form_of_unicode(
    tmp_path, monkeypatch, platform, n_left
):
    monkeypatch.setattr("sys.platform", platform)
    (tmp_path / f".caf\xe9.png.{TOKEN}.partial").touch()
    remove_abandoned([tmp_path / "cafe\u0301.png"])
    assert len(os.listdir(tmp_path)) == n_left


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_nothing_is_removed(tmp_path, monkeypatch, number):
    """A program that has locks does not remove it later either."""
    path, folder = tmp_path / "a.png", tmp_path / "model"
    (tmp_path / TAKEN).touch()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", make_failing(number))
        remove_abandoned([path])
        write_atomically(path, b"new")
        assert sorted(os.listdir(tmp_path)) == [TAKEN, "a.png"] and path.read_bytes() == b"new"
        with (
            atomic_files._create_locked(path, is_folder=False),
            create_folder_atomically(folder) as made,
        ):
            patch.undo()
            before = sorted(os.listdir(tmp_path))
            remove_abandoned([path, folder])
            assert sorted(os.listdir(tmp_path)) == [name for name in before if name != TAKEN]
            assert made.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "model"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_links_no_file_is_lost(tmp_path, monkeypatch, number):
    """This holds even if another program creates the file in between."""
    path = tmp_path / "a.png"
    monkeypatch.setattr(os, "link", make_failing(number))
    write_atomically(path, b"first", overwrites=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"second", overwrites=False)
    assert path.read_bytes() == b"first"
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "dangling", b"second", overwrites=False)
    path.unlink()

    def link(*_: object) -> None:
        path.write_bytes(b"theirs")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os.path, "exists", lambda _: False)  # as it was a moment ago
    with pytest.raises(FileExistsError):
        write_atomically(path, b"second", overwrites=False)
    assert path.read_bytes() == b"theirs" and sorted(os.listdir(tmp_path)) == ["a.png", "dangling"]


@pytest.mark.parametrize("ending", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_without_links_failures_leave_nothing(tmp_path, monkeypatch, ending):
    path = tmp_path / "a.png"

    def fail(*_: object) -> None:
        raise ending

    monkeypatch.setattr(os, "link", make_failing(errno.EPERM))
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(ending)):
        write_atomically(path, b"new", overwrites=False)
    assert not os.listdir(tmp_path)

    def fail_late(partial: Path, path: Path, rename=os.rename) -> None:
        rename(partial, path)
        raise ending

    monkeypatch.setattr(os, "replace", fail_late)
    with pytest.raises(type(ending)):
        write_atomically(path, b"new", overwrites=False)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.png"]


def test_a_link_that_was_requested_twice(tmp_path, monkeypatch):
    """If the first answer of a server was lost, the existing link is our own."""

    def link(partial: Path, path: Path, real=os.link) -> None:
        real(partial, path)
        real(partial, path)

    monkeypatch.setattr(os, "link", link)
    write_atomically(tmp_path / "a.png", b"new", overwrites=False)
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.png", b"newer", overwrites=False)
    assert (tmp_path / "a.png").read_bytes() == b"new"


# Without the rest of the package, which would take a second to import.
KILLED = """
import os, sys, types
from pathlib import Path
package = types.ModuleType("stable_diffusion")
package.__path__ = ["stable_diffusion"]
sys.modules["stable_diffusion"] = package
from stable_diffusion.utils import atomic_files
os.{function} = lambda *_: os.kill(os.getpid(), 9)
path = Path(sys.argv[1])
if {is_folder}:
    with atomic_files.create_folder_atomically(path) as folder:
        (folder / "a").touch()
else:
    atomic_files.write_atomically(path, b"new", overwrites={overwrites})
"""


@pytest.mark.parametrize(
    ("function", "overwrites", "is_folder"),
    [
        *(("fsync", True, False), ("replace", True, False), ("link", False, False)),
        *(("unlink", False, False), ("fsync", True, True), ("rename", True, True)),
    ],
)
def test_killed_at_any_step(tmp_path, function, overwrites, is_folder):
    """The lock ends with the program."""
    path = tmp_path / "x"
    code = KILLED.format(function=function, overwrites=overwrites, is_folder=is_folder)
    assert python("-c", code, str(path)).returncode == -signal.SIGKILL
    left = [name for name in os.listdir(tmp_path) if name != "x"]
    assert len(left) == 1 and path.exists() == (function == "unlink")
    remove_abandoned([path])
    assert os.listdir(tmp_path) == ["x"] * (function == "unlink")
