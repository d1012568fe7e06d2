"""Models by name, folder and Hub repository, against a Hub on the loopback interface."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import Bad, Files, HubServer, cache, write

from stable_diffusion.config.known_models import MODELS
from stable_diffusion.model_io import hub as hub_module
from stable_diffusion.model_io.hub import open_source
from stable_diffusion.model_io.model import Model, announcements
from stable_diffusion.model_io.sources import BareVae
from stable_diffusion.model_io.weight_files import STEMS

REPO = "org/model"
INDEX = "diffusion_pytorch_model.safetensors.index"
UNET = "unet/diffusion_pytorch_model.safetensors"
LOAD_HUB = (  # this module only, without mlx
    "import sys, types\n"
    "for name in ('stable_diffusion', 'stable_diffusion.model_io', 'stable_diffusion.config'):\n"
    "    package = types.ModuleType(name)\n"
    "    package.__path__ = [name.replace('.', '/')]; sys.modules[name] = package\n"
    "from stable_diffusion.model_io.hub import open_source;"
)
UNET16 = "unet/diffusion_pytorch_model.fp16.safetensors"
TEXT = "text_encoder/model.safetensors"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
SHARDS16 = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


def files(*paths: str) -> Files:
    """Make files by their paths; the content of each is its own path."""
    return {path: path.encode() for path in ("model_index.json", "unet/config.json", *paths)}


def sharded(index: str, shards: list[str]) -> Files:
    """Make the files of a UNet in shards, and their index, with several tensors in each shard."""
    weight_map = {f"{name}.{tensor}": name for name in shards for tensor in ("weight", "bias")}
    index_file = {f"unet/{index}": json.dumps({"weight_map": weight_map}).encode()}
    return files(*(f"unet/{name}" for name in shards)) | index_file


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Return an empty Hub, with an empty cache.

    huggingface_hub reads the environment when it is imported, and transformers imports it before
    this file can. So its settings are changed where it keeps them; `test_environment` uses the
    environment, in a process of its own.
    """
    for state in (server.commits, server.refs, server.answers, server.log, server.sent):
        state.clear()
    set_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return server


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    files_url = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files_url)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Iterator[None]:
    """Set the offline mode, and check that the test does not ask the Hub anything."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield
    assert hub.log == []


def go_offline(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Cut the Hub off: by the setting of huggingface_hub, or by no answer."""
    if way == "set":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:  # the discard port of this machine, which refuses
        set_endpoint(monkeypatch, "http://127.0.0.1:9")


def list_requests(hub: HubServer) -> list[tuple[str, str]]:
    """Return the requests about the model: huggingface_hub may ask for other things, once."""
    return [(method, path) for method, path in hub.log if REPO in path]


def read_all(found: list[Path] | Path | None) -> list[str]:
    """Return the content of files, which is the path that `files` gave each."""
    assert found is not None
    return [path.read_text() for path in (found if isinstance(found, list) else [found])]


# --- downloads -----------------------------------------------------------------------------------


def test_only_needed_files_are_downloaded(hub: HubServer) -> None:
    hub.add(REPO, files(UNET, UNET16, TEXT, "unet/diffusion_pytorch_model.bin", "README.md"))
    model = open_source(REPO)
    assert model.name == REPO
    assert read_all(model.require("unet/config.json")) == ["unet/config.json"]
    assert model.find("tokenizer/vocab.json") is None
    assert read_all(model.weights("unet", float16=True)) == [UNET16]
    assert read_all(model.weights("text_encoder", float16=True)) == [TEXT]
    assert hub.fetched() == ["unet/config.json", UNET16, TEXT]
    assert len(list_requests(hub)) == 1 + 2 * 3  # one question, then HEAD and GET of each file


def test_filled_cache_costs_one_request(hub: HubServer) -> None:
    hub.add(REPO, files(UNET))
    for _ in range(2):
        hub.log.clear()
        model = open_source(REPO)
        model.require("unet/config.json")
        model.weights("unet", float16=True)
        model.find("unet/absent.json")
    assert list_requests(hub) == [("GET", f"/api/models/{REPO}/revision/main")]


def test_all_files_come_from_one_commit(hub: HubServer) -> None:
    hub.add(REPO, {"model_index.json": b"old", UNET: b"old"})
    model = open_source(REPO)
    hub.add(REPO, {"model_index.json": b"new", UNET: b"new"})
    assert read_all(model.weights("unet", float16=False)) == ["old"]
    assert read_all(open_source(REPO).weights("unet", float16=False)) == ["new"]


def test_revision(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(REPO, {UNET: b"old"}, revision="v1")
    hub.add(REPO, {UNET: b"pull"}, revision="refs/pr/1")
    hub.add(REPO, {UNET: b"new"})
    wanted = {"": "new", "@v1": "old", f"@{commit}": "old", "@refs/pr/1": "pull"}
    for revision, text in wanted.items():
        assert read_all(open_source(REPO + revision).require(UNET)) == [text]
    assert open_source(f"{REPO}@v1").name == f"{REPO}@v1"
    go_offline(monkeypatch, "set")
    for revision, text in wanted.items():
        assert read_all(open_source(REPO + revision).require(UNET)) == [text]


# --- which weights -------------------------------------------------------------------------------

PRECISIONS = [
    (files(UNET, UNET16), True, [UNET16]),
    (files(UNET, UNET16), False, [UNET]),
    (files(UNET), True, [UNET]),
    (files(UNET16), False, [UNET16]),
    (sharded(f"{INDEX}.json", SHARDS), True, SHARDS),
    (sharded(f"{INDEX}.json", SHARDS), False, SHARDS),
    (sharded(f"{INDEX}.fp16.json", SHARDS16) | files(UNET), True, SHARDS16),
    (sharded(f"{INDEX}.fp16.json", SHARDS16) | files(UNET), False, [UNET]),
    (sharded(f"{INDEX}.fp16.json", SHARDS16) | files(UNET, UNET16), True, [UNET16]),
    (sharded(f"{INDEX}.fp16.json", SHARDS16), False, SHARDS16),
    (sharded("diffusion_pytorch_model.safetensors.fp16.index.json", SHARDS16), True, SHARDS16),
    (sharded("diffusion_pytorch_model.fp16.safetensors.index.json", SHARDS16), True, SHARDS16),
]


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize(("contents", "float16", "wanted"), PRECISIONS)
def test_precision(
    hub: HubServer, tmp_path: Path, place: str, contents: Files, float16: bool, wanted: list[str]
) -> None:
    hub.add(REPO, contents)
    model = open_source(REPO if place == "hub" else str(write(tmp_path / "model", contents)))
    found = model.weights("unet", float16)
    assert read_all(found) == [p if "/" in p else f"unet/{p}" for p in wanted]
    assert [p for p in hub.fetched() if p.endswith(".safetensors")] == (
        read_all(found) if place == "hub" else []
    )


@pytest.mark.parametrize("way", ["set", "unreachable"])
@pytest.mark.parametrize("cached", [UNET, UNET16])
@pytest.mark.parametrize("float16", [True, False])
def test_offline_uses_the_precision_that_is_cached(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, way: str, cached: str, float16: bool
) -> None:
    hub.add(REPO, files(UNET, UNET16))
    online = open_source(REPO)
    online.require("model_index.json")
    online.weights("unet", float16=cached == UNET16)
    go_offline(monkeypatch, way)
    assert read_all(open_source(REPO).weights("unet", float16)) == [cached]


def test_online_full_precision_is_downloaded_beside_cached_fp16(hub: HubServer) -> None:
    hub.add(REPO, files(UNET, UNET16))
    assert read_all(open_source(REPO).weights("unet", float16=True)) == [UNET16]
    assert read_all(open_source(REPO).weights("unet", float16=False)) == [UNET]


def test_names_are_those_that_the_libraries_write(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    token_ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text_encoder = CLIPTextModel(CLIPTextConfig(**config, **token_ids, num_hidden_layers=2))
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)
    for component, network in {"text_encoder": text_encoder, "vae": vae}.items():
        for variant in (None, "fp16"):
            for size in ("1GB", "2KB"):
                folder = tmp_path / f"{component}-{variant}-{size}"
                network.save_pretrained(folder / component, variant=variant, max_shard_size=size)
                written = sorted((folder / component).glob("*.safetensors"))
                for float16 in (True, False):
                    assert sorted(open_source(folder).weights(component, float16)) == written
                assert (len(written) > 1) == (size == "2KB")


# --- broken and hostile models -------------------------------------------------------------------

EVIL = ["../../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors"]
EVIL += ["..", "", "x.bin", 7, None, ["x.safetensors"]]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_index_cannot_name_files_outside(
    hub: HubServer, tmp_path: Path, place: str, name: object
) -> None:
    index = {"weight_map": {"good": SHARDS[0], "evil": name}}
    contents = files(f"unet/{SHARDS[0]}") | {f"unet/{INDEX}.json": json.dumps(index).encode()}
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
    contents = sharded(f"{INDEX}.json", SHARDS)
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
    contents = files(pickle) | ({TEXT: b""} if pickle.startswith("unet/") else {})
    hub.add(REPO, contents)
    model = open_source(REPO if place == "hub" else write(tmp_path, contents))
    with pytest.raises(ValueError, match=f"{re.escape(pickle)}.*safe_serialization=True"):
        model.weights("unet", float16=False)
    assert hub.fetched() == []


def test_missing_files(hub: HubServer, tmp_path: Path) -> None:
    contents = files(TEXT, "text_encoder/pytorch_model.bin")
    hub.add(REPO, contents)
    for model in (open_source(REPO), open_source(write(tmp_path, contents))):
        assert read_all(model.weights("text_encoder", float16=True)) == [TEXT]
        with pytest.raises(FileNotFoundError, match=f"^{model.name} has no {UNET}$"):
            model.weights("unet", float16=True)
        with pytest.raises(FileNotFoundError, match=f"^{model.name} has no vae/config.json$"):
            model.require("vae/config.json")


# --- failures of the Hub -------------------------------------------------------------------------


def get_failure(model: str) -> str:
    """Return the error message, in one line, of opening a model and asking for a file."""
    with pytest.raises(FileNotFoundError) as caught:
        open_source(model).require("model_index.json")
    message = str(caught.value)
    assert "\n" not in message
    assert model.partition("@")[0] in message
    return message


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
    cache(cache_folder, REPO, files(UNET, "text_encoder/pytorch_model.bin"))
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
    hub.add(REPO, files(UNET))
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
    hub.add(REPO, files(UNET))
    assert f"{REPO}@v9 " in get_failure(f"{REPO}@v9")
    assert "no such revision" in get_failure(f"{REPO}@v9")


@pytest.mark.parametrize("status", [500, 503])
def test_server_error(hub: HubServer, status: int) -> None:
    hub.answers["/api/"] = status
    assert f"the Hub answers {status}" in get_failure(REPO)


def test_file_that_the_hub_refuses(hub: HubServer) -> None:
    hub.add(REPO, files(UNET))
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
    cache(cache_folder, REPO, files(UNET))
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
    hub.add(REPO, files(UNET))
    hub.answers["/api/"] = Bad(body=body)
    assert "what answers there is not the Hub (" in get_failure(REPO)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (429, "the Hub answers 429 Too Many Requests: try later"),
        (Bad(cut=20), "the connection broke off"),
        (
            Bad(status=302, headers={"Location": f"/api/models/{REPO}/revision/main"}),
            "cannot be reached (Exceeded maximum allowed redirects",
        ),
    ],
)
def test_information_goes_wrong(hub: HubServer, answer: Bad | int, message: str) -> None:
    hub.add(REPO, files(UNET))
    hub.answers["/api/"] = answer
    assert message in get_failure(REPO)


def test_listing_with_paths_outside(hub: HubServer, cache_folder: Path) -> None:
    """Only files that are needed are downloaded, whatever paths the Hub lists."""
    hub.add(REPO, files(UNET) | {"../../../evil": b"evil", "unet/../../evil": b"evil"})
    assert read_all(open_source(REPO).weights("unet", float16=False)) == [UNET]
    assert not [path for path in cache_folder.parent.rglob("*") if path.name == "evil"]


def test_empty_repository(hub: HubServer) -> None:
    hub.add(REPO, {})
    assert f"{REPO} has no model_index.json" in get_failure(REPO)


@pytest.mark.parametrize("bad", [Bad(length=2), Bad(body=b"<html>"), Bad(headers={"ETag": ""})])
def test_file_of_the_wrong_length_is_deleted(hub: HubServer, bad: Bad) -> None:
    """The next run downloads it again."""
    hub.add(REPO, files(UNET))
    hub.answers[UNET] = bad
    with pytest.raises(FileNotFoundError, match=f"{UNET} cannot be fetched: .* came in place of"):
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
    hub.add(REPO, {**files(TEXT), UNET: data})
    hub.answers[UNET] = Bad(cut=7000, then=404)
    model = open_source(REPO)
    model.weights("text_encoder", float16=False)
    with pytest.raises(FileNotFoundError, match=f"{UNET} cannot be fetched"):
        model.weights("unet", float16=False)
    hub.answers.clear()
    hub.log.clear()
    if changed:
        data = data[::-1]
        hub.add(REPO, {**files(TEXT), UNET: data})
    model = open_source(REPO)
    (file,) = model.weights("unet", float16=False)
    assert file.read_bytes() == data
    if not changed:
        model.weights("text_encoder", float16=False)
    assert hub.fetched() == [UNET]


def test_two_first_downloads_at_once(hub: HubServer, tmp_path: Path) -> None:
    """Both processes succeed with the same cache, and the files are right."""
    data = bytes(range(256)) * 2000
    hub.add(REPO, {**files(TEXT), UNET: data})
    hub.answers[UNET] = 0.2  # seconds, so that they overlap
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    code = LOAD_HUB + "print(open_source('org/model').weights('unet', True)[0].stat().st_size)"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=inherited | settings,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=30)[0] for process in processes] == [f"{len(data)}\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert not [*(tmp_path / "home").rglob("*.incomplete")]


# --- announcements -------------------------------------------------------------------------------


@pytest.mark.parametrize("float16", [True, False])
def test_announcement(hub: HubServer, float16: bool) -> None:
    """The line says what is downloaded, how much, and under which licence; or there is none."""
    hub.add(REPO, {UNET: b"x" * 2_000_000, UNET16: b"x" * 1_000_000, TEXT: b"x" * 500_000})
    model = Model(open_source(REPO))
    size = "1.5" if float16 else "2.5"
    line = f"Downloading {REPO}, {size} MB, licence: openrail++"
    assert announcements(model, STEMS, float16) == [line]
    assert hub.fetched() == []
    model.source.weights("unet", float16)
    line = f"Downloading {REPO}, 0.5 MB, licence: openrail++"
    assert announcements(model, STEMS, float16) == [line]
    model.source.weights("text_encoder", float16)
    assert announcements(model, STEMS, float16) == []


@pytest.mark.parametrize(
    ("index", "shards"), [(f"{INDEX}.json", SHARDS), (f"{INDEX}.fp16.json", SHARDS16)]
)
def test_announcement_of_shards(hub: HubServer, index: str, shards: list[str]) -> None:
    contents = sharded(index, shards)
    contents |= {f"unet/{name}": b"x" * 1_000_000 for name in (*SHARDS, *SHARDS16)}
    hub.add(REPO, contents)
    (line,) = announcements(Model(open_source(REPO)), ["unet"], float16="fp16" in index)
    assert ", 2.0 MB, " in line


def test_announcement_of_known_models_and_other_vaes(hub: HubServer, tmp_path: Path) -> None:
    for spec in MODELS.values():
        if spec.repo is not None:
            hub.add(spec.repo, files(UNET, "vae/diffusion_pytorch_model.safetensors"))
            (line,) = announcements(Model(open_source(spec.repo)), STEMS, float16=True)
            assert line == f"Downloading {spec.repo}, 0.0 MB, licence: {spec.licence}"
    hub.add(REPO, {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"x" * 3_000_000})
    model = Model(open_source(MODELS["sd"].repo), BareVae(open_source(REPO)))
    lines = announcements(model, STEMS, float16=False)
    assert len(lines) == 2 and f"Downloading {REPO}, 3.0 MB, licence: openrail++" in lines
    assert (
        announcements(Model(open_source(write(tmp_path, files(UNET)))), STEMS, float16=True) == []
    )
    assert announcements(Model(open_source("tiny")), STEMS, float16=True) == []


# --- names ---------------------------------------------------------------------------------------


def test_known_name(hub: HubServer) -> None:
    hub.add(MODELS["sd"].repo, files(UNET))
    model = open_source("sd")
    assert model.name == MODELS["sd"].repo
    assert read_all(model.weights("unet", float16=True)) == [UNET]


def test_former_repository_in_the_cache_needs_no_request(
    hub: HubServer, cache_folder: Path
) -> None:
    [former] = MODELS["sd"].former_repos
    cache(cache_folder, former, files(UNET))
    hub.add(MODELS["sd"].repo, files(UNET16))
    model = open_source("sd")
    assert model.name == former
    assert read_all(model.weights("unet", float16=True)) == [UNET]
    with pytest.raises(FileNotFoundError, match=f"the model is now {MODELS['sd'].repo}"):
        model.require("vae/config.json")
    assert hub.log == []

    cache(cache_folder, MODELS["sd"].repo, files(UNET16))
    assert read_all(open_source("sd").weights("unet", float16=True)) == [UNET16]
    assert hub.log != []


def test_former_repository_as_the_original_example_cached_it(
    hub: HubServer, cache_folder: Path
) -> None:
    """It did not download the model index."""
    [former] = MODELS["sd"].former_repos
    cache(cache_folder, former, {"unet/config.json": b"{}", UNET: UNET.encode()})
    model = open_source("sd")
    assert model.name == former
    assert read_all(model.weights("unet", float16=False)) == [UNET]
    assert hub.log == []


def test_former_repository_by_its_own_name(hub: HubServer, cache_folder: Path) -> None:
    [former] = MODELS["sd"].former_repos
    assert f"the model is now {MODELS['sd'].repo}" in get_failure(former)
    cache(cache_folder, former, files(UNET))
    assert read_all(open_source(former).require(UNET)) == [UNET]


def test_known_name_before_folder_before_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add(MODELS["sd"].repo, {UNET: b"known"})
    hub.add(REPO, {UNET: b"repository"})
    assert read_all(open_source(REPO).require(UNET)) == ["repository"]
    write(tmp_path / "sd", {UNET: b"folder"})
    write(tmp_path / REPO, {UNET: b"folder"})
    assert read_all(open_source("sd").require(UNET)) == ["known"]
    assert read_all(open_source("./sd").require(UNET)) == ["folder"]
    assert read_all(open_source(Path("sd")).require(UNET)) == ["folder"]
    hub.log.clear()
    assert read_all(open_source(REPO).require(UNET)) == ["folder"]
    assert open_source(REPO).name == REPO
    assert hub.log == []


@pytest.mark.parametrize("path", ["./none", "/none", "~/none", "../a/b", "a/b/c", "a\\b", "a/b/"])
def test_missing_folder(offline: None, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {re.escape(path)}$"):
        open_source(path)


def test_file_and_path_object_are_no_repositories(offline: None, tmp_path: Path) -> None:
    file = write(tmp_path, {"model.safetensors": b""}) / "model.safetensors"
    for model in (str(file), file):
        with pytest.raises(NotADirectoryError, match="is a file"):
            open_source(model)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_source(Path(REPO))


@pytest.mark.parametrize(
    "model", ["", "a b", "org/-x", "org--x", "org/x y", "@v1", f"{REPO}@", f"{REPO}@../x"]
)
def test_malformed_name(offline: None, model: str) -> None:
    with pytest.raises(ValueError, match=r"neither a folder|not a revision") as caught:
        open_source(model)
    assert type(caught.value) is ValueError


def test_unknown_short_name_lists_the_known(offline: None) -> None:
    assert ", ".join(MODELS) in get_failure("nonsense")


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("sdlx", "sdxl"),
        ("sdxl-turbo", "sdxl"),
        ("stable-diffusion-v1-5", "sd-1-5"),
        ("stabilityai/sdxl-trubo", "stabilityai/sdxl-turbo"),
        ("runwayml/stable-difusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("org/modle", REPO),
        ("modell", REPO),
    ],
)
def test_did_you_mean(offline: None, cache_folder: Path, model: str, meant: str) -> None:
    """Known models and those in the cache are suggested."""
    cache(cache_folder, REPO, files(UNET))
    assert get_failure(model).endswith(f": did you mean {meant}?")


@pytest.mark.parametrize(
    "model",
    ["org/other-model", "stabilityai/sd-vae", MODELS["sd"].repo, *MODELS["sd"].former_repos],
)
def test_no_suggestion(offline: None, cache_folder: Path, model: str) -> None:
    """There is no similar name, or the name itself is right."""
    cache(cache_folder, REPO, files(UNET))
    assert "did you mean" not in get_failure(model)


# --- the real environment ------------------------------------------------------------------------


def test_environment(hub: HubServer, tmp_path: Path) -> None:
    """Settings come from the environment: online, offline, and with a folder only."""
    hub.add(REPO, files(UNET))
    folder = write(tmp_path / "folder", files(UNET))
    code = (
        f"{LOAD_HUB}"
        "print(open_source(sys.argv[1]).weights('unet', True)[0].read_text());"
        "print('huggingface_hub' in sys.modules, 'PIL' in sys.modules)"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "TQDM_POSITION": "-1"}
    for model, environment, uses_hub in (
        (folder, {"HF_HUB_OFFLINE": "1"}, False),
        (REPO, {"HF_HUB_OFFLINE": "0"}, True),
        (REPO, {"HF_HUB_OFFLINE": "1"}, True),
    ):
        process = subprocess.run(
            [sys.executable, "-c", code, str(model)],
            env=inherited | settings | environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.splitlines() == [UNET, f"{uses_hub} False"]
        progress_bar = uses_hub and environment["HF_HUB_OFFLINE"] == "0"
        assert ("safetensors" in process.stderr) == progress_bar
    assert hub.fetched() == [UNET]
