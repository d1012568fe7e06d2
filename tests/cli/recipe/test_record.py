"""`record.py`: the model and files that the recipe in a picture names."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import image2image
import txt2image
from stable_diffusion.cli.arguments import parse
from stable_diffusion.cli.job import Job
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.record import RecipeComparison, Record, Texts, _list_model_names
from stable_diffusion.cli.settings import Settings
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE
from stable_diffusion.images.writing import save_image
from stable_diffusion.model_io.hub import Repository
from stable_diffusion.model_io.model import Model
from stable_diffusion.model_io.sources import BareNetwork, Source

COMMIT = "0123456789abcdef"
JOB = Job("a cat", seed=3, width=64, height=64, steps=2, cfg=2.0, sampler="ddim")


def parse_settings(*options: str) -> Settings:
    return parse.parse(parse.txt2image_parser(), ["a cat", *options])


def make_record(model: Model, *options: str) -> Record:
    return Record(parse_settings(*options), model, float16=False)


def read_recipe(texts: Texts) -> Recipe:
    return Recipe.from_json(texts[RECIPE], "a.png")


def make_repository(repo: str) -> Repository:
    return Repository(repo, f"{repo}@main", Path("snapshots") / COMMIT, None, "")


def test_a_model_on_the_hub_is_pinned_to_its_commit():
    model = Model(make_repository("org/model"), BareNetwork(make_repository("org/vae"), "vae"))
    record = make_record(model, "--model", "org/model@main", "--vae", "org/vae")
    recipe = read_recipe(record.describe(JOB))
    assert (recipe.model, recipe.revision) == ("org/model", COMMIT)
    assert recipe.options["model"] == f"org/model@{COMMIT}"
    assert recipe.vae == f"org/vae@{COMMIT}"


@pytest.mark.parametrize(
    ("given", "written"),
    [("models/mine", "models/mine"), ("/disk/mine", "/disk/mine"), ("/home/me/mine", "~/mine")],
)
def test_paths_are_as_given_except_the_home_folder(monkeypatch, given, written):
    monkeypatch.setenv("HOME", "/home/me")
    model = Model(Source(given, Path(given)))
    texts = make_record(model, "--model", given, "--vae", given).describe(JOB)
    recipe = read_recipe(texts)
    assert (recipe.model, recipe.vae, recipe.revision) == (written, written, None)
    assert "Model: mine, VAE: mine" in texts[PARAMETERS] and "/" not in texts[PARAMETERS]


def test_a_user_without_a_home_folder(monkeypatch):
    """A container may have no `HOME`, and an account that the system does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does then
    texts = make_record(Model(Source("tiny", Path("tiny"))), "--model", "/disk/mine").describe(JOB)
    assert read_recipe(texts).model == "/disk/mine"


def test_bits():
    """A recipe names only those that were given: without, `-q` leaves convolutions as they are."""
    model = Model(Source("tiny", Path("tiny")))
    for options, bits in (([], None), (["--unet-bits=8"], 8)):
        recipe = read_recipe(make_record(model, "-q", *options).describe(JOB))
        assert (recipe.quantize, recipe.unet_bits, recipe.text_encoder_bits) == (True, bits, None)


def test_grids():
    """A grid has a recipe only if one recipe makes all its pictures."""
    jobs = [replace(JOB, seed=3 + i, index=1 + i) for i in range(4)]
    model = Model(Source("tiny", Path("tiny")))
    recipe = read_recipe(make_record(model).describe_grid(jobs, 2))
    assert (recipe.n_images, recipe.n_rows, recipe.seed) == (4, 2, 3)
    assert make_record(model).describe_grid([*jobs[:3], replace(jobs[3], prompt="a dog")], 2) == {}
    assert make_record(model).describe_grid([*jobs[:3], replace(jobs[3], seed=9)], 2) == {}
    assert make_record(model, "--no-metadata").describe_grid(jobs, 2) == {}


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ([], False),
        (["--model=sdxl@main", "--model=sdxl"], False),
        (["--model=stabilityai/sdxl-turbo@main"], False),
        (["--vae=org/vae"], False),
        (["--lora=./a.safetensors:0.5"], False),
        (["--no-float16"], False),
        (["--model=sd"], True),
        (["--model=./sdxl"], True),
        (["--vae=org/other"], True),
        (["--unet=org/vae"], True),
        (["--lora=a.safetensors:1"], True),
        (["--lora=a.safetensors:0.5", "--lora=a.safetensors:0.5"], True),
        (["--embedding=<a>=a.safetensors"], True),
        (["--quantize"], True),
        (["--quantize", "--unet-bits=4"], True),
        (["--float16"], True),
        (["--prediction-type=epsilon"], True),
    ],
)
def test_pictures_that_differ(tmp_path, monkeypatch, options, differs):
    """The settings or the job ask for another picture than the one that exists."""
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").write_bytes(b"a")
    model = Model(
        make_repository("stabilityai/sdxl-turbo"), BareNetwork(make_repository("org/vae"), "vae")
    )
    usual = ["--model=sdxl", "--vae=org/vae", "--lora=a.safetensors:0.5"]
    texts = make_record(model, *usual).describe(JOB)
    save_image("made.png", np.zeros((64, 64, 3), np.uint8), texts)

    if any(option.startswith("--lora") for option in options):
        usual.pop()  # they add up
    comparison = RecipeComparison(parse_settings(*usual, *options))
    assert comparison.differs(Path("made.png"), JOB) is differs
    if not differs:
        assert comparison.differs(Path("made.png"), replace(JOB, prompt="a dog"))
        assert not comparison.differs(Path("made.png"), replace(JOB, steps=None, sampler=None))
        Path("a.safetensors").write_bytes(b"b")  # trained on, under the same name
        assert RecipeComparison(parse_settings(*usual, *options)).differs(Path("made.png"), JOB)


@dataclass
class OpenControl:
    """A control model whose files are known, and not read."""

    source: Source


def test_control_models_on_the_hub(tmp_path, monkeypatch):
    """Each is pinned to its commit, and the short name asks for the same picture."""
    monkeypatch.chdir(tmp_path)
    save_image("a.png", np.zeros((64, 64, 3), np.uint8))
    repo = "lllyasviel/control_v11p_sd15_canny"
    words = ["--control=canny=a.png:0.5", "--control=org/u@depth=a.png"]
    settings = parse_settings("--model=tiny", *words)
    model = Model(Source("tiny", Path("tiny")))
    opened = {"canny": OpenControl(make_repository(repo)), "org/u": OpenControl(Source("", Path()))}
    texts = Record(settings, model, False, opened).describe(JOB)
    assert read_recipe(texts).control == (f"{repo}@{COMMIT}=a.png:0.5", "org/u@depth=a.png:1")
    save_image("made.png", np.zeros((64, 64, 3), np.uint8), texts)
    for first, second, differs in (
        ("canny=a.png:0.5", "org/u@depth=a.png", False),
        (f"{repo}@main=a.png:0.5", "org/u@x@depth=a.png", False),
        ("canny=a.png", "org/u@depth=a.png", True),
        ("depth=a.png:0.5", "org/u@depth=a.png", True),
        ("canny=a.png:0.5", "org/u@tile=a.png", True),
        ("canny=a.png:0.5", "org/v@depth=a.png", True),
    ):
        asked = parse_settings("--model=tiny", f"--control={first}", f"--control={second}")
        assert RecipeComparison(asked).differs(Path("made.png"), JOB) is differs, (first, second)
    alone = parse_settings("--model=tiny", words[0])
    assert RecipeComparison(alone).differs(Path("made.png"), JOB)


def test_unet_of_a_file_on_the_hub():
    """Its recipe has the commit, and asks for the same picture as its name without one."""

    class HubFile(Source):
        commit = ("org/name/a.safetensors", COMMIT)

    model = Model(make_repository("org/model"), unet=HubFile("a", Path()))
    given = "org/name@v1/a.safetensors"
    recipe = read_recipe(make_record(model, f"--unet={given}").describe(JOB))
    assert recipe.unet == f"org/name/a.safetensors@{COMMIT}"
    names = _list_model_names(recipe.unet)
    assert names & _list_model_names(given)
    assert not names & _list_model_names("org/name/b.safetensors")


@pytest.mark.parametrize(("platform", "differs"), [("darwin", False), ("linux", True)])
def test_names_that_a_mac_takes_for_one(tmp_path, monkeypatch, platform, differs):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.chdir(tmp_path)
    composed, decomposed = "caf\xe9.safetensors", "Cafe\u0301.safetensors"
    for name in (composed, decomposed):  # the same file on a Mac
        Path(name).write_bytes(b"a")
    model = Model(Source("a model", Path()))
    for option in ("--model={}", "--lora={}:0.5", "--vae={}"):
        texts = make_record(model, option.format(composed)).describe(JOB)
        save_image("made.png", np.zeros((64, 64, 3), np.uint8), texts)
        comparison = RecipeComparison(parse_settings(option.format(decomposed)))
        assert comparison.differs(Path("made.png"), JOB) is differs


def test_files_are_read_once_for_their_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").write_bytes(b"a")
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file, name: str):
        read.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(2):
        make_record(
            Model(Source("tiny", Path("tiny"))), "--lora=a.safetensors", "--lora=./a.safetensors:2"
        )
    RecipeComparison(parse_settings("--lora=a.safetensors"))
    assert len(read) == 1


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (txt2image.main, "--lora={}"),
        (txt2image.main, "--embedding=x={}"),
        (image2image.main, "{}"),
        (image2image.main, "--from-image=made.png {}"),
    ],
)
def test_a_terabyte_is_refused_unread(
    tmp_path, monkeypatch, capsys, main: Callable[[list[str]], int], option: str
):
    """So it is if its content would be compared, as pictures were made with such a file before."""
    monkeypatch.chdir(tmp_path)
    file = Path("large.safetensors")
    file.write_bytes(b"BM")
    os.truncate(file, 1 << 40)
    Path("p.txt").write_text("a cat\n")
    recipe = Recipe(
        prompt="a cat", model="tiny", strength=0.9, image=file.name, image_sha256="0" * 64
    )
    made = np.zeros((64, 64, 3), np.uint8)
    for path in ("made.png", "p/0001.png"):
        Path(path).parent.mkdir(exist_ok=True)
        save_image(path, made, {RECIPE: recipe.to_json()})
    words = option.format(file).split()
    if not option.startswith("--from-image"):
        words.append("--prompts-file=p.txt")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--model=tiny"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "large.safetensors" in line and "1099.5 GB" in line
