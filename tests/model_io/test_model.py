"""A model is opened once, and each of its config files is read once."""

import json
from collections import Counter
from pathlib import Path

import pytest
from ours import python

from stable_diffusion.config.known_models import PACKAGE
from stable_diffusion.model_io import loaders, sources
from stable_diffusion.model_io.loaders import open_model
from stable_diffusion.pipeline import pipeline_class

# Runs the script with the arguments given, and prints the JSON files of `tiny` that it opens.
COUNT_READS = f"""
import sys
from collections import Counter
counts = Counter()

def count(event, arguments):
    if event == "open" and str(arguments[0]).startswith({str(PACKAGE / "tiny")!r}):
        counts[str(arguments[0])] += 1

sys.addaudithook(count)
import txt2image
status = txt2image.main(sys.argv[1:])
for file, n in counts.items():
    if file.endswith(".json"):
        print(n, file)
sys.exit(status)
"""


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """Count how often each config file is read, by its path in the model."""
    counts: Counter[str] = Counter()
    read_json = sources.read_json

    def count(file: Path, **options):
        counts[f"{file.parent.name}/{file.name}"] += 1
        return read_json(file, **options)

    monkeypatch.setattr(sources, "read_json", count)
    return counts


def test_a_run_of_the_script_opens_each_config_once(tmp_path):
    output = tmp_path / "o.png"
    arguments = ["a lighthouse", "--model=tiny", "--steps=1", "--n_images=1"]
    done = python("-c", COUNT_READS, *arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line.endswith(".json")]
    counts = {Path(file): int(n) for n, file in lines}
    configs = {*(PACKAGE / "tiny").rglob("*.json")} - {*(PACKAGE / "tiny/controlnet").iterdir()}
    assert counts == dict.fromkeys(configs, 1)


def test_configs_are_read_once_by_all_loaders(checkpoint, reads):
    """Pipeline, loaders and a copy with another prediction type share what was read."""
    model = open_model(checkpoint("sdxl"))
    assert not reads
    pipeline_class(model.config)(model)
    loaders.load_unet(model)
    loaders.load_text_encoder(model, model_key="text_encoder_2")
    loaders.load_autoencoder(model)
    loaders.load_diffusion_config(model)
    assert open_model(model) is model
    other = open_model(model, prediction_type="v_prediction")
    assert other.config.diffusion.prediction_type == "v_prediction"
    model.source.config("model_index.json")
    files = ("unet", "vae", "text_encoder", "text_encoder_2")
    names = ["sdxl/model_index.json", "scheduler/scheduler_config.json"]
    assert reads == dict.fromkeys([*names, *(f"{name}/config.json" for name in files)], 1)


def test_changed_files_are_seen_by_the_next_opening(copy):
    """The model that is open already does not change."""
    folder = copy("sd-1")
    model = open_model(folder)
    assert model.config.diffusion.prediction_type == "epsilon"
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    assert model.config.diffusion.prediction_type == "epsilon"
    assert open_model(folder).config.diffusion.prediction_type == "sample"


def test_callers_may_change_the_content_of_a_config(checkpoint):
    """They get a copy; `convert` adds keys to it."""
    source = open_model(checkpoint("sd-1")).source
    content, _ = source.config("unet/config.json")
    content["block_out_channels"].append(7)
    assert 7 not in source.config("unet/config.json")[0]["block_out_channels"]


def test_an_open_model_with_another_vae_gives_that_vae(checkpoint):
    model = open_model(checkpoint("sd-1"), vae=checkpoint("sd-2"))
    third = open_model(checkpoint("sd-1"), vae=model)
    assert third.source_of("vae") is model.source_of("vae")
    assert third.source_of("unet").root == checkpoint("sd-1")


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_vae_alone_has_no_other_network(checkpoint, component):
    file = checkpoint("sd-1") / "vae" / "diffusion_pytorch_model.safetensors"
    model = open_model(checkpoint("sd-1"), vae=file)
    vae = model.source_of("vae")
    assert vae.scaling_factor() is None
    for ask in (vae.config, vae.layout, lambda name: vae.weights(name, float16=False)):
        with pytest.raises(FileNotFoundError, match=f"has no {component}: it is a VAE"):
            ask(component)


@pytest.mark.parametrize("number", ["-Infinity", "NaN", "1e999"])
def test_numbers_that_are_not_finite(copy, number):
    """diffusers writes -Infinity into the configs of its solvers: only a used key is refused."""
    folder = copy("sd-1")
    file = folder / "scheduler" / "scheduler_config.json"
    written = file.read_text()
    expected = open_model(folder).diffusion_config

    def read(first: str):
        file.write_text(written.replace("{", f"{{ {first},", 1))
        return open_model(folder).diffusion_config

    assert read(f'"lambda_min_clipped": {number}, "x": [{number}]') == expected
    for key, why in (
        ("timestep_scaling", "is not a finite number"),
        ("sigma_max", "is not supported"),
        ("original_inference_steps", "is of the wrong type"),
    ):
        with pytest.raises(ValueError, match=f"scheduler_config.json: {key} = -?(inf|nan) {why}"):
            read(f'"{key}": {number}')
