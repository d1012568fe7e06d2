"""The kernels are compiled once, and nothing is loaded that another user could have made."""

import ctypes
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from ours import ROOT, python

from stable_diffusion.device import compile_kernels, compiler, private_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only a Linux CPU needs it")

SOURCES = {
    "one.cpp": '#include "answer.h"\nextern "C" int one() { return ANSWER; }',
    "two.cpp": 'extern "C" int two() { return 2; }',
    "answer.h": "#define ANSWER 1",
}
# It calls g++ only if these sources have not been compiled before. The output is the last argument.
COMPILER = """echo >> {folder}/calls
for output; do true; done
made={outputs}/$(cat {folder}/sources/* | cksum | tr -d ' ')-${{output##*/}}
[ -e $made ] || {{ /usr/bin/g++ "$@" && cp "$output" $made.$$ && mv $made.$$ $made; }} || exit
cp $made "$output"
"""
# Without the rest of the package, which would take a second to import.
LOADS = """
import importlib, pathlib, sys, types
package = types.ModuleType("stable_diffusion")
package.__path__ = ["stable_diffusion"]
sys.modules["stable_diffusion"] = package
module = importlib.import_module("stable_diffusion.device.compile_kernels")
module.SOURCES = pathlib.Path(r"{sources}")
{before}
library = module.load()
print(library and library.one())
"""
NOTHING = "pictures take several times as long as they could, as "
EVERY_RUN = "the kernels are compiled at every run, as "

Loaded = tuple[ctypes.CDLL | None, str]


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, text in SOURCES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """Return a folder for what g++ made of the sources: it runs once for each of their versions."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(autouse=True)
def home(tmp_path, sources, outputs, monkeypatch) -> Path:
    """Set a cache folder, small sources, and a compiler that records its calls."""
    monkeypatch.setattr(compile_kernels, "SOURCES", sources)
    monkeypatch.setattr(compile_kernels, "load", cache(compile_kernels.load.__wrapped__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compile_kernels.OVERRIDE, raising=False)
    (tmp_path / "bin").mkdir()
    write_compiler(tmp_path, COMPILER.format(folder=tmp_path, outputs=outputs))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path / "cache/stable-diffusion-mlx"


def write_compiler(tmp_path: Path, text: str, interpreter: str = "#!/bin/sh") -> Path:
    script = tmp_path / "bin/g++"
    script.unlink(missing_ok=True)  # a process that a test killed may still be starting the old one
    script.write_text(f"{interpreter}\n{text}\n")
    script.chmod(0o700)
    return script


def load() -> Loaded:
    """Return the library and the warning, as in a new process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library = compile_kernels.load.__wrapped__()
    assert len(caught) <= 1
    said = str(caught[0].message) if caught else ""
    assert "\n" not in said
    return library, said


def run(sources: Path, before: str = "", *prefix: str) -> subprocess.CompletedProcess:
    """Load the library in a new process."""
    code = LOADS.format(sources=sources, before=before)
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def count_calls(tmp_path: Path) -> int:
    calls = tmp_path / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def find_kept_file(home: Path) -> Path:
    """Return the only file there; no temporary files may be left."""
    (kept,) = home.iterdir()
    return kept


@pytest.fixture
def kept(home) -> Path:
    """Return a library that was compiled before."""
    library, said = load()
    assert (library.one(), said) == (1, "")
    return find_kept_file(home)


@pytest.fixture(scope="module")
def other(outputs) -> Callable[[str], bytes]:
    """Return a function that returns another library, as it would be kept under a name."""
    source, library = outputs / "other.cpp", outputs / "other.so"
    source.write_text('extern "C" int one() { return 666; }')
    subprocess.run(["/usr/bin/g++", "-shared", "-fPIC", source, "-o", library], check=True)
    content = library.read_bytes()
    return lambda name: content + hashlib.sha256(name.encode() + content).digest()


# --- compiled once --------------------------------------------------------------------------------


def test_kernels_are_used(monkeypatch):
    """The package uses its own kernels."""
    code = (
        "import stable_diffusion, mlx.core as mx; from stable_diffusion import layers;"
        "print(layers.silu(mx.array([1.0, -2.0])).tolist())"
    )
    monkeypatch.undo()  # the cache folder, too
    done = python("-c", code)
    assert done.stdout.startswith("[0.7310")
    assert done.stderr == ""


def test_compiled_once(tmp_path, home, kept):
    made = kept.stat().st_mtime_ns
    assert count_calls(tmp_path) == 3  # two sources, and linking
    library, said = load()
    assert (library.two(), said) == (2, "")
    assert (count_calls(tmp_path), find_kept_file(home).stat().st_mtime_ns) == (3, made)


def test_only_the_user_may_read_and_write_it(tmp_path, home, monkeypatch):
    old = os.umask(0)
    try:
        load()
    finally:
        os.umask(old)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(find_kept_file(home).stat().st_mode) == 0o600


def test_needs_compiling(kept):
    assert not compile_kernels.needs_compiling()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert compile_kernels.needs_compiling()
    compile_kernels.load()
    kept.unlink()
    assert not compile_kernels.needs_compiling()  # it is loaded


def test_an_update_is_written_at_once(home, kept, other, monkeypatch):
    """At any time the file is complete, old or new, also after a power failure."""
    old, synced, fsync = b"no library", [], os.fsync
    kept.write_bytes(old)

    def spy(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, kept.read_bytes() == old))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    load()
    assert synced == [(False, True), (True, False)]


# --- the key --------------------------------------------------------------------------------------


def change_the_source(tmp_path, monkeypatch):
    (tmp_path / "sources/one.cpp").write_text('extern "C" int one() { return 3; }')


def change_the_header(tmp_path, monkeypatch):
    (tmp_path / "sources/answer.h").write_text("#define ANSWER 3")


def rename_a_source(tmp_path, monkeypatch):
    (tmp_path / "sources/two.cpp").rename(tmp_path / "sources/too.cpp")


def change_the_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_kernels, "FLAGS", (*compile_kernels.FLAGS, "-DTHREE"))


def move_the_compiler(tmp_path, monkeypatch):
    (tmp_path / "bin").rename(tmp_path / "elsewhere")  # its time is kept
    monkeypatch.setenv("PATH", f"{tmp_path}/elsewhere:/usr/bin:/bin")


def date_the_compiler(tmp_path, monkeypatch):
    os.utime(tmp_path / "bin/g++", (1, 1))


def grow_the_compiler(tmp_path, monkeypatch):
    script = tmp_path / "bin/g++"
    times = script.stat().st_atime_ns, script.stat().st_mtime_ns
    write_compiler(tmp_path, f"{script.read_text()}# more")
    os.utime(script, ns=times)


def put_an_assembler_first(tmp_path, monkeypatch):
    (tmp_path / "bin/as").symlink_to("/usr/bin/as")


def change_the_processor(tmp_path, monkeypatch):
    lines = compile_kernels._read_processor()
    assert lines
    monkeypatch.setattr(compile_kernels, "_read_processor", lambda: [*lines, "flags: avx1024"])


@pytest.mark.parametrize(
    "change",
    [
        change_the_source,
        change_the_header,
        rename_a_source,
        change_the_flags,
        move_the_compiler,
        date_the_compiler,
        grow_the_compiler,
        put_an_assembler_first,
        change_the_processor,
        *(
            lambda tmp_path, monkeypatch, name=name: monkeypatch.setenv(name, "/nowhere")
            for name in (
                *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH"),
                *("GCC_EXEC_PREFIX", "COMPILER_PATH", "LD_RUN_PATH"),
            )
        ),
    ],
)
def test_key(tmp_path, monkeypatch, change):
    """Everything that changes the library changes its name."""

    def find() -> Path | None:
        return compile_kernels._find_kept(compiler.find_compiler())

    before = find()
    assert before == find()
    change(tmp_path, monkeypatch)
    assert find() != before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("flags\t: fpu avx", "flags\t: fpu avx avx2"),
        ("model name\t: One", "model name\t: Two"),
        ("vendor_id\t: One", "vendor_id\t: Two"),
        ("Features\t: fp", "Features\t: fp sve"),
        ("CPU part\t: 0xd0c", "CPU part\t: 0xd40"),
    ],
)
def test_key_of_a_processor(monkeypatch, old, new):
    """Lines that distinguish processors count, and the clock does not."""
    text = "processor\t: 0\n{}\ncpu MHz\t: {}\n\nprocessor\t: 1\ncpu MHz\t: {}\n\n"
    path = compiler.find_compiler()

    def key(line: str, clock: int) -> Path:
        file = compile_kernels.SOURCES.parent / "cpuinfo"
        file.write_text(text.format(line, clock, clock))
        with monkeypatch.context() as patch:
            patch.setattr(
                compile_kernels, "open", lambda path, *_, **__: file.open(), raising=False
            )
            return compile_kernels._find_kept(path)

    assert key(old, 1000) == key(old, 3000)
    assert key(old, 1000) != key(new, 1000)


# --- libraries that are not loaded ----------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no library",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: b"\0" * len(content),
        lambda content: content[:5000] + b"\0" * (len(content) - 5000),
        lambda content: content[:-32],  # as earlier versions wrote it
        lambda content: hashlib.sha256().digest(),
    ],
)
def test_a_damaged_library_is_made_again(home, kept, damage):
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    library, said = load()
    assert (library.one(), said) == (1, "")
    assert private_files.read_own(find_kept_file(home)) is not None


def test_a_library_of_another_name(kept, other):
    """For example an old one, whose digest is right."""
    kept.write_bytes(other("kernels-0123456789abcdef.so"))
    assert load()[0].one() == 1


def give_to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)


def give_file_away(kept, monkeypatch):
    give_to_another_user(kept, monkeypatch)


def let_group_write(kept, monkeypatch):
    kept.chmod(0o620)


def let_everybody_write(kept, monkeypatch):
    kept.chmod(0o602)


def replace_by_link(kept, monkeypatch):
    kept.rename(kept.parent.parent / "file")
    kept.symlink_to(kept.parent.parent / "file")


def let_group_write_folder(kept, monkeypatch):
    kept.parent.chmod(0o770)


def let_everybody_write_folder(kept, monkeypatch):
    kept.parent.chmod(0o1777)


def replace_by_pipe(kept, monkeypatch):
    kept.unlink()
    os.mkfifo(kept)


def replace_by_folder(kept, monkeypatch):
    kept.unlink()
    kept.mkdir()
    (kept / "file").touch()


REPLACED = [
    let_group_write,
    let_everybody_write,
    replace_by_link,
    replace_by_pipe,
    replace_by_folder,
]


@pytest.mark.parametrize(
    "plant", [*REPLACED, give_file_away, let_group_write_folder, let_everybody_write_folder]
)
def test_what_others_can_write(home, kept, other, monkeypatch, plant):
    """A file that others can write is not loaded but replaced; the new one is loaded next time."""
    if plant is give_file_away and os.geteuid() != 0:
        pytest.skip("only root gives files away: see the next test")
    kept.write_bytes(other(kept.name))
    assert load()[0].one() == 666  # because it belongs to this user
    plant(kept, monkeypatch)
    library, said = load()
    assert (library.one(), said) == (1, "")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert not kept.is_symlink()
    assert private_files.read_own(find_kept_file(home)) is not None


def test_a_folder_of_another_user(tmp_path, home, kept, other, monkeypatch):
    """Nothing is loaded from there or written, for example if root has the home of a user."""
    planted = other(kept.name)
    kept.write_bytes(planted)
    give_to_another_user(home, monkeypatch)
    for n in (6, 9):
        library, said = load()
        assert library.one() == 1
        assert said.startswith(f"{EVERY_RUN}{home} belongs to another user: set XDG_CACHE_HOME")
        assert count_calls(tmp_path) == n
    assert kept.read_bytes() == planted


def test_a_folder_that_is_a_link(home, kept, other):
    kept.write_bytes(other(kept.name))
    home.rename(home.parent / "elsewhere")
    home.symlink_to(home.parent / "elsewhere")
    library, said = load()
    assert library.one() == 1
    assert said.startswith(f"{EVERY_RUN}{home} is a symbolic link: set XDG_CACHE_HOME")


# --- if nothing can be kept -----------------------------------------------------------------------


def test_without_a_home(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for nowhere in ("relative", tmp_path / "no/such", tmp_path / "file"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))
        library, said = load()
        assert (library.one(), said) == (1, "")
    assert not (tmp_path / "relative").exists()
    assert not (tmp_path / "no").exists()


def test_on_a_full_disk(tmp_path, home, monkeypatch):
    usage = compile_kernels.shutil.disk_usage("/")
    full = usage._replace(free=1000)
    monkeypatch.setattr(compile_kernels.shutil, "disk_usage", lambda path: full)
    library, said = load()
    assert library.one() == 1
    assert said.startswith(f"{EVERY_RUN}{home}: No space left on device: set XDG_CACHE_HOME")
    assert (count_calls(tmp_path), list(home.iterdir())) == (3, [])


def test_on_a_disk_that_is_full_at_the_end(tmp_path, home, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    library, said = load()
    assert library.one() == 1
    assert "No space left on device: set XDG_CACHE_HOME" in said
    assert (count_calls(tmp_path), list(home.iterdir())) == (3, [])


def test_without_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(compile_kernels.tempfile, "tempdir", str(tmp_path / "no"))
    library, said = load()
    assert library is None
    assert said.startswith(f"{NOTHING}there is no folder to compile in ({tmp_path}/no")
    assert said.endswith("No such file or directory): set TMPDIR to one with some free space")


NO_MEMORY_FILES = """
import os
def memfd_create(*_):
    raise PermissionError(13, "Permission denied")
os.memfd_create = memfd_create
"""


def test_without_files_in_memory(tmp_path, sources, home):
    """It is loaded from the temporary folder, which is empty afterwards."""
    (tmp_path / "tmp").mkdir()
    done = run(sources, NO_MEMORY_FILES, "env", f"TMPDIR={tmp_path}/tmp")
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert not list((tmp_path / "tmp").iterdir())
    assert count_calls(tmp_path) == 3
    done = run(sources, NO_MEMORY_FILES, "env", f"TMPDIR={tmp_path}/tmp")
    assert (done.stdout, done.stderr, count_calls(tmp_path)) == ("1\n", "", 3)


@pytest.fixture
def noexec(tmp_path) -> tuple[str, ...]:
    """Return a command prefix that mounts cache and temporary folder without executable files."""
    mounts = tmp_path / "noexec"
    mounts.mkdir()
    mount = f"mount -t tmpfs -o noexec none {mounts}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    script = (
        f"{mount} && mkdir {mounts}/tmp {mounts}/cache && cd {ROOT} && "
        f'export TMPDIR={mounts}/tmp XDG_CACHE_HOME={mounts}/cache; "$@" && "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, "sh")


def test_folders_without_executable_files(tmp_path, sources, noexec):
    """The second of two runs uses the library of the first."""
    done = run(sources, "", *noexec)
    assert (done.stdout, done.stderr) == ("1\n1\n", "")
    assert count_calls(tmp_path) == 3


def test_folders_without_executable_files_nor_files_in_memory(tmp_path, sources, noexec):
    done = run(sources, NO_MEMORY_FILES, *noexec)
    assert done.stdout == "None\nNone\n"
    assert done.stderr.count(f"{NOTHING}the kernels cannot be loaded (") == 2
    assert done.stderr.count("): set TMPDIR to a folder with some free space that programs") == 2
    assert count_calls(tmp_path) == 6  # once a run


def test_descriptors_of_closed_streams(sources):
    """They are not used for the library: otherwise what is printed would be written into it."""
    closed = run(sources, "", "sh", "-c", '"$@" <&-', "sh")
    assert (closed.stdout, closed.stderr) == ("1\n", "")
    before = "import os; os.close(0)"
    after = '\nprint(int(library._name.rsplit("/")[-1]) > 2)'
    code = LOADS.format(sources=sources, before=before) + after
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\nTrue\n", done.stderr


def test_each_library_is_its_own(sources):
    """The linker knows libraries by the numbers of their descriptors, so each has its own."""
    first = load()[0]
    (sources / "answer.h").write_text("#define ANSWER 5")
    assert (load()[0].one(), first.one()) == (5, 1)


# --- compilers ------------------------------------------------------------------------------------


def test_without_a_compiler(monkeypatch):
    """MLX's own operations are used, and a warning says what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert not compile_kernels.needs_compiling()
    assert load() == (None, f"{NOTHING}there is no g++: install your system's g++")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'fatal error: no such thing' >&2; exit 1", "g++ fails (fatal error: no such thing)"),
        ("echo 'it is late' >&2; exit 1", "g++ fails (it is late)"),
        ("printf 'error:\\033[31m\\tred\\n' >&2; exit 1", "g++ fails (error:"),
        ("exit 3", "g++ fails (without saying why)"),
        ("kill -KILL $$", "g++ fails (it was ended by SIGKILL)"),
        ("exit 0", "g++ wrote no library"),
        ('for last; do true; done; echo junk > "$last"', "the kernels cannot be loaded ("),
    ],
)
def test_with_a_broken_compiler(tmp_path, home, text, message):
    write_compiler(tmp_path, text)
    assert compile_kernels.needs_compiling()
    library, said = load()
    assert library is None
    assert said.startswith(f"{NOTHING}{message}")
    assert said.endswith("): install your system's g++") or ")" not in message
    assert not list(home.iterdir())


def test_on_a_compiler_without_space(tmp_path):
    write_compiler(tmp_path, "echo '/tmp/x.s: error: No space left on device' >&2; exit 1")
    library, said = load()
    assert library is None
    assert "No space left on device): free some space in " in said


@pytest.mark.parametrize("interpreter", ["#!/no/such/thing", "", "\0"])
def test_with_a_compiler_that_does_not_start(tmp_path, interpreter):
    write_compiler(tmp_path, "", interpreter)
    library, said = load()
    assert library is None
    assert said.startswith(f"{NOTHING}g++ cannot be run (")
    assert said.endswith("): install your system's g++")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_with_a_compiler_that_is_no_program(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    script = tmp_path / "bin/g++"
    if kind == "folder":
        script.unlink()
        script.mkdir()
    else:
        script.chmod(0o600)
    assert load() == (None, f"{NOTHING}there is no g++: install your system's g++")


def test_with_an_empty_environment(sources):
    """g++ is found in the system's default folders, without a warning."""
    done = run(sources, "", "env", "-i", "XDG_CACHE_HOME=relative")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_words_of_the_compiler_are_not_printed(tmp_path, capfd):
    write_compiler(tmp_path, 'echo words; read line; exec /usr/bin/g++ "$@"')
    assert load()[0].one() == 1
    assert capfd.readouterr() == ("", "")


def test_messages_are_in_english(tmp_path, monkeypatch):
    """So errors are found in them, even if the user has another language."""
    write_compiler(tmp_path, 'echo "error: $LC_ALL" >&2; exit 1')
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert "g++ fails (error: C)" in load()[1]


# --- several processes ----------------------------------------------------------------------------


def test_what_a_killed_compiler_left_behind(tmp_path, sources, home):
    write_compiler(tmp_path, 'for last; do true; done; touch "$last"; kill -KILL $PPID')
    assert run(sources).returncode == -signal.SIGKILL
    assert len(list(home.iterdir())) == 1
    write_compiler(tmp_path, 'exec /usr/bin/g++ "$@"')
    assert run(sources).stdout == "1\n"
    assert find_kept_file(home).suffix == ".so"


@pytest.mark.parametrize("is_compiled", [True, False])
def test_folders_in_the_cache(tmp_path, home, kept, is_compiled):
    """Folders that nobody works in are removed, even if nothing has to be compiled."""
    if not is_compiled:
        kept.unlink()
    names = [
        f"{private_files.WORKING_PREFIX}dead",
        f"{private_files.WORKING_PREFIX}live",
        "tmpdead",
        "tmplive",
    ]
    dead, live, old_dead, old_live = (home / name for name in names)
    for folder in (dead, live, old_dead, old_live, home / "else"):
        folder.mkdir()
        (folder / "one.o").touch()
    os.utime(old_dead, (1, 1))
    os.utime(home / "else", (1, 1))
    target = tmp_path / "target"
    target.mkdir()
    link = home / f"{private_files.WORKING_PREFIX}link"
    link.symlink_to(target)
    lock = os.open(live, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert load()[0].one() == 1
    finally:
        os.close(lock)
    assert {path.name for path in home.iterdir()} == {
        *(live.name, old_live.name, link.name, "else", kept.name)
    }
    assert target.exists()


def test_folders_of_others_are_left_alone(home, kept, monkeypatch):
    """Only folders of this user are removed."""
    folder = home / f"{private_files.WORKING_PREFIX}not-ours"
    folder.mkdir()
    give_to_another_user(folder, monkeypatch)
    load()
    assert folder.exists()


def test_two_at_the_same_time(tmp_path, sources, home):
    """Two processes that compile at the same time both succeed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environments = []
    for name, word in (("reader", f"read line < {pipe}"), ("writer", f"echo > {pipe}")):
        script = (
            f'case "$*" in *one.cpp*) {word} ;; esac; echo >> {tmp_path}/calls; '
            f'exec /usr/bin/g++ "$@"'
        )
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
        environments.append({**os.environ, "GXX": str(tmp_path / name)})
    write_compiler(tmp_path, 'exec "$GXX" "$@"')  # the same for both: they want one file
    code = LOADS.format(sources=sources, before="")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    assert [process.communicate() for process in both] == [("1\n", ""), ("1\n", "")]
    assert count_calls(tmp_path) == 6
    assert private_files.read_own(find_kept_file(home)) is not None


def test_interrupted(tmp_path, home, monkeypatch):
    """Ctrl-C leaves no files, and no compilers that run."""
    write_compiler(tmp_path, f"echo $$ >> {tmp_path}/calls; exec sleep 1000")
    started = []
    popen = subprocess.Popen

    def interrupt(*args, **options):
        if started:
            raise KeyboardInterrupt
        started.append(popen(*args, **options))
        return started[0]

    monkeypatch.setattr(compiler.subprocess, "Popen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert started[0].returncode == -signal.SIGKILL
    assert not list(home.iterdir())


# --- the environment variable ---------------------------------------------------------------------


def test_none_means_no_library(tmp_path, monkeypatch):
    monkeypatch.setenv(compile_kernels.OVERRIDE, "none")
    assert not compile_kernels.needs_compiling()
    assert load() == (None, "")
    assert count_calls(tmp_path) == 0


def test_empty_means_nothing(monkeypatch):
    monkeypatch.setenv(compile_kernels.OVERRIDE, "")
    assert compile_kernels.needs_compiling()
    assert load()[0].one() == 1


@pytest.mark.parametrize("function", ["load", "needs_compiling"])
@pytest.mark.parametrize("value", ["0", "NONE", "/some/library.so"])
def test_any_other_value(monkeypatch, function, value):
    monkeypatch.setenv(compile_kernels.OVERRIDE, value)
    with pytest.raises(ValueError, match=f"STABLE_DIFFUSION_KERNELS is '{value}': set it to none"):
        getattr(compile_kernels, function)()
