"""`--version` and `--list-models` work without a network, whatever is in the cache."""

import json
from pathlib import Path

import huggingface_hub.constants
import mlx.core as mx
import pytest
from gpu import as_on
from hub_server import Files, cache, write

import txt2image
from stable_diffusion import __version__
from stable_diffusion.config.known_models import MODELS
from stable_diffusion.device.backend import Backend
from stable_diffusion.model_io import hub_cache

MEGABYTE = bytes(10**6)
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
WEIGHTS = (
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
SDXL_TURBO = "stabilityai/sdxl-turbo"


def make_model(pipeline: str = "StableDiffusionPipeline", *without: str) -> Files:
    """Return the files of a model of 3 MB, without some that were not downloaded."""
    index = {"model_index.json": json.dumps({"_class_name": pipeline}).encode()}
    weights = {path: MEGABYTE for path in WEIGHTS if path not in without}
    return index | dict.fromkeys(CONFIGS, b"{}") | weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the Hub's cache, which does not exist."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def get_output(capsys: pytest.CaptureFixture[str], option: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        txt2image.main([option])
    output = capsys.readouterr()
    assert (stopped.value.code, output.err) == (0, "")
    for line in output.out.splitlines():
        assert len(line) <= 80 or " " not in line.strip() or line.startswith("The cache: ")
    return output.out


def find_entry(text: str, title: str) -> str:
    """Return the paragraph about a model, on one line."""
    (found,) = [part for part in text.split("\n\n") if part.split()[0] == title]
    return " ".join(found.split()[1:])


@pytest.mark.parametrize("kind", Backend)
def test_version(capsys, kind):
    with as_on(kind):
        line = get_output(capsys, "--version")
    assert line == f"Stable Diffusion for MLX {__version__} (MLX {mx.__version__}, {kind.value})\n"


def test_without_a_cache(folder, capsys):
    text = get_output(capsys, "--list-models")
    for name, spec in MODELS.items():
        facts = find_entry(text, name)
        assert f"{spec.size}x{spec.size} pixels, {spec.steps} steps" in facts
        assert f"licence: {spec.licence}" in facts
        assert (spec.repo is None) or f"{spec.repo}, not in the cache" in facts
    assert "in this package" in find_entry(text, "tiny")
    assert "Others" not in text
    assert not folder.exists()


def test_models_in_the_cache(folder, capsys):
    """The list has known, withdrawn and other models, and nothing that is not a model."""
    cache(folder, SDXL_TURBO, make_model())
    cache(folder, SDXL_TURBO, {"vae/config.json": MEGABYTE}, commit="d" * 40)  # in the same size
    cache(folder, *MODELS["sd"].former_repos, make_model("StableDiffusionPipeline", *WEIGHTS[1:]))
    cache(folder, "org/fine-tune", make_model())
    cache(folder, "org/flux", make_model("FluxPipeline"))
    cache(folder, "org/language-model", {"config.json": b"{}", "model.safetensors": MEGABYTE})
    text = get_output(capsys, "--list-models")
    assert f"{SDXL_TURBO}, 4.0 MB in the cache" in find_entry(text, "sdxl")
    former = f"{MODELS['sd'].former_repos[0]}, 1.0 MB in the cache"
    assert f"{former}, without the weights of vae, text_encoder" in find_entry(text, "sd")
    assert find_entry(text, "org/fine-tune") == "3.0 MB in the cache"
    assert find_entry(text, "org/flux").startswith("3.0 MB in the cache, but it cannot be run")
    assert "this is FLUX" in find_entry(text, "org/flux")
    assert "language-model" not in text
    assert str(folder) in text


def test_damaged_caches(folder, capsys):
    """The cache has broken links, folders without a commit, and files in place of folders."""
    cache(folder, SDXL_TURBO, make_model())
    unet = folder / "models--stabilityai--sdxl-turbo/snapshots" / ("c" * 40) / WEIGHTS[0]
    unet.unlink()
    unet.symlink_to(folder / "nowhere")
    cache(folder, "org/index", make_model() | {"model_index.json": b"no JSON"})
    write(folder, {"models--org--file": b"", "models--org--refs/refs/main": b"c" * 40})
    write(folder, {"models--org--index/refs/main": b"\xff"})
    text = get_output(capsys, "--list-models")
    assert find_entry(text, "sdxl").count("without the weights of unet") == 1
    assert "is not a JSON file" in find_entry(text, "org/index")
    assert "org/file" not in text and "org/refs" not in text


def test_a_cache_that_cannot_be_read(folder, monkeypatch, capsys):
    def refuse(_: Path) -> int:
        raise PermissionError("Permission denied: refs/main")

    monkeypatch.setattr(hub_cache, "count_bytes", refuse)
    with pytest.raises(SystemExit) as stopped:
        txt2image.main(["--list-models"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: Permission denied: refs/main\n"


def test_unusual_names(folder, capsys):
    cache(folder, "org/a\x1b[2Jb\u202ec", make_model())
    assert r"org/a\x1b[2Jb\u202ec" in get_output(capsys, "--list-models")
