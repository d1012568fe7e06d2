"""One file by its name: from a folder, or from a repository, downloaded once."""

import os
import re
from pathlib import Path

import pytest
from hub_files import REPO
from hub_server import HubServer, cache, write

from stable_diffusion.model_io.hub_file import HubName, ResolvedFile, parse_hub_name, resolve_file

PREFERRED = ("first.safetensors", "second.safetensors")
CONFIG = "adapter_config.json"


def resolve(name: str | os.PathLike[str], announce: list[str] | None = None) -> ResolvedFile:
    lines = [] if announce is None else announce
    return resolve_file(name, "LoRA", PREFERRED, [CONFIG], lines.append)


@pytest.mark.parametrize(
    ("name", "repo", "path", "revision"),
    [
        ("o/n", "o/n", "", "main"),
        ("o/n/", "o/n", "", "main"),
        ("o/n@v1", "o/n", "", "v1"),
        ("o/n/a.safetensors", "o/n", "a.safetensors", "main"),
        ("o/n/sub/a.safetensors@v1", "o/n", "sub/a.safetensors", "v1"),
        ("o/n@v1/sub/a.safetensors", "o/n", "sub/a.safetensors", "v1"),
        ("o/n@refs/pr/3/a.safetensors", "o/n", "a.safetensors", "refs/pr/3"),
        ("o/n/a.safetensors@refs/pr/3", "o/n", "a.safetensors", "refs/pr/3"),
    ],
)
def test_names_on_the_hub(name: str, repo: str, path: str, revision: str) -> None:
    assert parse_hub_name(name) == HubName(repo, path, revision)
    assert parse_hub_name(str(HubName(repo, path, revision))) == HubName(repo, path, revision)


@pytest.mark.parametrize(
    "name",
    ["o", "o/a.safetensors", "./o/n", "/o/n", "~/n", "o\\n", "o/n/../a", "o/n@a@b", "o/n--m", ""],
)
def test_names_of_local_files(name: str) -> None:
    assert parse_hub_name(name) is None


def test_a_file_of_a_repository_is_downloaded_once(hub: HubServer) -> None:
    files = {"sub/a.safetensors": b"a", f"sub/{CONFIG}": b"{}", "b.safetensors": b"b"}
    commit = hub.add(REPO, files)
    lines: list[str] = []
    file = resolve(f"{REPO}/sub/a.safetensors", lines)
    assert file.path.read_bytes() == b"a" and file.path.with_name(CONFIG).is_file()
    assert Path(file) == file.path and str(file) == file.name == f"{REPO}/sub/a.safetensors"
    assert (file.repo, file.filename, file.revision) == (REPO, "sub/a.safetensors", commit)
    assert lines == [f"Downloading {REPO}, 0.0 MB, licence: openrail++"]
    hub.log.clear()
    assert resolve(f"{REPO}/sub/a.safetensors", lines).path == file.path
    assert len(lines) == 1 and hub.fetched() == []
    assert resolve(file) is file
    assert resolve(REPO).filename == "b.safetensors"  # the only one that is in no folder


def test_revisions(hub: HubServer) -> None:
    hub.add(REPO, {"a.safetensors": b"old"}, revision="v1")
    hub.add(REPO, {"a.safetensors": b"new"})
    for name in (f"{REPO}@v1/a.safetensors", f"{REPO}/a.safetensors@v1", f"{REPO}@v1"):
        assert resolve(name).path.read_bytes() == b"old"
    assert resolve(REPO).path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["x.safetensors", "second.safetensors"], "second.safetensors"),
        (["second.safetensors", "first.safetensors"], "first.safetensors"),
        (["x.safetensors", "x.bin", "README.md"], "x.safetensors"),
    ],
)
def test_which_file_is_taken(hub: HubServer, tmp_path: Path, names: list[str], chosen: str) -> None:
    contents = {name: name.encode() for name in names}
    hub.add(REPO, contents)
    write(tmp_path / "folder", contents)
    for name in (REPO, str(tmp_path / "folder"), tmp_path / "folder"):
        assert resolve(name).path.read_bytes() == chosen.encode()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.safetensors", "b.safetensors"], r"has 2 safetensors files: name one of them, such as"),
        (["a.bin"], r"has a\.bin but no safetensors file, and pickles are never loaded: if you tr"),
        (["model_index.json", "unet/a.safetensors"], "is a whole model, not a LoRA: give it with"),
        (["README.md"], "has no safetensors file"),
    ],
)
def test_folders_and_repositories_without_one_file(
    hub: HubServer, tmp_path: Path, names: list[str], message: str
) -> None:
    contents = dict.fromkeys(names, b"")
    hub.add(REPO, contents)
    write(tmp_path / "folder", contents)
    for name in (REPO, str(tmp_path / "folder")):
        with pytest.raises((ValueError, OSError), match=f"^{re.escape(name)} {message}") as caught:
            resolve(name)
        assert "\n" not in str(caught.value)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{REPO}/b.safetensors", rf"{REPO} has no b.safetensors; it has a.safetensors$"),
        (f"{REPO}/x", rf"{REPO} has no x; it has a.safetensors$"),
        (f"{REPO}/a.bin", r"a.bin is a pickle, and pickles are never loaded: take one of a.safete"),
        (f"{REPO}@v9", "the Hub has no such revision of it"),
        ("org/none", "org/none is neither .* the Hub has no such repository"),
        ("none.safetensors", "no such LoRA file: none.safetensors"),
        ("./none/none", "no such LoRA file: ./none/none"),
    ],
)
def test_what_is_not_there(hub: HubServer, name: str, message: str) -> None:
    hub.add(REPO, {"a.safetensors": b"", "a.bin": b""})
    with pytest.raises((ValueError, OSError), match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    assert hub.fetched() == []


def test_a_gated_repository(hub: HubServer) -> None:
    hub.add(REPO, {"a.safetensors": b""})
    hub.answers[REPO] = "GatedRepo"
    with pytest.raises(OSError, match="the repository is gated: accept its licence at"):
        resolve(REPO)


def test_without_the_hub_the_cache_is_used(offline: None, cache_folder: Path) -> None:
    cache(cache_folder, REPO, {"sub/a.safetensors": b"a", CONFIG: b"{}"})
    for name in (REPO, f"{REPO}/sub", f"{REPO}/sub/a.safetensors"):
        assert resolve(name).path.read_bytes() == b"a"
    with pytest.raises(OSError, match=r"has no b.safetensors in the Hub cache, and HF_HUB_OFFLINE"):
        resolve(f"{REPO}/b.safetensors")
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set: go online once"):
        resolve("org/none")


def test_what_exists_here_is_not_looked_up_on_the_hub(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / REPO, {"a.safetensors": b"here"})
    assert resolve(REPO).path.read_bytes() == b"here"
    assert resolve(f"{REPO}/a.safetensors").path.read_bytes() == b"here"
    for name in (f"{REPO}/b.safetensors", Path("org/other")):
        with pytest.raises(FileNotFoundError, match="no such LoRA file"):
            resolve(name)
