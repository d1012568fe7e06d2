"""Hostile and damaged models are refused in one line, and no code in them ever runs."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from ours import python
from safetensors.numpy import load_file, save_file

import txt2image
from stable_diffusion import StableDiffusion
from stable_diffusion.adapters.lora import load_lora
from stable_diffusion.config.known_models import PACKAGE
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.loaders import load_model_config, load_unet
from stable_diffusion.utils.strict_json import parse_json, read_json

TINY = PACKAGE / "tiny"
UNET, VAE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a folder of links to the files of the embedded model."""
    folder = tmp_path / "model"
    for file in TINY.rglob("*"):
        if file.is_file():
            to = folder / file.relative_to(TINY)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(file)
    return folder


def replace(file: Path, content: bytes | str) -> None:
    """Put a file in place of a link."""
    file.unlink(missing_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def configure(file: Path, **options: object) -> None:
    """Change options of a config file."""
    replace(file, json.dumps(json.loads(file.read_bytes()) | options))


# --- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "gives 'a' twice"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e400}', "1e400 is not a finite number"),
        ('{"a": %s}' % ("9" * 5000), "9+ is too large a number"),
        ('{"a": -1e37}', "-1e37 is too large a number"),
        (b"\xff\xfe{", "truncated data|can't decode|Expecting"),
        ("{} {}", "Extra data"),
    ],
)
def test_broken_json(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300


def test_json_as_editors_write_it():
    """They may begin with a byte order mark, and be in UTF-16 or UTF-32."""
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert parse_json('{"a": [1, 1e30]}'.encode(encoding)) == {"a": [1, 1e30]}


def test_json_that_is_too_large(tmp_path):
    """This file of a gigabyte (sparse on the disk) is not read."""
    file = tmp_path / "config.json"
    with file.open("wb") as opened:
        opened.truncate(10**9)
    with pytest.raises(ValueError, match="1000000000 bytes, which is too much for a JSON file"):
        read_json(file)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("unet/config.json", {"norm_num_groups": 0}, "norm_num_groups = 0 is not from 1 to"),
        ("unet/config.json", {"norm_num_groups": -8}, "norm_num_groups = -8 is not from 1"),
        ("unet/config.json", {"block_out_channels": [0, 64]}, r"\(0, 64\) is not from 1"),
        ("unet/config.json", {"block_out_channels": [-64, 64]}, "is not from 1"),
        ("unet/config.json", {"block_out_channels": [64, 10**9]}, "is not from 1"),
        ("unet/config.json", {"block_out_channels": 64}, "is of the wrong type"),
        ("unet/config.json", {"block_out_channels": [64] * 9}, "number of blocks = 9 is not from"),
        ("unet/config.json", {"layers_per_block": 10**9}, "is not from 0 to"),
        ("unet/config.json", {"layers_per_block": 10**5}, "200000 residual blocks are more than"),
        ("unet/config.json", {"transformer_layers_per_block": 10**5}, "transformer blocks are"),
        ("unet/config.json", {"attention_head_dim": 3}, "3 heads do not divide 64 channels"),
        ("unet/config.json", {"attention_head_dim": 0}, "0 heads do not divide"),
        ("unet/config.json", {"cross_attention_dim": 129}, "the text encoders give 128"),
        ("unet/config.json", {"sample_size": 10**9}, "sample_size = 1000000000 is not from 1"),
        ("unet/config.json", {"norm_eps": -1.0}, "norm_eps = -1.0 is not from 0"),
        ("unet/config.json", {"freq_shift": 32}, "freq_shift = 32 is not from 0 to 1"),
        ("unet/config.json", {"act_fn": "silu\0"}, "act_fn = 'silu.x00' is not supported"),
        ("unet/config.json", {"auto_map": {"A": "evil.A"}}, "auto_map = .* is not supported"),
        ("vae/config.json", {"in_channels": 1}, "in_channels = 1 is not from 3 to 3"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor = 0.0 is not from"),
        ("vae/config.json", {"norm_num_groups": 0}, "norm_num_groups = 0 is not from 1"),
        ("text_encoder/config.json", {"eos_token_id": 2**63}, "eos_token_id = .* is not from -1"),
        ("text_encoder/config.json", {"vocab_size": -1}, "vocab_size = -1 is not from 1"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "is not from 1 to 1000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "is not from 2"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.9}, "nothing of the picture is left"),
        ("scheduler/scheduler_config.json", {"steps_offset": -1}, "steps_offset = -1 is not from"),
    ],
)
def test_absurd_configs(model, path, options, message):
    configure(model / path, **options)
    with pytest.raises(ValueError, match=message) as caught:
        load_model_config(model)
    assert len(str(caught.value).splitlines()) == 1


def test_network_that_no_machine_holds(model):
    """A network of 10 TB is refused before it is allocated; the message names the config."""
    options = {"block_out_channels": [2**16, 2**17], "attention_head_dim": 8}
    configure(model / "unet" / "config.json", **options)
    mx.reset_peak_memory()
    before = mx.get_active_memory()  # of the networks that other tests keep
    message = (
        r"unet/config.json asks for [\d,]+ weights, [\d,]+ GB in float32; this machine has \d+"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_unet(model)
    n_bytes = 4 * int(str(caught.value).split("asks for ")[1].split(" ")[0].replace(",", ""))
    assert n_bytes > 1e13
    assert mx.get_peak_memory() - before < 1e8


def test_tokens_that_the_text_encoder_does_not_know(model):
    """Their embeddings would be read from outside the table."""
    vocab = json.loads((TINY / "tokenizer/vocab.json").read_text())
    rows = len(vocab)
    replace(model / "tokenizer/vocab.json", json.dumps(vocab | {"zzz</w>": rows}))
    with pytest.raises(ValueError, match=f"has {rows + 1} token ids, its text encoder has {rows}"):
        StableDiffusion(model)
    replace(model / "tokenizer/vocab.json", json.dumps(vocab | {"a</w>": -1}))
    with pytest.raises(ValueError, match="has an id that is not an integer from 0 up"):
        StableDiffusion(model)
    replace(model / "tokenizer/vocab.json", json.dumps(vocab))
    configure(model / "tokenizer/tokenizer_config.json", model_max_length=1000)
    with pytest.raises(ValueError, match="has 1000 positions, its text encoder has 77"):
        StableDiffusion(model)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.bool_, np.int64])
def test_weights_that_are_no_floats(model, kind):
    tensors = load_file(TINY / VAE)
    (model / VAE).unlink()
    key = "decoder.conv_in.weight"
    save_file(tensors | {key: tensors[key].astype(kind)}, model / VAE)
    with pytest.raises(ValueError, match=f"wrong shape: {key} of (I8|BOOL|I64), not floats"):
        loaders.load_autoencoder(model)


def write_shards(model: Path, *shards: dict, index: dict | None = None) -> Path:
    """Replace the VAE's file by shards, and an index that may have other entries too."""
    names = [f"{i}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, model / "vae" / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (model / VAE).unlink()
    file = model / f"{VAE}.index.json"
    file.write_text(json.dumps({"weight_map": weight_map | (index or {})}))
    return file


def test_one_tensor_in_two_shards(model):
    tensors = load_file(TINY / VAE)
    write_shards(model, tensors, {"decoder.conv_in.weight": tensors["decoder.conv_in.weight"]})
    with pytest.raises(ValueError, match=r"given twice: decoder.conv_in.weight$"):
        loaders.load_autoencoder(model)


def test_index_that_names_a_missing_tensor(model):
    tensors = load_file(TINY / VAE)
    missing = tensors.pop("decoder.conv_in.weight")
    assert missing is not None
    write_shards(model, tensors, index={"decoder.conv_in.weight": "0.safetensors"})
    with pytest.raises(ValueError, match=r"missing: decoder.conv_in.weight$"):
        loaders.load_autoencoder(model)


def test_links_into_a_cache_work(tmp_path):
    """Files in the Hub's cache are links into another folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    blobs.mkdir()
    for i, file in enumerate(TINY.rglob("*")):
        if file.is_file():
            shutil.copyfile(file, blobs / str(i))
            to = snapshot / file.relative_to(TINY)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(os.path.relpath(blobs / str(i), to.parent))
    sd = StableDiffusion(snapshot)
    assert mx.isfinite(sd.unet.conv_in.weight).all().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet.alpha_pattern": {"(a+)+$": 1.0}}, None),
        ({"unet.alpha_pattern": {"(\\w|[a-z_.]|[^A-Z])+[A-Z]": 1.0}}, "takes too long"),
        ({"unet.alpha_pattern": {"(": 1.0}}, "is not a regular expression"),
        ({"unet.alpha_pattern": {"x": "y"}}, "which is not a number"),
        ({"unet.alpha_pattern": ["x"]}, "has a unet.alpha_pattern that is not an object"),
        ({"unet.lora_alpha": None}, "which is not a number"),
    ],
)
def test_options_of_a_lora(tmp_path, options, message):
    """Regular expressions from a file may take a second at most."""
    name = "unet.mid_block.attentions.0.proj_in"
    ones = np.ones((4, 128), np.float32)
    file = tmp_path / "lora.safetensors"
    tensors = {f"{name}.lora_A.weight": ones, f"{name}.lora_B.weight": ones.T.copy()}
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(options)})
    networks = {"unet": load_unet("tiny")}
    before = dict(tree_flatten(networks["unet"].parameters()))
    if message is None:
        return load_lora(networks, file, 1.0, mx.float32)
    with pytest.raises(ValueError, match=message):
        load_lora(networks, file, 1.0, mx.float32)
    assert dict(tree_flatten(networks["unet"].parameters())).keys() == before.keys()


# --- code in files -------------------------------------------------------------------------------


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.victim}'",)


def write_pickle(file: Path, victim: Path, zipped: bool) -> Path:
    """Write a pickle that would create the victim if it was loaded."""
    content = pickle.dumps(Payload(victim), protocol=2)
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        file.write_bytes(content)
    return file


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_ever_runs(model, tmp_path, capsys, zipped):
    """No name and no option of the scripts makes it run."""
    victim = tmp_path / "victim"
    ways = []
    for suffix in (".safetensors", ".ckpt", ""):
        file = write_pickle(tmp_path / f"evil{suffix}", victim, zipped)
        ways += [["--model", file], ["--model=tiny", "--vae", file]]
        ways += [["--model=tiny", "--lora", file], ["--model=tiny", f"--embedding=<x>={file}"]]
    for way in ways:
        assert txt2image.main(["a", *map(str, way), "--output", str(tmp_path / "o.png")]) == 1, way
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert "pickle" in line or "evil" in line
    for path in (UNET, "vae/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        link = os.readlink(model / path)
        (model / path).unlink()
        write_pickle(model / path, victim, zipped)
        with pytest.raises(ValueError):
            StableDiffusion(model)
        (model / path).unlink()
        (model / path).symlink_to(link)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Payload(victim)))  # loading it would have written the file
    assert victim.exists()


def test_no_code_of_a_model_runs(model, tmp_path):
    """Python files beside the weights, and configs that name them, are ignored."""
    victim = tmp_path / "victim"
    code = f"open({str(victim)!r}, 'w')\n"
    for folder in (model, *(model / name for name in ("unet", "vae", "text_encoder"))):
        for name in ("modeling", "__init__", "pipeline", "conftest", "sitecustomize"):
            (folder / f"{name}.py").write_text(code)
    (model / "handler.py").write_text(code)
    configure(
        model / "model_index.json",
        auto_map={"AutoModel": "modeling.Evil"},
        custom_pipeline="pipeline",
    )
    configure(model / "text_encoder/config.json", auto_map=None)
    load = f"from stable_diffusion import StableDiffusion; StableDiffusion({str(model)!r})"
    done = python("-c", load)
    assert done.returncode == 0, done.stderr
    assert not victim.exists()


def test_nothing_in_the_package_can_run_what_it_reads():
    """There is no unpickling, no evaluation, no import by name, and no import of torch."""
    for file in sorted(TINY.parent.rglob("*.py")):
        text = file.read_text()
        for word in ("import pickle", "eval(", "exec(", "import_module", "trust_remote_code"):
            found = text.replace("mx.eval(", "").replace("mx.async_eval(", "")
            assert word not in found, f"{file.name} has {word}"
        assert "import torch" not in text
