"""A Hub on the loopback interface, and single files, for the tests of models."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_files import set_endpoint
from hub_server import HubServer


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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Iterator[None]:
    """Set the offline mode, and check that the test does not ask the Hub anything."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield
    assert hub.log == []


@pytest.fixture(scope="session")
def single(checkpoint, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that gives the single file of a kind, which must not be changed."""

    @cache
    def write(kind: str) -> Path:
        from original_layout import write_single_file

        file = tmp_path_factory.mktemp("single") / f"{kind}.safetensors"
        return write_single_file(checkpoint(kind), file)

    return write


@pytest.fixture
def spoil_file(single, tmp_path) -> Callable[[str, Callable], str]:
    """Return a function that writes a single file whose tensors another function has changed."""

    def write(kind: str, change: Callable[[dict], dict | None]) -> str:
        from original_layout import save
        from safetensors.numpy import load_file

        tensors = load_file(single(kind))
        return str(save(change(tensors) or tensors, tmp_path / "x.safetensors"))

    return write
