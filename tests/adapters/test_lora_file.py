"""Adapter files: PEFT's options, textual inversions inside, and what trainers leave there."""

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from oracle import channels_first, channels_last, relative_l2
from parity import random_normal
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.adapters.leftovers import is_leftover
from stable_diffusion.adapters.lora import load_lora
from stable_diffusion.adapters.lora_file import LayerChange, read_lora
from stable_diffusion.adapters.lora_layers import find_adapted
from stable_diffusion.adapters.peft_options import PeftOptions

ERROR = 2e-5
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"
LAYER = f"unet.{ATTENTION}.to_q"
TARGETS = {f"unet.{ATTENTION.replace('.', '_')}_to_q": ("unet", "a")}

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model(checkpoint) -> Callable[[str], StableDiffusion]:
    """Return a function that returns a model of a kind; tests may add words to it."""

    @cache
    def load(kind: str) -> StableDiffusion:
        return (StableDiffusionXL if kind == "sdxl" else StableDiffusion)(checkpoint(kind))

    return load


def make_pair(width: int = 64, rank: int = 4) -> tuple[np.ndarray, np.ndarray]:
    down = np.random.default_rng(0).standard_normal((rank, width), np.float32)
    return down, np.ascontiguousarray(down.T)


def write(folder: Path, tensors: Tensors, **metadata: str) -> Path:
    file = folder / "lora.safetensors"
    save_file(tensors, file, metadata=metadata or None)
    return file


def write_pair(folder: Path, **metadata: str) -> Path:
    down, up = make_pair()
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    return write(folder, tensors, **metadata)


def read_ratio(file: Path, rank: int = 4) -> float:
    [change] = read_lora(file, TARGETS).changes.values()
    return change.compute_ratio(rank)


STYLES = {
    "PEFT": ("base_model.model.{}.to_{}.lora_A.weight", "base_model.model.{}.to_{}.lora_B.weight"),
    "LCM": (
        "unet.base_model.model.{}.to_{}.lora_A.weight",
        "unet.base_model.model.{}.to_{}.lora_B.weight",
    ),
    "save_lora_adapter": ("{}.to_{}.lora_A.weight", "{}.to_{}.lora_B.weight"),
    "save_attn_procs": ("{}.processor.to_{}_lora.down.weight", "{}.processor.to_{}_lora.up.weight"),
    "ComfyUI": ("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_{1}.lora_down.weight",
                "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_{1}.lora_up.weight"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_names(model, tmp_path, style):
    """The same change is read from all of them."""
    sd = model("sd-1")
    down, up = make_pair()
    expected = None
    for patterns in (("unet.{}.to_{}.lora_A.weight", "unet.{}.to_{}.lora_B.weight"), STYLES[style]):
        keys = [[pattern.format(ATTENTION, each) for pattern in patterns] for each in "qk"]
        tensors = {key: value for pair in keys for key, value in zip(pair, (down, up), strict=True)}
        sd.load_lora(write(tmp_path, tensors))
        found = {path: np.array(value) for path, value in tree_flatten(sd.unet.parameters())}
        sd.unload_lora()
        if expected is None:
            expected = found
    assert found.keys() == expected.keys() != dict(tree_flatten(sd.unet.parameters())).keys()
    assert all(np.array_equal(found[path], expected[path]) for path in found)


@torch.no_grad()
def test_a_folder_of_peft(model, oracle, tmp_path):
    """Its ranks and alphas differ from layer to layer."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["to_q", "ff.net.2", "conv1"],
        rank_pattern={"mid_block.*to_q": 2},
        alpha_pattern={"attn2.to_q": 3, "^mid_block.resnets.1.conv1": 9},
    )
    unet = get_peft_model(oracle("sd-1").make_copy().unet, config)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    unet.save_pretrained(tmp_path)
    x, text = random_normal(1, 7, 9, 4), random_normal(1, 77, unet.config.cross_attention_dim)
    inputs = (channels_first(x), torch.tensor([500.0]), torch.from_numpy(text).double())
    expected = channels_last(unet.double()(*inputs).sample)
    sd = model("sd-1")
    inputs = (mx.array(x), mx.array([500.0]), mx.array(text))
    before = sd.unet(*inputs)
    sd.load_lora(tmp_path)
    after = sd.unet(*inputs)
    sd.unload_lora()
    assert relative_l2(after, expected) <= ERROR
    assert relative_l2(before, expected) > 0.05


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({}, 1),
        ({"unet.lora_alpha": 8}, 2),
        ({"lora_alpha": 8}, 2),
        ({"text_encoder.lora_alpha": 8}, 1),
        ({"lora_alpha": 8, "use_rslora": True}, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"tn1.to_q": 2}}, 2),
        ({"peft_type": "LOHA", "alpha": 8, "r": 16}, 0.5),
        ({"peft_type": "LOKR", "alpha": 8, "r": 16, "rank_pattern": {"to_q": 32}}, 0.25),
        ({"modules_to_save": None, "bias": "none", "init_lora_weights": True}, 1),
    ],
)  # fmt: skip
def test_ratios_of_options(tmp_path, options, ratio):
    file = write_pair(tmp_path, lora_adapter_metadata=json.dumps(options))
    assert read_ratio(file) == ratio
    file = write_pair(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    assert read_ratio(file) == ratio


def test_an_alpha_of_a_layer_comes_before_options(tmp_path):
    tensors = {f"{LAYER}.lora_A.weight": make_pair()[0], f"{LAYER}.alpha": np.array(2, np.float32)}
    file = write(tmp_path, tensors, lora_adapter_metadata='{"lora_alpha": 8}')
    assert read_ratio(file) == 0.5
    change = LayerChange("x", {"alpha": mx.array([1.0, 2.0])})
    with pytest.raises(ValueError, match="the alpha of x is"):
        change.compute_ratio(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is not a JSON object"),
        ({"peft_type": "BOFT"}, "says that it is BOFT, which is not supported"),
        ({"bias": "all"}, "has bias = all, which is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights = pissa_niter_4, which"),
        ({"use_qalora": True}, "has use_qalora = True, which is not supported"),
        ({"modules_to_save": ["x"]}, "has modules_to_save = .*, which is not supported"),
        ({"r": 0}, "has r = 0, which is not above 0"),
        ({"lora_alpha": 1e35}, "which is not a finite number"),
        ({"lora_alpha": True}, "which is not a number"),
        ({"rank_pattern": {"x": -1}}, "which is not above 0"),
        ({"rank_pattern": [1]}, "has a rank_pattern that is not an object"),
    ],
)  # fmt: skip
def test_options_that_are_refused(tmp_path, options, message):
    file = write_pair(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(file, TARGETS)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_plain_weights_and_biases_need_others_of_their_layer(tmp_path):
    """They are of (IA)³, and of an extraction by LyCORIS, or they are the weights of a network."""
    one = np.ones(4, np.float32)
    for part, other in (("weight", "on_input"), ("bias", "lora_down.weight")):
        file = write(tmp_path, {f"{LAYER}.{part}": one, f"{LAYER}.{other}": one})
        [change] = read_lora(file, TARGETS).changes.values()
        assert change.keys == {part: f"{LAYER}.{part}", other: f"{LAYER}.{other}"}
        assert read_lora(write(tmp_path, {f"{LAYER}.{part}": one}), TARGETS).changes == {}
    file = write(tmp_path, {f"{LAYER}.weight": one, f"{LAYER}.alpha": one})
    assert read_lora(file, TARGETS).unexpected == [f"{LAYER}.weight"]


def test_dora_without_its_vectors_is_refused(tmp_path):
    file = write_pair(tmp_path, lora_adapter_metadata='{"unet.use_dora": true}')
    with pytest.raises(ValueError, match="use_dora, but it has no magnitudes"):
        read_lora(file, TARGETS)


def test_a_tensor_in_two_spellings(tmp_path):
    down, _ = make_pair()
    key = f"lora_unet_{ATTENTION.replace('.', '_')}_to_q.lora_down.weight"
    file = write(tmp_path, {f"{LAYER}.lora_A.weight": down, key: down})
    with pytest.raises(ValueError, match="are the same tensor of one layer"):
        read_lora(file, TARGETS)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_x.rank", True),
        ("lora_unet_x.rank_dropout", True),
        ("text_encoder.text_model.embeddings.position_ids", True),
        ("text_encoders.clip_g.logit_scale.diff", True),
        ("optimizer.state.0", True),
        ("global_step", True),
        ("__step__", True),
        ("lora_te1_text_projection.lora_down.weight", True),
        ("clip_l.text_projection.alpha", True),
        ("lora_te2_text_projection.lora_down.weight", False),
        ("lora_unet_x.lora_down.weight", False),
        ("lora_unet_x.scale", False),
        ("lora_unet_optimizer.alpha", False),
        ("unet.step.lora_A.weight", False),
        ("drank", False),
    ],
)
def test_which_tensors_are_leftovers(key, expected):
    assert is_leftover(key) is expected


def test_leftovers_are_counted(model, tmp_path):
    file = write_pair(tmp_path)
    down, up = make_pair()
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up, f"{LAYER}.rank": down}
    file = write(tmp_path, tensors | {"global_step": up})
    with pytest.warns(UserWarning) as caught:
        model("sd-1").load_lora(file, 0)
    [line] = [str(each.message) for each in caught]
    assert line.startswith(f"{file}: passed over 2 tensors without an effect on pictures: ")
    with (
        pytest.warns(UserWarning, match="passed over 1 tensor without"),
        pytest.raises(ValueError, match="no such layers: lora_unet_y.alpha"),
    ):
        model("sd-1").load_lora(write(tmp_path, tensors | {"lora_unet_y.alpha": down}))


def bundle(sd: StableDiffusion, word: str, n: int) -> Tensors:
    """Return vectors of a word for each text encoder, as OneTrainer bundles them."""
    rng = np.random.default_rng(n)
    widths = [encoder.token_embedding.weight.shape[1] for encoder in sd._text_encoders]
    return {
        f"bundle_emb.{word}.{key}": rng.standard_normal((n, width), np.float32)
        for key, width in zip(("clip_l", "clip_g"), widths, strict=False)
    }


def lora_is_there(sd: StableDiffusion) -> bool:
    return len(find_adapted(sd.unet)) > 0


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_words_in_a_file(checkpoint, tmp_path, kind):
    """They are those that `load_embedding` makes of the same vectors; others are left out."""
    sd = (StableDiffusionXL if kind == "sdxl" else StableDiffusion)(checkpoint(kind))
    down, up = make_pair()
    layer = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    words = bundle(sd, "<my.word>", 2) | bundle(sd, "a", 1)
    file = write(tmp_path, layer | words | {"bundle_emb.<c>.clip_l": down[:, :5].copy()})
    with pytest.warns(UserWarning) as caught:
        sd.load_lora(file)
    *left_out, learned = [str(each.message) for each in caught]
    assert learned == f"{file} has words in it, which prompts can use: <my.word>"
    assert any(
        "its bundled word a is left out: 'a' is a token already" in line for line in left_out
    )
    assert any("its bundled word <c> is left out: it" in line for line in left_out)
    assert len(left_out) == 2

    vectors = {key.rpartition(".")[2]: words[key] for key in words if "my.word" in key}
    single = tmp_path / "word.safetensors"
    save_file(vectors if kind == "sdxl" else {"emb_params": vectors["clip_l"]}, single)
    sd.load_embedding("<other>", single)
    bundled, alone, none = (
        sd._embed_text([f"a photo of {word} <c>"], None)[0] for word in ("<my.word>", "<other>", "")
    )
    assert mx.array_equal(bundled, alone).item() and not mx.array_equal(bundled, none).item()
    assert lora_is_there(sd)
    sd.unload_lora()
    assert not lora_is_there(sd)
    assert mx.array_equal(bundled, sd._embed_text(["a photo of <my.word> <c>"], None)[0]).item()


def test_words_are_learned_with_the_lora_or_not_at_all(checkpoint, tmp_path):
    sd = StableDiffusion(checkpoint("sd-1"))
    down, up = make_pair()
    rows = len(sd.text_encoder.token_embedding.weight)
    layer = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    broken = layer | bundle(sd, "<w>", 1) | {"lora_unet_x.lora_down.weight": down}
    with pytest.raises(ValueError, match="no such layers"):
        sd.load_lora(write(tmp_path, broken))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.load_lora(write(tmp_path, layer | bundle(sd, "<w>", 1)), 0)
    assert len(sd.text_encoder.token_embedding.weight) == rows
    networks = {"unet": sd.unet}
    with pytest.warns(
        UserWarning, match="its bundled word <w> is left out: the text encoders have been"
    ):
        load_lora(networks, write(tmp_path, layer | bundle(sd, "<w>", 1)), 1.0, mx.float32)


def test_options_of_no_file():
    assert PeftOptions({}).compute_ratio("unet", "x", 16) == 1
