"""Every name that programs write for a layer means that layer."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from original_layout import original_tensors
from safetensors.numpy import load_file

from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.adapters.lora_keys import Target, Targets, list_names
from stable_diffusion.adapters.lora_layers import find_layers
from stable_diffusion.adapters.lora_parts import split_key, split_plain_key

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}
KINDS = ("sd-1", "sdxl")

# Spellings of a layer's name: NAME has dots, and KOHYA underscores in their place.
UNET_SPELLINGS = (
    *("lora_unet_KOHYA", "lycoris_KOHYA", "lycoris_unet_KOHYA"),
    *("unet.NAME", "NAME", "base_model.model.NAME", "unet.base_model.model.NAME"),
    *("base_model.model.unet.NAME", "unet._orig_mod.NAME", "module.unet.NAME", "lora_unet.NAME"),
    *("diffusion_model.NAME", "model.diffusion_model.NAME"),
)
TEXT_SPELLINGS = {
    "text_encoder": (
        *("lora_te_KOHYA", "lora_te1_KOHYA", "lycoris_te_KOHYA", "lora_te1.NAME"),
        *("text_encoder.NAME", "text_encoder.base_model.model.NAME", "clip_l.NAME", "clip_h.NAME"),
        *("lora_clip_l.NAME", "text_encoders.clip_l.transformer.NAME", "NAME", "lycoris_KOHYA"),
        "base_model.model.NAME",
    ),
    "text_encoder_2": (
        *("lora_te2_KOHYA", "text_encoder_2.NAME", "text_encoder_2.base_model.model.NAME"),
        *("clip_g.NAME", "lora_clip_g.NAME", "text_encoders.clip_g.transformer.NAME"),
    ),
}


def load(folder: Path) -> StableDiffusion:
    return (StableDiffusionXL if "xl" in folder.name else StableDiffusion)(folder)


@pytest.fixture(scope="module")
def model(checkpoint) -> Callable[[str], StableDiffusion]:
    return cache(lambda kind: load(checkpoint(kind)))


def find_targets(sd: StableDiffusion) -> dict[str, Target]:
    """Return the layers of a model by the names that `list_names` gives them."""
    return {
        name: (component, path)
        for component, network in sd._networks.items()
        for name, path in list_names(component, network, find_layers(network)).items()
    }


def read_names(folder: Path, component: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names of a network's matrices as diffusers writes them, with their numbers."""
    for key, value in load_file(folder / WEIGHTS[component]).items():
        if value.ndim > 1 and key.endswith(".weight") and "embedding." not in key:
            yield key.removesuffix(".weight"), np.ascontiguousarray(value).tobytes()


def spell(pattern: str, name: str) -> str:
    return pattern.replace("NAME", name).replace("KOHYA", name.replace(".", "_"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_unet(model, checkpoint, kind):
    """A layer's name in Stability AI's code is found by its numbers, in a file of that layout."""
    folder, sd = checkpoint(kind), model(kind)
    targets = Targets(find_targets(sd))
    originals = {
        np.ascontiguousarray(value).tobytes(): key.removesuffix(".weight")
        for key, value in original_tensors(folder).items()
        if key.startswith("model.diffusion_model.")
    }
    found = set()
    for name, numbers in read_names(folder, "unet"):
        target = targets.find(f"unet.{name}")
        assert target is not None and target[0] == "unet", name
        found.add(target)
        original = originals[numbers].removeprefix("model.diffusion_model.")
        for pattern in UNET_SPELLINGS:
            for spelling in (spell(pattern, name), spell(pattern, original)):
                assert targets.find(spelling) == target, spelling
    assert len(found) == sum(1 for _ in read_names(folder, "unet"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_text_encoders(model, checkpoint, kind):
    folder, sd = checkpoint(kind), model(kind)
    targets = Targets(find_targets(sd))
    for component, patterns in TEXT_SPELLINGS.items():
        if component not in sd._networks:
            continue
        for name, _ in read_names(folder, component):
            bare = name.removeprefix("text_model.")
            names = [bare] if bare == "text_projection" else [bare, f"text_model.{bare}"]
            target = targets.find(f"{component}.{bare}")
            assert target is not None and target[0] == component, bare
            for spelling in (spell(pattern, each) for pattern in patterns for each in names):
                assert targets.find(spelling) == target, spelling


def test_names_that_do_not_say_their_text_encoder(model):
    """They are of the second if the first has not all of them."""
    targets = Targets(find_targets(model("sdxl")))
    layers = "text_model.encoder.layers.{}.mlp.fc1"
    numbers = [int(name.split("_layers_")[1].split("_")[0]) for name in targets.names
               if name.startswith("text_encoder.text_model_encoder_layers_")]  # fmt: skip
    inside, beyond = layers.format(0), layers.format(max(numbers) + 1)
    chosen = targets.choose_text_encoder([inside, f"lora_te2_{inside.replace('.', '_')}"])
    assert chosen.find(inside) == targets.find(f"text_encoder.{inside}")
    more = Targets(targets.names | {f"text_encoder_2.{beyond.replace('.', '_')}": ("x", "y")})
    chosen = more.choose_text_encoder([inside, beyond])
    assert chosen.find(inside) == targets.find(f"text_encoder_2.{inside}")
    assert chosen.find(f"text_encoder.{inside}") == targets.find(f"text_encoder.{inside}")


@pytest.mark.parametrize("name", ["lora_unet_x", "x", "unet.x", "lora_te3_x", "", "lora_unet_"])
def test_names_that_no_layer_has(model, name):
    assert Targets(find_targets(model("sd-1"))).find(name) is None


@pytest.mark.parametrize(
    ("ends", "part"),
    [
        (
            "lora_down.weight lora.down.weight lora_A.weight lora_A.default.weight lora_A lora_down"
            " lora_A.default_0.weight lora_linear_layer.down.weight lora_layer.down.weight",
            "lora_down.weight",
        ),
        ("lora_up.weight lora_B.weight lora_B.style.weight lora_B", "lora_up.weight"),
        ("lora_B.bias lora_B.default.bias lora_up.bias", "lora_up.bias"),
        ("lora_mid.weight lora_mid", "lora_mid.weight"),
        (
            "dora_scale lora_magnitude_vector lora_magnitude_vector.weight "
            "lora_magnitude_vector.default lora_magnitude_vector.default.weight",
            "dora_scale",
        ),
        ("hada_w1_a hada_w1_a.default", "hada_w1_a"),
        ("lokr_w2_b lokr_w2_b.default", "lokr_w2_b"),
        ("diff weight.diff", "diff"),
        ("diff_b bias.diff", "diff_b"),
        *((part, part) for part in ("alpha", "scalar", "w_norm", "b_norm", "on_input", "hada_t1")),
        *((part, part) for part in ("lokr_w1", "lokr_t2", "a1.weight", "bm2.weight")),
    ],
)
def test_ends_of_keys(ends, part):
    for end in ends.split():
        assert split_key(f"unet.a.0.{end}") == ("unet.a.0", part), end


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("unet.a.attn1.processor.to_q_lora.{}.weight", "unet.a.attn1.to_q"),
        ("a.attn1.processor.to_out_lora.{}.weight", "a.attn1.to_out.0"),
        ("text_encoder.a.self_attn.to_v_lora.{}.weight", "text_encoder.a.self_attn.v_proj"),
        ("text_encoder.a.self_attn.to_out_lora.{}.weight", "text_encoder.a.self_attn.out_proj"),
    ],
)
def test_oldest_names_of_attention(key, name):
    assert split_key(key.format("down")) == (name, "lora_down.weight")
    assert split_key(key.format("up")) == (name, "lora_up.weight")


@pytest.mark.parametrize("key", ["a.weight", "alpha", "a.lora_C.weight", "a.diff.x", "a.bias", ""])
def test_keys_without_a_part(key):
    assert split_key(key) is None


def test_plain_weights_and_biases():
    assert split_plain_key("lora_unet_a.weight") == ("lora_unet_a", "weight")
    assert split_plain_key("a.b.bias") == ("a.b", "bias")
    assert split_plain_key("weight") is None and split_plain_key("a.alpha") is None
