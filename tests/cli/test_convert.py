"""Converted models make the same pictures, and are written completely or not at all."""

import gc
import json
import shutil
import signal
import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kinds import PUBLISHED_KINDS
from mlx.utils import tree_flatten
from oracle import psnr
from original_layout import write_single_file
from ours import pictures, python, same
from safetensors.numpy import save_file

import txt2image
from stable_diffusion import StableDiffusion, stored_weights
from stable_diffusion.cli.convert import main as convert_main
from stable_diffusion.model_io import convert, loaders
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.model_io.weight_files import NATIVE
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.quantized_convolution import QuantizedConv3x3

PROMPT = "a photo of a café, at night!"
SAME = 50  # dB
SD_1, SD_2, SD_2_V, SDXL = PUBLISHED_KINDS
UNET, TEXT = f"unet/{NATIVE}", f"text_encoder/{NATIVE}"
AS_SCRIPTS = ("--text-encoder-bits", "4", "--unet-bits", "8")  # with -q in the scripts


def load(model: loaders.Key, **options) -> StableDiffusion:
    """Return a model of either class."""
    return pipeline_class(load_model_config(model))(model, **options)


def draw(sd: StableDiffusion, steps: int = 1) -> np.ndarray:
    """Return a small picture, uint8 [1, H, W, 3]."""
    options = {"num_steps": steps, "cfg_weight": 5, "latent_size": (8, 8), "seed": 7}
    return pictures(sd, sd.generate_latents(PROMPT, **options))


def are_identical(one: StableDiffusion, other: StableDiffusion) -> bool:
    """Return whether UNet and text encoders have the same weights and types, to the bit."""

    def weights(sd: StableDiffusion) -> dict[str, mx.array]:
        networks = [*sd._text_encoders, sd.unet]
        return dict(tree_flatten([network.parameters() for network in networks]))

    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and mx.array_equal(a[key], b[key]).item() for key in a
    )


@pytest.mark.parametrize(
    ("kind", "options", "at_least"),
    [
        (SD_1, ("--fp16",), SAME),
        (SDXL, (), SAME),
        (SDXL, ("-q8", "--group-size=32"), 30),
    ],
)
def test_pictures_equal_diffusers(converted, oracle, kind, options, at_least):
    theirs = oracle(kind).pictures(
        PROMPT, seeds=[7], num_inference_steps=2, guidance_scale=5, height=64, width=64
    )
    assert theirs.std() >= 30  # of 255: it shows something
    assert psnr(draw(load(converted(kind, *options)), steps=2), theirs) >= at_least


@pytest.mark.parametrize(("kind", "half"), [(SD_1, True), (SDXL, False)])
def test_equals_quantizing_while_loading(converted, checkpoint, kind, half):
    """They are equal to the bit; in half precision, if the weights are stored in it."""
    folder = converted(kind, *AS_SCRIPTS, *["--fp16"] * half)
    ours, usual = load(folder, float16=half), load(checkpoint(kind), float16=half)
    usual.quantize(unet_bits=8)
    assert are_identical(ours, usual)
    assert ours.unet.mid_block.attentions[0].proj_in.bits == 8
    if half:  # --fp16 rounds the VAE, which is never in half precision otherwise
        assert not same(ours.autoencoder, usual.autoencoder)
        usual.autoencoder.set_dtype(mx.float16)
        usual.autoencoder.set_dtype(mx.float32)
    assert same(ours.autoencoder, usual.autoencoder)
    assert np.array_equal(draw(ours), draw(usual))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (6, 32)])
def test_bits_and_group_sizes(converted, checkpoint, bits, group_size):
    """All of them load as they are stored, and 6 bits have a smaller error than 4."""
    folder = converted(SD_1, f"-q{bits}", f"--group-size={group_size}")
    layer = load(folder).text_encoder.layers[0].linear1
    assert (layer.bits, layer.group_size) == (bits, group_size)
    whole = load(checkpoint(SD_1)).text_encoder.layers[0].linear1.weight
    packed = (layer.weight, layer.scales, layer.biases)
    error = mx.abs(mx.dequantize(*packed, group_size, bits) - whole).max() / mx.abs(whole).max()
    assert 2 ** -(bits + 1) < error.item() < 2 ** -(bits - 1)


def test_memory(checkpoint, tmp_path, monkeypatch):
    """Layers are quantized on all cores, one after another, each when it is written."""
    made, quantize = [], stored_weights.quantize_weight
    monkeypatch.setattr(
        stored_weights, "quantize_weight", lambda *a: made.append(1) or quantize(*a)
    )
    held: list[int] = []
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()

    def look(component: str, written: int, total: int) -> None:
        if component == "unet":
            held.append(mx.get_active_memory() - before)

    convert.convert_model(checkpoint(SD_1), tmp_path / "x", unet_bits=8, on_progress=look)
    unet = load(tmp_path / "x").unet
    kinds = nn.QuantizedLinear | QuantizedConv3x3
    assert len(made) == sum(isinstance(layer, kinds) for layer in unet.modules())
    sizes = [value.nbytes for _, value in tree_flatten(unet.parameters())]
    assert max(held) < 4 * max(sizes) < sum(sizes) / 2


def test_layers_that_do_not_divide_into_groups_stay_as_they_are(converted, checkpoint, capsys):
    """The config says which, and converting says how many."""
    folder = converted("sdxl", "-q8", "--group-size=32")
    config = json.loads((folder / "unet/config.json").read_text())
    unquantized = config["quantization"]["unquantized"]
    text_layer = "mid_block.attentions.0.transformer_blocks.0.attn2.key_proj"  # of 80 inputs
    assert text_layer in unquantized
    unet, whole = load(folder).unet, loaders.load_unet(checkpoint("sdxl"))
    layers, whole_layers = dict(unet.named_modules()), dict(whole.named_modules())
    for path, layer in whole_layers.items():
        if isinstance(layer, nn.Linear):
            assert isinstance(layers[path], nn.Linear) == (path in unquantized)
            assert (layer.weight.shape[1] % 32 != 0) == (path in unquantized)


@pytest.mark.parametrize("kind", [SD_2_V, SDXL])
def test_single_file(checkpoint, tmp_path, kind):
    """The folder says what the file does not: the user's prediction type, and the pad tokens."""
    file = str(write_single_file(checkpoint(kind), tmp_path / "x.safetensors"))
    prediction = "v_prediction" if kind == SD_2_V else "epsilon"
    options = ["--prediction-type", prediction]
    assert convert_main([file, str(tmp_path / "whole"), *options]) == 0
    ours = load(tmp_path / "whole")
    usual = load(loaders.open_model(file, prediction_type=prediction))
    assert are_identical(ours, usual)
    assert same(ours.autoencoder, usual.autoencoder)
    assert ours.diffusion_config == usual.diffusion_config
    assert ours.config.defaults == usual.config.defaults
    assert np.array_equal(draw(ours), draw(usual))  # also as the pad tokens are the same


def test_another_vae(converted, checkpoint, tmp_path):
    """A VAE is taken from a converted model, used for one, or converted with another model."""
    other, vae = checkpoint("sd-1"), loaders.load_autoencoder
    expected = vae(checkpoint(SD_1))
    for where in (converted(SD_1), converted(SD_1) / "vae"):
        assert same(vae(loaders.open_model(other, vae=where)), expected)
    assert convert_main([str(other), str(tmp_path / "x"), "--vae", str(where)]) == 0
    assert same(vae(tmp_path / "x"), expected)
    ours = loaders.open_model(converted(SD_1), vae=other)
    assert same(vae(ours), vae(other))


def test_known_models_keep_their_defaults(tmp_path):
    for name, model in (("one", "tiny"), ("two", str(tmp_path / "one"))):
        assert convert_main([model, str(tmp_path / name), "--fp16"]) == 0
        assert load_model_config(tmp_path / name).defaults == load_model_config("tiny").defaults


def test_converting_again(converted, tmp_path, capsys):
    """A model that is not quantized can be quantized; another stays as it is, or is refused."""
    args = [str(converted(SD_1)), str(tmp_path / "late"), *AS_SCRIPTS]
    assert convert_main(args) == 0
    once = converted(SD_1, *AS_SCRIPTS)
    assert are_identical(load(tmp_path / "late"), load(once))

    assert convert_main([str(once), str(tmp_path / "half"), "--fp16"]) == 0
    half = load(tmp_path / "half", float16=True)
    assert are_identical(half, load(once, float16=True))
    assert (tmp_path / "half" / TEXT).stat().st_size < 0.6 * (once / TEXT).stat().st_size

    assert convert_main([str(once), str(tmp_path / "twice"), "-q4"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the UNet has 8 bits already" in error
    assert "convert the model that it was made from" in error
    assert not (tmp_path / "twice").exists()


def test_a_download_is_announced(monkeypatch, capsys, tmp_path):
    """The announcement comes before the download, as in the scripts."""

    def describe_downloads(source, components, float16):
        assert set(components) >= {"unet", "vae", "text_encoder"} and not any(tmp_path.iterdir())
        return [f"Downloading {source.name}, {'half' if float16 else 'whole'}"]

    monkeypatch.setattr(convert, "describe_downloads", describe_downloads)
    assert convert_main(["tiny", str(tmp_path / "half"), "--fp16"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Downloading tiny, half"


def test_in_the_scripts(converted, tmp_path, capsys):
    """The scripts run it with their other options; -q has nothing left to do, and says so."""
    folder = converted(SD_1, *AS_SCRIPTS, "--fp16")
    arguments = ["a photo", "--model", str(folder), "--n_images=1", "--steps=1", "--seed=1"]
    arguments += ["--width=64", "--height=64", "--output", str(tmp_path / "o.png")]
    for options in (["-q"], ["--float16", "--preload-models"], ["--low-memory"]):
        assert txt2image.main([*arguments, *options]) == 0
        is_warned = f"{folder} is quantized already" in capsys.readouterr().err
        assert is_warned == (options == ["-q"])


def test_lora(converted, checkpoint, tmp_path):
    """It works on top of quantized weights as if they had been quantized while loading."""
    rng = np.random.default_rng(0)
    lora = {}
    for layer, (out, rest) in {
        "unet.mid_block.attentions.0.proj_out": (128, (128,)),
        "unet.mid_block.resnets.0.conv1": (128, (128, 3, 3)),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (64, (128,)),
    }.items():
        lora[f"{layer}.lora_A.weight"] = rng.standard_normal((4, *rest)).astype(np.float32)
        up = rng.standard_normal((out, 4, *[1] * (len(rest) - 1))).astype(np.float32)
        lora[f"{layer}.lora_B.weight"] = up
    save_file(lora, tmp_path / "lora.safetensors")
    ours, usual = load(converted(SD_1, *AS_SCRIPTS)), load(checkpoint(SD_1))
    usual.quantize(unet_bits=8)
    before = draw(ours)
    for sd in (ours, usual):
        sd.load_lora(tmp_path / "lora.safetensors", 0.5)
    after = draw(ours)
    assert np.array_equal(after, draw(usual))
    assert psnr(after, before) < 40
    ours.unload_lora()
    assert np.array_equal(draw(ours), before)


@pytest.mark.parametrize(
    ("model", "folder", "options", "status", "message"),
    [
        ("tiny", "there", [], 1, "there exists already: give the name of a new folder"),
        ("tiny", "no/x", [], 1, "no to make x in"),
        ("/nowhere", "x", [], 1, "there is no folder /nowhere"),
        ("tiny", "x", ["--group-size=32"], 2, "say how many bits (-q)"),
        ("tiny", "x", ["-q5"], 2, "invalid choice: 5"),
        ("tiny", "x", ["--unet-bits=8", "--group-size=16"], 2, "invalid choice: 16"),
    ],
)
def test_refusals(tmp_path, capsys, model, folder, options, status, message):
    (tmp_path / "there").mkdir()
    try:
        got = convert_main([model, str(tmp_path / folder), *options])
    except SystemExit as stopped:
        got = stopped.code
    assert got == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_broken_model(copy, tmp_path, capsys):
    """Nothing remains of the files that were written before the error."""
    folder = copy("sd-1")
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"?")
    assert convert_main([str(folder), str(tmp_path / "x")]) == 1
    assert "is not a readable safetensors file" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["sd-1"]


def test_warnings_are_lines(tmp_path, monkeypatch, capsys):
    """They are printed with control characters escaped, as by the scripts."""

    def load(*_: object, **__: object) -> None:
        warnings.warn("the file says a\u202eb\x1b[2J", stacklevel=1)
        raise ValueError("no\u2066t")

    monkeypatch.setattr(convert, "open_model", load)
    assert convert_main(["tiny", str(tmp_path / "x")]) == 1
    lines = [r"warning: the file says a\u202eb\x1b[2J", r"error: no\u2066t"]
    assert capsys.readouterr().err.splitlines() == lines


KILL = """
import os, signal, sys
from stable_diffusion.cli.convert import main
from stable_diffusion.model_io import convert

def stop(tensors, values, file, on_written, save=convert.save_native):
    if "unet" in str(file):
        on_written = lambda size: os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, values, file, on_written)

convert.save_native = stop
main(["tiny", sys.argv[1]])
"""


def test_killed_in_the_middle(tmp_path, monkeypatch, capsys):
    """No folder has the name that was asked for; after Ctrl-C nothing is left at all."""
    folder = tmp_path / "x"
    done = python("-c", KILL, str(folder))
    assert done.returncode == -signal.SIGKILL
    (unfinished,) = tmp_path.iterdir()
    assert unfinished.name.startswith("x.unfinished-")
    assert (unfinished / TEXT).stat().st_size > 1e6
    with pytest.raises(ValueError, match=UNET):
        load(unfinished)
    shutil.rmtree(unfinished)

    def stop(tensors, values, file, on_written, save=convert.save_native):
        def interrupt(size: int) -> None:
            raise KeyboardInterrupt

        save(tensors, values, file, interrupt if "unet" in str(file) else on_written)

    monkeypatch.setattr(convert, "save_native", stop)
    assert convert_main(["tiny", str(folder)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"
    assert not list(tmp_path.iterdir())
