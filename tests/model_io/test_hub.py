"""Models on the Hub: which files are downloaded, from a Hub on the loopback interface."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_files import (
    INDEX,
    REPO,
    SHARDS,
    SHARDS16,
    TEXT,
    UNET,
    UNET16,
    go_offline,
    list_requests,
    make_files,
    make_shards,
    read_all,
)
from hub_server import Files, HubServer, write

from stable_diffusion.config.known_models import MODELS
from stable_diffusion.model_io.hub import open_source
from stable_diffusion.model_io.model import Model, describe_downloads
from stable_diffusion.model_io.sources import BareNetwork
from stable_diffusion.model_io.weight_files import STEMS

LOAD_HUB = (  # imports the module `hub` alone, without mlx
    "import sys, types\n"
    "for name in ('stable_diffusion', 'stable_diffusion.model_io', 'stable_diffusion.config'):\n"
    "    package = types.ModuleType(name)\n"
    "    package.__path__ = [name.replace('.', '/')]; sys.modules[name] = package\n"
    "from stable_diffusion.model_io.hub import open_source;"
)


def test_only_needed_files_are_downloaded(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET, UNET16, TEXT, "unet/diffusion_pytorch_model.bin", "README.md"))
    model = open_source(REPO)
    assert model.name == REPO
    assert read_all(model.require("unet/config.json")) == ["unet/config.json"]
    assert model.find("tokenizer/vocab.json") is None
    assert read_all(model.weights("unet", float16=True)) == [UNET16]
    assert read_all(model.weights("text_encoder", float16=True)) == [TEXT]
    assert hub.fetched() == ["unet/config.json", UNET16, TEXT]
    assert len(list_requests(hub)) == 1 + 2 * 3  # one question, then HEAD and GET of each file


def test_filled_cache_costs_one_request(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET))
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


def test_two_first_downloads_at_once(hub: HubServer, tmp_path: Path) -> None:
    """Both processes succeed with the same cache, and the files are right."""
    data = bytes(range(256)) * 2000
    hub.add(REPO, {**make_files(TEXT), UNET: data})
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


# --- which weights -------------------------------------------------------------------------------

PRECISIONS = [
    (make_files(UNET, UNET16), True, [UNET16]),
    (make_files(UNET, UNET16), False, [UNET]),
    (make_files(UNET), True, [UNET]),
    (make_files(UNET16), False, [UNET16]),
    (make_shards(f"{INDEX}.json", SHARDS), True, SHARDS),
    (make_shards(f"{INDEX}.json", SHARDS), False, SHARDS),
    (make_shards(f"{INDEX}.fp16.json", SHARDS16) | make_files(UNET), True, SHARDS16),
    (make_shards(f"{INDEX}.fp16.json", SHARDS16) | make_files(UNET), False, [UNET]),
    (make_shards(f"{INDEX}.fp16.json", SHARDS16) | make_files(UNET, UNET16), True, [UNET16]),
    (make_shards(f"{INDEX}.fp16.json", SHARDS16), False, SHARDS16),
    (make_shards("diffusion_pytorch_model.safetensors.fp16.index.json", SHARDS16), True, SHARDS16),
    (make_shards("diffusion_pytorch_model.fp16.safetensors.index.json", SHARDS16), True, SHARDS16),
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
    hub.add(REPO, make_files(UNET, UNET16))
    online = open_source(REPO)
    online.require("model_index.json")
    online.weights("unet", float16=cached == UNET16)
    go_offline(monkeypatch, way)
    assert read_all(open_source(REPO).weights("unet", float16)) == [cached]


def test_online_full_precision_is_downloaded_beside_cached_fp16(hub: HubServer) -> None:
    hub.add(REPO, make_files(UNET, UNET16))
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


# --- announcements -------------------------------------------------------------------------------


@pytest.mark.parametrize("float16", [True, False])
def test_announcement(hub: HubServer, float16: bool) -> None:
    """The line says what is downloaded, how much, and under which licence; or there is none."""
    hub.add(REPO, {UNET: b"x" * 2_000_000, UNET16: b"x" * 1_000_000, TEXT: b"x" * 500_000})
    model = Model(open_source(REPO))
    size = "1.5" if float16 else "2.5"
    line = f"Downloading {REPO}, {size} MB, licence: openrail++"
    assert describe_downloads(model, STEMS, float16) == [line]
    assert hub.fetched() == []
    model.source.weights("unet", float16)
    line = f"Downloading {REPO}, 0.5 MB, licence: openrail++"
    assert describe_downloads(model, STEMS, float16) == [line]
    model.source.weights("text_encoder", float16)
    assert describe_downloads(model, STEMS, float16) == []


@pytest.mark.parametrize(
    ("index", "shards"), [(f"{INDEX}.json", SHARDS), (f"{INDEX}.fp16.json", SHARDS16)]
)
def test_announcement_of_shards(hub: HubServer, index: str, shards: list[str]) -> None:
    contents = make_shards(index, shards)
    contents |= {f"unet/{name}": b"x" * 1_000_000 for name in (*SHARDS, *SHARDS16)}
    hub.add(REPO, contents)
    (line,) = describe_downloads(Model(open_source(REPO)), ["unet"], float16="fp16" in index)
    assert ", 2.0 MB, " in line


def test_announcement_of_known_models_and_other_vaes(hub: HubServer, tmp_path: Path) -> None:
    for spec in MODELS.values():
        if spec.repo is not None:
            hub.add(spec.repo, make_files(UNET, "vae/diffusion_pytorch_model.safetensors"))
            (line,) = describe_downloads(Model(open_source(spec.repo)), STEMS, float16=True)
            assert line == f"Downloading {spec.repo}, 0.0 MB, licence: {spec.licence}"
    hub.add(REPO, {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"x" * 3_000_000})
    model = Model(open_source(MODELS["sd"].repo), BareNetwork(open_source(REPO), "vae"))
    lines = describe_downloads(model, STEMS, float16=False)
    assert len(lines) == 2 and f"Downloading {REPO}, 3.0 MB, licence: openrail++" in lines
    in_folder = Model(open_source(write(tmp_path, make_files(UNET))))
    assert describe_downloads(in_folder, STEMS, float16=True) == []
    assert describe_downloads(Model(open_source("tiny")), STEMS, float16=True) == []


# --- the real environment ------------------------------------------------------------------------


def test_environment(hub: HubServer, tmp_path: Path) -> None:
    """Settings come from the environment: online, offline, and with a folder only."""
    hub.add(REPO, make_files(UNET))
    folder = write(tmp_path / "folder", make_files(UNET))
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
