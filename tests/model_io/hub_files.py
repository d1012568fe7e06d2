"""Files of a model on a Hub, and what the tests of the Hub share."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import Files, HubServer

from stable_diffusion.model_io.hub import open_source

REPO = "org/model"
INDEX = "diffusion_pytorch_model.safetensors.index"
UNET = "unet/diffusion_pytorch_model.safetensors"
UNET16 = "unet/diffusion_pytorch_model.fp16.safetensors"
TEXT = "text_encoder/model.safetensors"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
SHARDS16 = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


def make_files(*paths: str) -> Files:
    """Make files by their paths; the content of each is its own path."""
    return {path: path.encode() for path in ("model_index.json", "unet/config.json", *paths)}


def make_shards(index: str, shards: list[str]) -> Files:
    """Make the files of a UNet in shards, and their index, with several tensors in each shard."""
    weight_map = {f"{name}.{tensor}": name for name in shards for tensor in ("weight", "bias")}
    content = {"metadata": {"total_size": float("nan")}, "weight_map": weight_map}
    index_file = {f"unet/{index}": json.dumps(content).encode()}
    return make_files(*(f"unet/{name}" for name in shards)) | index_file


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    files_url = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files_url)


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
    """Return the content of files, which is the path that `make_files` gave each."""
    assert found is not None
    return [path.read_text() for path in (found if isinstance(found, list) else [found])]


def get_failure(model: str) -> str:
    """Return the error message, in one line, of opening a model and asking for a file."""
    with pytest.raises(FileNotFoundError) as caught:
        open_source(model).require("model_index.json")
    message = str(caught.value)
    assert "\n" not in message
    assert model.partition("@")[0] in message
    return message
