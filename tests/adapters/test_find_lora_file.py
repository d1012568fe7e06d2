"""`--lora` with folders and names on the Hub."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import cache, write

from stable_diffusion.adapters.find_lora_file import find_lora_file
from stable_diffusion.cli.arguments.parse import parse, txt2image_parser
from stable_diffusion.cli.main import find_loras, report_errors
from stable_diffusion.cli.recipe.recipe import sha256
from stable_diffusion.cli.recipe.record import _Choices
from stable_diffusion.cli.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder; the Hub is offline, and its cache has `org/name`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    files = {"pytorch_lora_weights.safetensors": b"hub", "b.safetensors": b"other"}
    cache(tmp_path / "cache", "org/name", files)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*options: str) -> Settings:
    return parse(txt2image_parser(), ["a", *options])


@pytest.mark.parametrize(
    ("option", "name", "scale", "content"),
    [
        ("org/name", "org/name", 1, b"hub"),
        ("org/name:0.5", "org/name", 0.5, b"hub"),
        ("org/name@main:-2", "org/name@main", -2, b"hub"),
        ("org/name/b.safetensors:0.5", "org/name/b.safetensors", 0.5, b"other"),
        ("org/name@main/b.safetensors", "org/name@main/b.safetensors", 1, b"other"),
        ("./folder:0.5", "folder", 0.5, b"here"),
        ("folder/x:1", "folder/x:1", 1, b"colon"),
    ],
)
def test_names_and_recipes(folder, option, name, scale, content):
    """The recipe has the name that was given, and the digest of the file."""
    write(folder, {"folder/only.safetensors": b"here", "folder/x:1": b"colon"})
    [(found, found_scale)] = read("--lora", option).lora
    assert (found, found_scale) == (name, scale)
    settings = find_loras(read("--lora", option))
    [(file, _)] = settings.lora
    assert Path(file).read_bytes() == content and str(file) == name
    choices = _Choices.from_settings(settings)
    assert choices.lora == (f"{name}:{float(scale)}",)
    assert choices.lora_sha256 == (sha256(Path(file)),)


def test_usual_names_in_a_folder(folder):
    names = ["a.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
    for name in names:
        write(folder, {f"folder/{name}": name.encode()})
        assert Path(find_lora_file("folder")).read_bytes() == name.encode()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("org/none", "org/none is neither a folder nor in the Hub cache, and HF_HUB_OFFLINE"),
        ("org/name/c.safetensors", "org/name has no c.safetensors in the Hub cache"),
        ("folder", "folder has 2 safetensors files: name one of them, such as folder/a."),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_one_line(folder, capsys, option, message):
    write(folder, {"folder/a.safetensors": b"", "folder/b.safetensors": b""})
    assert report_errors(lambda: find_loras(read("--lora", option))) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
