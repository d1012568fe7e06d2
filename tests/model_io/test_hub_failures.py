"""Broken models and failures of the Hub: the message says what is wrong and what to do."""

import json
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_files import (
    INDEX,
    REPO,
    SHARDS,
    TEXT,
    UNET,
    get_failure,
    go_offline,
    list_requests,
    make_files,
    make_shards,
    read_all,
)
from hub_server import Bad, HubServer, cache, write

from stable_diffusion.model_io import hub as hub_module
from stable_diffusion.model_io.hub import open_source

# --- broken and hostile models -------------------------------------------------------------------

EVIL = ["../../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors"]
EVIL += ["..", "", "x.bin", 7, None, ["x.safetensors"]]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_index_cannot_name_files_outside(
    hub: HubServer, tmp_path: Path, place: str, name: object
) -> None:
    index = {"weight_map": {"good": SHARDS[0], "evil": name}}
    contents = make_files(f"unet/{SHARDS[0]}") | {f"unet/{INDEX}.json": json.dumps(index).encode()}
    write(tmp_path, {"secret.safetensors": b"secret", "m/unet/a/b.safetensors": b"", **contents})
    hub.add(REPO, contents)
    folder = write(tmp_path / "m", contents)
    with pytest.raises(ValueError, match=re.escape(f"unet/{INDEX}.json")):
        open_source(REPO if place == "hub" else folder).weights("unet", float16=False)
    assert hub.fetched() == ([f"unet/{INDEX}.json"] if place == "hub" else [])


@pytest.mark.parametrize(
    "index", [b"{", b"\xff", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}']
)
def test_malformed_index_names_the_file(tmp_path: Path, index: bytes) -> None:
    folder = write(tmp_path, {f"unet/{INDEX}.json": index})
    with pytest.raises(ValueError, match=re.escape(f"unet/{INDEX}.json")):
        open_source(folder).weights("unet", float16=False)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_missing_shard_is_named(hub: HubServer, tmp_path: Path, place: str) -> None:
    contents = make_shards(f"{INDEX}.json", SHARDS)
    del contents[f"unet/{SHARDS[1]}"]
    hub.add(REPO, contents)
    model = open_source(REPO if place == "hub" else write(tmp_path, contents))
    with pytest.raises(FileNotFoundError, match=f"{model.name} has no unet/{SHARDS[1]}$"):
        model.weights("unet", float16=False)


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize(
    "pickle",
    ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "v1-5.ckpt"],
)
def test_pickles_are_refused(hub: HubServer, tmp_path: Path, place: str, pickle: str) -> None:
    contents = make_files(pickle) | ({TEXT: b""} if pickle.startswith("unet/") else {})
    hub.add(REPO, contents)
    model = open_source(REPO if place == "hub" else write(tmp_path, contents))
    with pytest.raises(ValueError, match=f"{re.escape(pickle)}.*safe_serialization=True"):
        model.weights("unet", float16=False)
    assert hub.fetched() == []


def test_missing_files(hub: HubServer, tmp_path: Path) -> None:
    contents = make_files(TEXT, "text_encoder/pytorch_model.bin")
    hub.add(REPO, contents)
    for model in (open_source(REPO), open_source(write(tmp_path, contents))):
        assert read_all(model.weights("text_encoder", float16=True)) == [TEXT]
        with pytest.raises(FileNotFoundError, match=f"^{model.name} has no {UNET}$"):
            model.weights("unet", float16=True)
        with pytest.raises(FileNotFoundError, match=f"^{model.name} has no vae/config.json$"):
            model.require("vae/config.json")


# --- failures of the Hub -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["set", "unreachable"])
def test_offline_with_empty_cache(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    go_offline(monkeypatch, way)
    reason = "HF_HUB_OFFLINE is set" if way == "set" else "cannot be reached"
    message = get_failure(REPO)
    assert "Hub cache" in message
    assert reason in message
    assert "go online once" in message


def test_offline_with_half_a_model(offline: None, cache_folder: Path) -> None:
    cache(cache_folder, REPO, make_files(UNET, "text_encoder/pytorch_model.bin"))
    model = open_source(REPO)
    assert read_all(model.weights("unet", float16=True)) == [UNET]
    assert model.find("vae/config.json") is None
    with pytest.raises(FileNotFoundError, match=f"no {TEXT} in the Hub cache"):
        model.weights("text_encoder", float16=True)
    with pytest.raises(
        FileNotFoundError, match=r"no vae/config\.json in the Hub cache, and HF_HUB"
    ):
        model.require("vae/config.json")


def test_gated(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET))
    hub.answers["/resolve/"] = "GatedRepo"  # a gated repository still lists its files
    message = get_failure(REPO)
    assert "gated" in message
    assert f"https://huggingface.co/{REPO}" in message
    assert "`hf auth login`" in message
    hub.answers = {"/api/": "GatedRepo"}
    assert "gated" in get_failure(REPO)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_missing_repository(hub: HubServer, status: int) -> None:
    assert "neither a folder nor" in get_failure(REPO)
    hub.answers["/api/"] = status
    assert "no such repository" in get_failure(REPO)


def test_missing_revision(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET))
    assert f"{REPO}@v9 " in get_failure(f"{REPO}@v9")
    assert "no such revision" in get_failure(f"{REPO}@v9")


@pytest.mark.parametrize("status", [500, 503])
def test_server_error(hub: HubServer, status: int) -> None:
    hub.answers["/api/"] = status
    assert f"the Hub answers {status}" in get_failure(REPO)


def test_file_that_the_hub_refuses(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET))
    hub.answers["unet/"] = 418
    model = open_source(REPO)
    model.require("model_index.json")
    with pytest.raises(FileNotFoundError, match=f"^{REPO}: {UNET} cannot be fetched: .* 418 "):
        model.weights("unet", float16=False)


def test_slow_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answers["/api/"] = 2.0
    monkeypatch.setattr(hub_module, "HUB_TIMEOUT", 0.2)
    assert "cannot be reached (timed out)" in get_failure(REPO)


@pytest.mark.parametrize("answer", [500, "RepoNotFound", "GatedRepo"])
def test_cache_serves_where_the_hub_does_not(
    hub: HubServer, cache_folder: Path, answer: int | str
) -> None:
    cache(cache_folder, REPO, make_files(UNET))
    hub.answers["/api/"] = answer
    assert read_all(open_source(REPO).weights("unet", float16=True)) == [UNET]
    assert len(list_requests(hub)) == 1


COMMIT = b"0123456789abcdef0123456789abcdef01234567"
GARBLED = [
    b"<html>Sign in to the network</html>",
    b"",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"id": "org/model", "siblings": []}',
    b'{"id": "org/model", "sha": "../../../x", "siblings": []}',
    b'{"id": "org/model", "sha": "%s", "siblings": null}' % COMMIT,
    b'{"id": "org/model", "sha": "%s", "siblings": [{}]}' % COMMIT,
]


@pytest.mark.parametrize("body", GARBLED, ids=range(len(GARBLED)))
def test_answers_that_are_not_from_the_hub(hub: HubServer, body: bytes) -> None:
    hub.add(REPO, make_files(UNET))
    hub.answers["/api/"] = Bad(body=body)
    assert "the answer is not from the Hub (" in get_failure(REPO)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (429, "the Hub answers 429 Too Many Requests: try later"),
        (Bad(cut=20), "the connection was interrupted"),
        (
            Bad(status=302, headers={"Location": f"/api/models/{REPO}/revision/main"}),
            "cannot be reached (Exceeded maximum allowed redirects",
        ),
    ],
)
def test_information_goes_wrong(hub: HubServer, answer: Bad | int, message: str) -> None:
    hub.add(REPO, make_files(UNET))
    hub.answers["/api/"] = answer
    assert message in get_failure(REPO)


def test_listing_with_paths_outside(hub: HubServer, cache_folder: Path) -> None:
    """Only files that are needed are downloaded, whatever paths the Hub lists."""
    hub.add(REPO, make_files(UNET) | {"../../../evil": b"evil", "unet/../../evil": b"evil"})
    assert read_all(open_source(REPO).weights("unet", float16=False)) == [UNET]
    assert not [path for path in cache_folder.parent.rglob("*") if path.name == "evil"]


def test_empty_repository(hub: HubServer) -> None:
    hub.add(REPO, {})
    assert f"{REPO} has no model_index.json" in get_failure(REPO)


@pytest.mark.parametrize("bad", [Bad(length=2), Bad(body=b"<html>"), Bad(headers={"ETag": ""})])
def test_file_of_the_wrong_length_is_deleted(hub: HubServer, bad: Bad) -> None:
    """The next run downloads it again."""
    hub.add(REPO, make_files(UNET))
    hub.answers[UNET] = bad
    with pytest.raises(FileNotFoundError, match=f"{UNET} cannot be fetched: .* bytes instead of"):
        open_source(REPO).weights("unet", float16=False)
    hub.answers.clear()
    assert read_all(open_source(REPO).weights("unet", float16=False)) == [UNET]


def test_download_that_breaks_off_goes_on(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is downloaded twice."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    data = bytes(range(256)) * 40  # 10,240 bytes
    hub.add(REPO, {UNET: data})
    hub.answers[UNET] = Bad(cut=7000, then=200)
    (file,) = open_source(REPO).weights("unet", float16=False)
    assert file.read_bytes() == data
    assert sum(n for path, n in hub.sent.items() if UNET in path) == 10_240


@pytest.mark.parametrize("changed", [False, True])
def test_download_that_fails_is_done_by_the_next_run(hub: HubServer, changed: bool) -> None:
    """Complete files are not downloaded again; a file that has changed since is the new one.

    (The broken file starts from the beginning: huggingface_hub 2 keeps no part of it.)
    """
    data = bytes(range(256)) * 40
    hub.add(REPO, {**make_files(TEXT), UNET: data})
    hub.answers[UNET] = Bad(cut=7000, then=404)
    model = open_source(REPO)
    model.weights("text_encoder", float16=False)
    with pytest.raises(FileNotFoundError, match=f"{UNET} cannot be fetched"):
        model.weights("unet", float16=False)
    hub.answers.clear()
    hub.log.clear()
    if changed:
        data = data[::-1]
        hub.add(REPO, {**make_files(TEXT), UNET: data})
    model = open_source(REPO)
    (file,) = model.weights("unet", float16=False)
    assert file.read_bytes() == data
    if not changed:
        model.weights("text_encoder", float16=False)
    assert hub.fetched() == [UNET]
