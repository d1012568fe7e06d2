"""Control models from folders, files and the Hub: the same network by each way in."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import mlx.core as mx
import numpy as np
import original_layout
import pytest
import safetensors.torch as torch_file
import torch
from control_files import original_adapter, original_controlnet, write_base, write_config
from control_networks import (
    ADAPTERS,
    CONTROLNETS,
    WEIGHTS,
    make_adapter,
    make_base,
    make_controlnet,
    make_union,
    save,
)
from hub_files import REPO
from safetensors.numpy import load_file

from stable_diffusion.adapters.lora import load_lora
from stable_diffusion.config import known_controls
from stable_diffusion.config.controlnet import UNION_OPTIONS
from stable_diffusion.config.known_controls import KNOWN_CONTROLS, KnownControl
from stable_diffusion.config.networks import UNetConfig
from stable_diffusion.control import LoadedControl
from stable_diffusion.model_io.control_models import (
    OpenedControl,
    find_damaged_control_weights,
    load_control_network,
    open_control,
)
from stable_diffusion.model_io.loaders import load_unet, open_model
from stable_diffusion.model_io.model import Model
from stable_diffusion.model_io.unsupported import describe_unet
from stable_diffusion.model_io.weights import flatten_parameters

UNION = "union 8"
BASE_OF = {
    **{name: base for name, (base, _) in (*CONTROLNETS.items(), *ADAPTERS.items())},
    UNION: "sdxl",
}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Return a function that gives the model and the folder of a control network."""

    @cache
    def give(name: str) -> tuple[Model, Path]:
        folder = tmp_path_factory.mktemp("control")
        base = open_model(write_base(BASE_OF[name], folder / "base"))
        if name in ADAPTERS:
            network = make_adapter(name)
        else:
            network = make_union(int(name[-1])) if name == UNION else make_controlnet(name)
        return base, save(network, folder / "control").parent

    return give


def read(opened: OpenedControl, **options) -> dict[str, mx.array]:
    return flatten_parameters(load_control_network(opened, **options))


def same(found: dict[str, mx.array], wanted: dict[str, mx.array]) -> bool:
    """Return whether parameters are equal to the bit, and of the same types."""
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and mx.array_equal(found[key], wanted[key]).item()
        for key in wanted
    )


def list_layouts(name: str, tensors: dict) -> dict[str, dict]:
    """Return the tensors of a network under the names that files of it have, by layout."""
    if name in ADAPTERS:
        return {"diffusers": tensors, "authors": original_adapter(tensors)}
    if name == UNION:
        return {"diffusers": tensors}
    names = original_controlnet(tensors)
    prefixed = {f"control_model.{key}": value for key, value in names.items()}
    others = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4, 3, 3), np.float32)}
    others["cond_stage_model.x"] = np.zeros(3, np.float32)
    if name != "sd-1":  # the other ways do not depend on the kind
        return {"authors": names}
    embedding = {key: value for key, value in tensors.items() if "cond_embedding" in key}
    mixed = {key: value for key, value in names.items() if not key.startswith("input_hint")}
    return {
        "diffusers": tensors,
        "authors": names,
        "mixed": mixed | embedding,
        "prefix": prefixed,
        "whole checkpoint": prefixed | others,
    }


@pytest.mark.parametrize("name", BASE_OF)
def test_a_file_is_the_network_of_the_folder(write, tmp_path, name):
    """Its config is made from names and shapes; the weights are equal to the bit."""
    model, folder = write(name)
    expected = read(open_control(folder, model))
    tensors = load_file(folder / WEIGHTS)
    stem = "control_v11e_sd15_shuffle_fp16" if "pooled" in name else "x"
    for layout, renamed in list_layouts(name, tensors).items():
        file = original_layout.save(renamed, tmp_path / f"{stem}.safetensors")
        opened = open_control(str(file), model)
        assert same(read(opened), expected), layout
        wanted = open_control(folder, model).config
        for option in ("heads", "mid_depth", "factor", "global_pool_conditions"):
            if hasattr(wanted, option):
                assert getattr(opened.config, option) == getattr(wanted, option), option
        for option in ("features", "num_control_type", "num_trans_layer", "in_channels"):
            assert getattr(opened.config, option, None) == getattr(wanted, option, None)


@pytest.mark.parametrize(
    "options", [{}, {"num_control_type": 6, "num_trans_channel": 16, "num_proj_channel": 16}]
)
def test_a_union_is_known_by_its_file(write, tmp_path, options):
    """Published configs say the class of a ControlNet, or another number of types."""
    model, folder = write(UNION)
    content = json.loads((folder / "config.json").read_text())
    expected = read(open_control(folder, model))
    content = {key: value for key, value in content.items() if key not in UNION_OPTIONS}
    content |= {"_class_name": "ControlNetModel", **options}
    other = write_config(tmp_path / "union", content)
    (other / WEIGHTS).symlink_to(folder / WEIGHTS)
    for given in (other, other / WEIGHTS):
        opened = open_control(given, model)
        loaded = LoadedControl(opened, False)
        assert same(flatten_parameters(loaded.network), expected)
        assert loaded.types[6:] == ("tile", "repaint")
        assert find_damaged_control_weights(opened, True) == []


def test_precisions(write, tmp_path):
    """A file in fewer bits is widened; in half precision its numbers are as the file has them."""
    model, folder = write("sd-1")
    tensors = load_file(folder / WEIGHTS)
    half = original_layout.save(original_controlnet(tensors), tmp_path / "h.st", dtype=np.float16)
    file = half.rename(tmp_path / "half.safetensors")
    opened = open_control(file, model)
    expected = read(open_control(folder, model), float16=True)
    assert same(read(opened, float16=True), expected)
    widened = {key: value.astype(mx.float32) for key, value in expected.items()}
    assert same(read(opened), widened)
    assert same(read(opened, float16=True, widened=True), widened)

    key = "controlnet_mid_block.bias"
    for dtype, cast in (
        (torch.bfloat16, lambda x: x.astype(mx.bfloat16)),
        (torch.float8_e4m3fn, lambda x: mx.from_fp8(mx.to_fp8(x), mx.float16)),
    ):
        narrow = {name: torch.from_numpy(value).to(dtype) for name, value in tensors.items()}
        torch_file.save_file(narrow, tmp_path / "narrow.safetensors")
        found = read(open_control(tmp_path / "narrow.safetensors", model))[key]
        assert found.dtype == mx.float32
        assert mx.array_equal(found, cast(mx.array(tensors[key])).astype(mx.float32))


def test_differences_are_added_to_the_unet(write, tmp_path):
    model, folder = write("sd-1")
    tensors = load_file(folder / WEIGHTS)
    unet = {key: value.float().numpy() for key, value in make_base("sd-1").state_dict().items()}
    original_layout.save(unet, model.source.root / "unet" / WEIGHTS)
    difference = {key: value - unet.get(key, 0) for key, value in tensors.items()}
    names = {f"control_model.{k}": v for k, v in original_controlnet(difference).items()}
    file = original_layout.save({**names, "difference": np.zeros(0)}, tmp_path / "d.safetensors")
    opened = open_control(file, model)
    found, wanted = read(opened), read(open_control(folder, model))
    assert opened.is_difference and found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert mx.allclose(found[key], value, atol=1e-6, rtol=1e-6), key
    assert mx.array_equal(found["controlnet_mid_block.bias"], wanted["controlnet_mid_block.bias"])
    assert {value.dtype for value in read(opened, float16=True).values()} == {mx.float16}


def test_folders(write, tmp_path):
    """A pipeline's folder, the fp16 variant alone, and a file whose config.json is beside it."""
    model, folder = write("sd-2")  # whose pictures are BGR, which a file alone does not say
    expected = read(open_control(folder, model))
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "controlnet").symlink_to(folder)
    assert same(read(open_control(pipeline, model)), expected)
    opened = open_control(folder / WEIGHTS, model)
    assert opened.config == open_control(folder, model).config
    assert same(read(opened), expected)
    variant = write_config(tmp_path / "variant", json.loads((folder / "config.json").read_text()))
    (variant / WEIGHTS.replace(".", ".fp16.", 1)).symlink_to(folder / WEIGHTS)
    assert same(read(open_control(str(variant), model)), expected)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "any.safetensors").symlink_to(folder / WEIGHTS)
    assert same(read(open_control(alone, model)), expected)


def test_the_hub(hub, monkeypatch, write, tmp_path):
    """A short name, a repository, a file of one, and a folder of one; then all of them offline."""
    model, folder = write("sd-2")
    family = describe_unet(model.unet_config)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = hub.add(REPO, files | {"a/one.safetensors": files[WEIGHTS]})
    hub.add("org/more", {f"canny/{name}": content for name, content in files.items()})
    known = {
        "canny": KnownControl(REPO, "", ""),
        "one": KnownControl(REPO, "", "", "a/one.safetensors"),
    }
    monkeypatch.setitem(known_controls.KNOWN_CONTROLS, family, known)
    expected = read(open_control(folder, model))
    names = [
        "canny",
        "one",
        REPO,
        f"{REPO}@{commit}",
        f"{REPO}/a/one.safetensors",
        "org/more/canny",
    ]
    lines: list[str] = []
    for name in names:
        opened = open_control(name, model, on_message=lines.append)
        if name == "canny":
            assert opened.describe_download(False).startswith(f"Downloading {REPO}, ")
            assert opened.commit == (REPO, commit)
        assert same(read(opened), expected)
        assert opened.describe_download(False) is None
        is_whole = name in ("canny", REPO, f"{REPO}@{commit}", "org/more/canny")
        assert (opened.config.controlnet_conditioning_channel_order == "bgr") == is_whole
    assert len(lines) == 2  # `one`, and the folder: the others have been downloaded
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("canny", "one"):
        assert same(read(open_control(name, model)), expected)


def test_the_tiny_model_has_its_own():
    """Its short names are not those of Stable Diffusion."""
    message = "canny is a control model for SD 1.x, SD 2.x, SDXL, not for tiny .*for tiny: outline"
    tiny = open_model("tiny")
    with pytest.raises(FileNotFoundError, match=message):
        open_control("canny", tiny)
    assert open_control("outline", tiny).name == "outline"


def test_short_names(write):
    model, _ = write("sd-1")
    sd_1 = replace(model.unet_config, cross_attention_dim=768)
    monkey = Model(model.source)
    monkey.__dict__["unet_config"] = sd_1
    for name, message in (
        (
            "cannny",
            r"no control model cannny \(short names for SD 1.x: canny, .*\): did you mean canny",
        ),
        (
            "union",
            r"union is a control model for SDXL, not for SD 1.x \(short names for SD 1.x: canny",
        ),
        ("outline", "outline is a control model for tiny, not for SD 1.x"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            open_control(name, monkey)
        assert "\n" not in str(caught.value)
    names = [control.location for each in KNOWN_CONTROLS.values() for control in each.values()]
    assert len(set(names)) == len(names)


def test_other_bases(write, tmp_path):
    """A control model for another kind of model is refused, with one that is for this one."""
    base = open_model(write_base("sd-1", tmp_path / "base", cross_attention_dim=768))
    for name, start in (
        ("sdxl", "ControlNet"),
        ("sdxl small", "ControlNet"),
        ("full XL", "T2I-Adapter"),
    ):
        _, folder = write(name)
        (tmp_path / f"{name} canny").symlink_to(folder)
        expected = (
            rf"canny is a {start} for SDXL.*, and .*base is SD 1\.x: take canny \(lllyasviel/c"
        )
        with pytest.raises(ValueError, match=expected):
            open_control(tmp_path / f"{name} canny", base)
    with pytest.raises(
        ValueError, match="text embeddings of 16, and .* is SD 1.x: take one for SD 1.x"
    ):
        open_control(write("sd-2")[1], base)
    with pytest.raises(ValueError, match=r"is a T2I-Adapter for SD 1.x, and .* is SDXL"):
        open_control(write("full")[1], write("sdxl")[0])
    for options, message in (
        ({"layers_per_block": 2}, r"its layers_per_block is \[1, 1, 1, 1\], not \[2, 2, 2, 2\]"),
        ({"in_channels": 8, "out_channels": 8}, "its in_channels is 4, not 8"),
    ):
        other = open_model(write_base("sd-1", tmp_path / str(options), **options))
        with pytest.raises(ValueError, match=message):
            open_control(write("sd-1")[1], other)
    small = json.loads((write("sdxl small")[1] / "config.json").read_text())
    small = write_config(tmp_path / "small", small | {"cross_attention_dim": 2048})
    open_control(small, write("sdxl")[0])  # none of its layers attends to the text
    nine = open_model(write_base("sd-1", tmp_path / "nine", in_channels=9))
    nine.__dict__["unet_config"] = UNetConfig.from_dict(*nine.source.config("unet/config.json"))
    open_control(write("sd-1")[1], nine)  # it sees the four that are latents


REFUSED = {  # by a key, or two
    "lora_controlnet": "a control-LoRA; only ControlNets and T2I-Adapters",
    "lllite_unet_input_blocks_4_1.down.0.weight": "a ControlNet-LLLite; only",
    "image_proj.latents": "an IP-Adapter; only",
    "style_embedding": "a style adapter; only",
    "control_model.input_blocks.1.1.lora_layer.up.weight": "a CtrLoRA; only",
    "down_blocks.0.motion_modules.0.x controlnet_down_blocks.0.weight": "a SparseCtrl",
    "brushnet_down_blocks.0.weight": "a BrushNet",
    "pos_embed_input.proj.weight controlnet_blocks.0.weight": "of Stable Diffusion 3; only",
    "controlnet_blocks.0.weight controlnet_x_embedder.weight": "of FLUX; only",
    "control_blocks.0.after_proj.weight": "of Qwen-Image; only",
    "after_proj_list.18.bias": "of Hunyuan-DiT; only",
    "control_layers.14.adaLN_modulation.0.weight": "of Z-Image; only",
    "backbone.0.0.weight": "of Stable Cascade; only",
    "body.0.block1.weight body.2.down_opt.op.weight": "a T2I-Adapter of an early kind",
    "lora_unet_x.lora_up.weight": "a LoRA: give it beside a model \\(--lora\\)",
    "emb_params": "a textual-inversion embedding: give it beside a model \\(--embedding",
    "decoder.conv_in.weight": "a VAE: give it with --vae",
    "decoder.layers.0.weight": "a VAE: give it with --vae",
    "conv_in.weight conv_norm_out.weight": "a UNet: give it with --unet",
    "model.diffusion_model.input_blocks.0.0.weight": "a whole model: give it with --model",
    "anything": "holds no control model",
}


@pytest.mark.parametrize("keys", REFUSED)
def test_files_of_other_things(write, tmp_path, keys):
    file = original_layout.save(
        {key: np.zeros((2, 2, 1, 1)) for key in keys.split()}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ValueError, match=REFUSED[keys]) as caught:
        open_control(file, write("sd-1")[0])
    assert "\n" not in str(caught.value)


def test_names_and_folders_of_other_things(write, tmp_path):
    model, _ = write("sd-1")
    for name, error, message in (
        (
            "control_v11p_sd15_canny.pth",
            ValueError,
            "never loaded: take lllyasviel/control_v11p_sd15_canny .its",
        ),
        (
            "other.ckpt",
            ValueError,
            "is a pickle, and pickles are never loaded: if you trust it, convert",
        ),
        (
            "pose.PNG",
            ValueError,
            "pose.PNG is a picture, not a control model: write --control MODEL=pose.PNG",
        ),
        ("inpaint_v26.fooocus.patch", ValueError, "an inpainting patch of Fooocus"),
        ("./none.safetensors", FileNotFoundError, "no such control model file: ./none.safetensors"),
        ("none.safetensors", FileNotFoundError, "no such control model file"),
    ):
        with pytest.raises(error, match=message):
            open_control(name, model)
    for class_name, message in (
        ("FluxControlNetModel", "this is a ControlNet of FLUX; only"),
        ("UNet2DConditionModel", "this is a UNet: give it with --unet"),
        ("AutoencoderKL", "this is a VAE: give it with --vae"),
        ("MultiControlNetModel", "several ControlNets: give each by itself"),
        ("Unheard", "_class_name = 'Unheard' is not supported"),
    ):
        folder = write_config(tmp_path / class_name, {"_class_name": class_name})
        with pytest.raises(ValueError, match=message):
            open_control(folder, model)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a whole model without a control model: give it with"):
        open_control(tmp_path, model)
    pickles = write_config(
        tmp_path / "pickles", json.loads((write("sd-1")[1] / "config.json").read_text())
    )
    (pickles / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ValueError, match="has .*diffusion_pytorch_model.bin but no safetensors there"
    ):
        read(open_control(pickles, model))


def test_damaged_files(write, tmp_path):
    """Everything that is wrong with the tensors is in one message, before any is read."""
    model, folder = write("sd-1")
    tensors = original_controlnet(load_file(folder / WEIGHTS))
    broken = dict(tensors)
    for key in ("zero_convs.1.0.bias", "middle_block_out.0.weight"):
        del broken[key]
    broken["foreign.weight"] = broken["time_embed.0.bias"]
    broken["time_embed.0.bias"] = np.zeros(3, np.float32)
    file = original_layout.save(broken, tmp_path / "x.safetensors")
    message = (
        "missing: zero_convs.1.0.bias, middle_block_out.0.weight; "
        "not expected: foreign.weight; wrong shape: time_embed.0.bias"
    )
    with pytest.raises(ValueError, match=message) as caught:
        read(open_control(file, model))
    assert "\n" not in str(caught.value)
    whole = file.read_bytes()
    for content, expected in (
        (whole[:-1], "is cut short"),
        (whole[:100], "is cut short"),
        (b"", "not a readable safetensors file"),
        (b"PK\x03\x04" + whole, "it is a pickle"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=expected):
            open_control(file, model)
    for removed, expected in (
        ("input_blocks.0.0.weight", "the architecture is not clear, because .* is missing"),
        ("input_hint_block.0.weight", "not clear, because .*conv_in.weight is missing"),
        ("input_blocks.1.0.in_layers.2.weight", "not clear, because"),
    ):
        file = original_layout.save(
            {key: value for key, value in tensors.items() if key != removed},
            tmp_path / "y.safetensors",
        )
        with pytest.raises(ValueError, match=expected):
            open_control(file, model)
    tensors["middle_block_out.0.bias"] = np.full_like(tensors["middle_block_out.0.bias"], 1e6)
    file = original_layout.save(tensors, tmp_path / "large.safetensors")
    opened = open_control(file, model)
    assert find_damaged_control_weights(opened, True) == [f"{file}: middle_block_out.0.bias"]
    assert find_damaged_control_weights(opened, False) == []


def test_control_models_in_place_of_others(write, tmp_path):
    """As a model, a UNet, a VAE or a LoRA they are refused, and the message says where they go."""
    folder = write("sd-1")[1]
    file = original_layout.save(load_file(folder / WEIGHTS), tmp_path / "x.safetensors")
    for given in (folder, file):
        for open_it in (
            lambda given=given: open_model(given).unet_config,
            lambda given=given: open_model("tiny", unet=given).unet_config,
            lambda given=given: open_model("tiny", vae=given).autoencoder_config,
        ):
            with pytest.raises(ValueError, match=r"a Control|a control model") as caught:
                open_it()
            assert "(--control)" in str(caught.value)
    with pytest.raises(
        ValueError, match="is a ControlNet, not a LoRA of a model: give it with --control"
    ):
        load_lora({"unet": load_unet("tiny")}, file, 1.0, mx.float32)
