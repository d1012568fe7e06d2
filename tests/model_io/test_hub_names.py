"""The names of models: known ones, folders and repositories, and suggestions for wrong ones."""

import re
from pathlib import Path

import pytest
from hub_files import REPO, UNET, UNET16, get_failure, make_files, read_all
from hub_server import HubServer, cache, write

from stable_diffusion.config.known_models import MODELS
from stable_diffusion.model_io.hub import open_source


def test_known_name(hub: HubServer) -> None:
    hub.add(MODELS["sd"].repo, make_files(UNET))
    model = open_source("sd")
    assert model.name == MODELS["sd"].repo
    assert read_all(model.weights("unet", float16=True)) == [UNET]


def test_former_repository_in_the_cache_needs_no_request(
    hub: HubServer, cache_folder: Path
) -> None:
    [former] = MODELS["sd"].former_repos
    cache(cache_folder, former, make_files(UNET))
    hub.add(MODELS["sd"].repo, make_files(UNET16))
    model = open_source("sd")
    assert model.name == former
    assert read_all(model.weights("unet", float16=True)) == [UNET]
    with pytest.raises(FileNotFoundError, match=f"the model is now {MODELS['sd'].repo}"):
        model.require("vae/config.json")
    assert hub.log == []

    cache(cache_folder, MODELS["sd"].repo, make_files(UNET16))
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
    cache(cache_folder, former, make_files(UNET))
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
    cache(cache_folder, REPO, make_files(UNET))
    assert get_failure(model).endswith(f": did you mean {meant}?")


@pytest.mark.parametrize(
    "model",
    ["org/other-model", "stabilityai/sd-vae", MODELS["sd"].repo, *MODELS["sd"].former_repos],
)
def test_no_suggestion(offline: None, cache_folder: Path, model: str) -> None:
    """There is no similar name, or the name itself is right."""
    cache(cache_folder, REPO, make_files(UNET))
    assert "did you mean" not in get_failure(model)
