"""LoRA equals diffusers' with all names of layers, on all layers, and can be removed completely.

diffusers only warns of keys that it does not know, so each comparison first counts the layers that
it has changed.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from mlx.utils import tree_flatten
from oracle import Oracle, channels_first, channels_last, psnr, relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal, random_tokens
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import save_file

import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.adapters.lora import load_lora
from stable_diffusion.adapters.lora_keys import COMPONENTS
from stable_diffusion.adapters.lora_layers import AdaptedLinear
from stable_diffusion.cli.arguments import value_types
from stable_diffusion.device import cpu_kernels
from stable_diffusion.quantized_convolution import QuantizedConv3x3

ERROR = 2e-5
MIN_CHANGE = 0.05  # of every network's output by the LoRA of these tests
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

# A layer of a pipeline, "COMPONENT.NAME" → D, U and alpha.
Changes = dict[str, tuple[torch.Tensor, torch.Tensor, float]]
Write = Callable[[Path, Changes], None]


def list_components(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    found = {name: getattr(pipeline, name, None) for name in ("unet", *TEXT_ENCODERS)}
    return {name: network for name, network in found.items() if network is not None}


def random_changes(
    pipeline: DiffusionPipeline, seed: int, rank: int, alpha: float, only: str = ""
) -> Changes:
    """Return a change of all linear layers and convolutions whose names contain `only`."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for component, network in list_components(pipeline).items():
        for name, layer in network.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or only not in name:
                continue
            out, *rest = layer.weight.shape
            down = torch.randn(rank, *rest, generator=generator) / np.prod(rest) ** 0.5
            up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
            changes[f"{component}.{name}"] = (down, up * 0.3 / rank**0.5, alpha)
    return changes


def write_kohya(file: Path, changes: Changes, prefixes: dict[str, str] = KOHYA) -> None:
    """Write names as kohya's scripts do: underscores for dots, and an alpha for each layer."""
    tensors = {}
    for name, (down, up, alpha) in changes.items():
        component, _, layer = name.partition(".")
        if component != "unet" and layer != "text_projection":
            layer = "text_model." + layer.removeprefix("text_model.")
        key = prefixes[component] + layer.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, file, metadata={"ss_network_module": "networks.lora"})


# The blocks of SDXL, as Stability AI's code numbers them.
ORIGINAL_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.resnets.1": "input_blocks.2.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0": "input_blocks.4.0",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0": "input_blocks.7.0",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.resnets.1": "input_blocks.8.0",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.resnets.2": "output_blocks.2.0",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.3.0",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.6.0",
    "up_blocks.2.resnets.1": "output_blocks.7.0",
    "up_blocks.2.resnets.2": "output_blocks.8.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
ORIGINAL_LAYERS = {
    ".conv1": ".in_layers.2",
    ".conv2": ".out_layers.3",
    ".time_emb_proj": ".emb_layers.1",
    ".conv_shortcut": ".skip_connection",
}


def write_kohya_original(file: Path, changes: Changes) -> None:
    """Write names as kohya's scripts do for SDXL: those of Stability AI's code."""
    renamed = {}
    for name, change in changes.items():
        component, _, layer = name.partition(".")
        if component == "unet":
            block = next(b for b in ORIGINAL_BLOCKS if layer == b or layer.startswith(b + "."))
            layer = ORIGINAL_BLOCKS[block] + layer.removeprefix(block)
            for theirs, original in ORIGINAL_LAYERS.items():
                layer = layer.replace(theirs, original)
        renamed[f"{component}.{layer}"] = change
    write_kohya(file, renamed)


def write_peft(file: Path, changes: Changes) -> None:
    """Write PEFT's names, and its options as metadata, as diffusers does today."""
    tensors, options = {}, {}
    for name, (down, up, alpha) in changes.items():
        component, _, layer = name.partition(".")
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
        options[f"{component}.r"] = len(down)
        options[f"{component}.lora_alpha"] = alpha
        options[f"{component}.use_rslora"] = component == "unet"
        if layer.endswith(("mid_block.attentions.0.proj_in", "1.self_attn.k_proj")):
            options[f"{component}.alpha_pattern"] = {layer: 2 * alpha}
        options.setdefault(f"{component}.target_modules", []).append(layer)
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(options)})


def write_diffusers(file: Path, changes: Changes) -> None:
    """Write names as diffusers 0.17 to 0.25 did, without an alpha."""
    tensors = {}
    for name, (down, up, _) in changes.items():
        infix = "lora" if name.startswith("unet.") else "lora_linear_layer"
        tensors[f"{name}.{infix}.down.weight"] = down
        tensors[f"{name}.{infix}.up.weight"] = up
    save_file(tensors, file)


OLD_ATTENTION = {
    "to_q": "processor.to_q_lora",
    "to_k": "processor.to_k_lora",
    "to_v": "processor.to_v_lora",
    "to_out.0": "processor.to_out_lora",
    "self_attn.q_proj": "self_attn.to_q_lora",
    "self_attn.k_proj": "self_attn.to_k_lora",
    "self_attn.v_proj": "self_attn.to_v_lora",
    "self_attn.out_proj": "self_attn.to_out_lora",
}


def write_old_diffusers(file: Path, changes: Changes) -> None:
    """Write names as diffusers before 0.17 did, which knew only attention."""
    tensors = {}
    for name, (down, up, _) in changes.items():
        for today, old in OLD_ATTENTION.items():
            if name.endswith("." + today):
                key = name.removesuffix(today) + old
                tensors[f"{key}.down.weight"] = down
                tensors[f"{key}.up.weight"] = up
    assert len(tensors) == 2 * len(changes)
    save_file(tensors, file)


@contextmanager
def use_lora(pipeline: DiffusionPipeline, *files: Path) -> Iterator[None]:
    """Give a pipeline of diffusers, in float64, the LoRA of `files` with the names "0", "1" …"""
    try:
        for i, file in enumerate(files):
            pipeline.load_lora_weights(file, adapter_name=str(i))
        pipeline.to(torch.float64)
        yield
    finally:  # other tests have the pipeline, too
        pipeline.unload_lora_weights()


def add_to_weights(pipeline: DiffusionPipeline, changes: Changes, scale: float) -> None:
    """Add changes to the weights of a pipeline, which is much faster than `use_lora`."""
    for name, (down, up, alpha) in changes.items():
        component, _, layer = name.partition(".")
        weight = getattr(pipeline, component).get_submodule(layer).weight
        product = up.flatten(1).double() @ down.flatten(1).double()
        weight.data += scale * alpha / len(down) * product.reshape(weight.shape).to(weight.dtype)


def count(pipeline: DiffusionPipeline, adapter: str = "0") -> int:
    """Return the number of layers that have an adapter."""
    layers = (
        layer for network in list_components(pipeline).values() for layer in network.modules()
    )
    return sum(isinstance(layer, LoraLayer) and adapter in layer.r for layer in layers)


def load(folder: Path) -> StableDiffusion:
    return (StableDiffusionXL if "xl" in folder.name else StableDiffusion)(folder)


@pytest.fixture(scope="module")
def models(checkpoint) -> Callable[[str], StableDiffusion]:
    return cache(lambda kind: load(checkpoint(kind)))


@pytest.fixture
def model(models) -> Iterator[Callable[[str], StableDiffusion]]:
    """Yield a function that returns a model of a kind, without LoRA. Do not quantize it."""
    yield models
    for kind in ("sd-1", "sdxl"):
        models(kind).unload_lora()


def run_ours(sd: StableDiffusion) -> dict[str, mx.array]:
    """Return the outputs of the networks for random inputs, by component."""
    x = mx.array(random_normal(2, 7, 9, 4), sd.dtype)
    text = mx.array(random_normal(2, 77, sd.config.unet.cross_attention_dim), sd.dtype)
    text_time = None
    if sd.config.is_xl:
        text_time = (mx.array(random_normal(2, POOLED_WIDTH)), mx.array(TIME_IDS))
    outputs = {"unet": sd.unet(x, mx.array([999, 3.5]), text, text_time)}
    for name, text_encoder in zip(TEXT_ENCODERS, sd._text_encoders, strict=False):
        output = text_encoder(mx.array(random_tokens()))
        outputs[name] = mx.concatenate(
            [output.last_hidden_state.flatten(), output.pooled_output.flatten()]
        )
    return outputs


@torch.no_grad()
def run_diffusers(pipeline: DiffusionPipeline) -> dict[str, np.ndarray]:
    """Return the same outputs of diffusers."""
    unet = pipeline.unet
    added = {}
    if unet.config.addition_embed_type:
        pooled = torch.from_numpy(random_normal(2, POOLED_WIDTH)).double()
        added = {"text_embeds": pooled, "time_ids": torch.from_numpy(TIME_IDS).double()}
    prediction = unet(
        channels_first(random_normal(2, 7, 9, 4)),
        torch.tensor([999, 3.5]),
        torch.from_numpy(random_normal(2, 77, unet.config.cross_attention_dim)).double(),
        added_cond_kwargs=added,
    ).sample
    outputs = {"unet": channels_last(prediction)}
    for name in TEXT_ENCODERS:
        text_encoder = getattr(pipeline, name, None)
        if text_encoder is not None:
            output = text_encoder(torch.from_numpy(random_tokens()))
            pooled = output.text_embeds if name == "text_encoder_2" else output.pooler_output
            outputs[name] = torch.cat(
                [output.last_hidden_state.flatten(), pooled.flatten()]
            ).numpy()
    return outputs


def assert_equal(outputs: dict[str, mx.array], expected: dict[str, np.ndarray]) -> None:
    assert outputs.keys() == expected.keys()
    for name, output in outputs.items():
        assert relative_l2(output, expected[name]) <= ERROR, name


def are_identical(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]).item() for name in a)


def list_parameters(sd: StableDiffusion) -> dict[str, mx.array]:
    networks = sd._networks.items()
    return dict(tree_flatten({name: network.parameters() for name, network in networks}))


@pytest.mark.parametrize(
    ("kind", "write", "only"),
    [
        ("sd-1", write_old_diffusers, "attn"),
        ("sd-1", write_peft, ""),
        ("sdxl", write_kohya, ""),
    ],
)
def test_namings(model, oracle, tmp_path, kind, write, only):
    """Every layer of every network is changed; the next test has the other kinds of names."""
    file = tmp_path / "lora.safetensors"
    pipeline = oracle(kind).exact
    changes = random_changes(pipeline, seed=1, rank=4, alpha=2.0, only=only)
    if write is write_kohya:  # diffusers does not know the names of these two layers
        changes = {name: c for name, c in changes.items() if "add_embedding" not in name}
    write(file, changes)
    sd = model(kind)
    before = run_ours(sd)
    sd.load_lora(file, 0.7)
    after = run_ours(sd)
    with use_lora(pipeline, file):
        assert count(pipeline) == len(changes)
        pipeline.set_adapters("0", 0.7)
        assert_equal(after, run_diffusers(pipeline))
    assert all(relative_l2(after[name], before[name]) >= MIN_CHANGE for name in after)


@pytest.mark.parametrize(("kind", "write"), [("sd-1", write_kohya), ("sdxl", write_kohya_original)])
def test_scales_and_stacks(model, oracle, tmp_path, kind, write):
    """Two files have different ranks, the second one only for some layers."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    pipeline = oracle(kind).exact
    changes = random_changes(pipeline, seed=1, rank=4, alpha=2.0)
    write(files[0], changes)
    write(files[1], random_changes(pipeline, seed=2, rank=2, alpha=4.0, only="conv1"))
    sd = model(kind)
    weights, outputs = list_parameters(sd), run_ours(sd)
    with use_lora(pipeline, *files):
        assert count(pipeline) == len(changes)
        for scales in ((0.0, 0.0), (0.7, 0.0), (1.0, 0.7)):
            for file, scale in zip(files, scales, strict=True):
                sd.load_lora(file, scale)
            pipeline.set_adapters(["0", "1"], [*scales])
            now = run_ours(sd)
            assert_equal(now, run_diffusers(pipeline))
            assert are_identical(now, outputs) == (scales == (0, 0))  # to the bit
            sd.unload_lora()
            assert are_identical(list_parameters(sd), weights)
    assert are_identical(run_ours(sd), outputs)


def widen_weight(layer: nn.Module) -> np.ndarray:
    """Return a weight, quantized or in half precision, in float32 and PyTorch's order of axes."""
    weight = layer.plain_weight() if isinstance(layer, QuantizedConv3x3) else layer.weight
    if isinstance(layer, nn.QuantizedLinear):
        packed = weight, layer.scales, layer.biases
        weight = mx.dequantize(*packed, layer.group_size, layer.bits)
    wide = np.array(weight.astype(mx.float32))
    return wide if wide.ndim == 2 else np.ascontiguousarray(wide.transpose(0, 3, 1, 2))


def test_quantized(checkpoint, oracle, tmp_path):
    """LoRA work on quantized weights; diffusers gets the same weights in float32."""
    pipeline = oracle("sdxl").make_copy()
    file = tmp_path / "lora.safetensors"
    changes = random_changes(pipeline, seed=1, rank=4, alpha=4.0)
    write_diffusers(file, changes)
    sd = load(checkpoint("sdxl"))
    sd.quantize()
    for component, network in sd._networks.items():
        modules = dict(getattr(pipeline, component).named_modules())
        kinds = (nn.QuantizedLinear, nn.Linear, nn.Conv2d)
        layers = [(p, m) for p, m in network.named_modules() if isinstance(m, kinds)]
        assert any(isinstance(layer, nn.QuantizedLinear) for _, layer in layers)
        for path, layer in layers:
            name = COMPONENTS[component].key(path)
            module = modules.get(name) or modules["text_model." + name]
            module.weight.data = torch.from_numpy(widen_weight(layer)).reshape(module.weight.shape)
    weights, outputs = list_parameters(sd), run_ours(sd)
    sd.load_lora(file, 0)
    assert are_identical(run_ours(sd), outputs)
    sd.load_lora(file, 0.7)
    assert {*weights.values()} <= {*list_parameters(sd).values()}  # the same arrays, not copies
    pipeline.to(torch.float64)
    add_to_weights(pipeline, changes, 0.7)
    assert_equal(run_ours(sd), run_diffusers(pipeline))
    sd.unload_lora()
    assert are_identical(list_parameters(sd), weights) and are_identical(run_ours(sd), outputs)


def test_quantizing_can_come_later(checkpoint, oracle, tmp_path):
    file = tmp_path / "lora.safetensors"
    write_diffusers(file, random_changes(oracle("sd-1").exact, seed=1, rank=4, alpha=4.0))
    before, after = load(checkpoint("sd-1")), load(checkpoint("sd-1"))
    before.quantize()
    before.load_lora(file, 0.7)
    after.load_lora(file, 0.7)
    after.quantize()
    assert are_identical(run_ours(before), run_ours(after))


def test_each_layer_has_its_own_rank_and_alpha(model, oracle, tmp_path):
    """diffusers takes the most frequent alpha for some layers, so it gets changed weights."""
    pipeline = oracle("sdxl").make_copy().to(torch.float64)
    two_kinds = [random_changes(pipeline, i, rank=i, alpha=2.5 / i) for i in (1, 3)]
    changes = {name: two_kinds[i % 2][name] for i, name in enumerate(two_kinds[0])}
    file = tmp_path / "lora.safetensors"
    write_kohya(file, changes)
    add_to_weights(pipeline, changes, 0.7)
    sd = model("sdxl")
    sd.load_lora(file, 0.7)
    assert_equal(run_ours(sd), run_diffusers(pipeline))


def test_half_precision_stays(checkpoint, oracle, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)  # which computes in float32
    file = tmp_path / "lora.safetensors"
    write_diffusers(file, random_changes(oracle("sd-1").exact, seed=1, rank=4, alpha=4.0))
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    sd.load_lora(str(file))
    assert all(output.dtype == mx.float16 for output in run_ours(sd).values())


def test_without_text_encoders(checkpoint, oracle, tmp_path):
    """After they are freed, only LoRA of the UNet can be loaded and removed."""
    file = tmp_path / "lora.safetensors"
    changes = random_changes(oracle("sd-1").exact, seed=1, rank=4, alpha=4.0, only="proj")
    sd = load(checkpoint("sd-1"))
    sd.free_text_encoders()
    write_kohya(file, changes)
    with pytest.raises(ValueError, match=r"does not fit unet: .* lora_te1_text_model"):
        sd.load_lora(file)
    weights = dict(tree_flatten(sd.unet.parameters()))
    write_kohya(file, {name: c for name, c in changes.items() if name.startswith("unet.")})
    sd.load_lora(file)
    assert len(tree_flatten(sd.unet.parameters())) > len(weights)
    sd.unload_lora()
    assert are_identical(dict(tree_flatten(sd.unet.parameters())), weights)


LAYER = "unet.mid_block.attentions.0.proj_in"  # [64, 64] in sd-1
DOWN, UP = torch.ones(4, 64), torch.ones(64, 4)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"lora_unet_x.lora_down.weight": DOWN}, {}, "no such layers: lora_unet_x.lora_down.we"),
        ({f"{i}.alpha": UP for i in range(12)}, {}, "0.alpha, .* and 2 more"),
        (
            {f"{LAYER}.lora_A.weight": DOWN},
            {},
            f"missing: the counterpart of {LAYER}.lora_A.weight",
        ),
        (
            {f"{LAYER}.lora_A.weight": DOWN, f"{LAYER}.lora_B.weight": UP[:9]},
            {},
            rf"wrong shape: .*{LAYER}.lora_B.weight \[9, 4\]",
        ),
        (
            {f"{LAYER}.lora_A.weight": DOWN[0], f"{LAYER}.lora_B.weight": torch.tensor(1.0)},
            {},
            "wrong shape",
        ),
        (
            {f"{LAYER}.lora_A.weight": DOWN[:0], f"{LAYER}.lora_B.weight": UP[:, :0]},
            {},
            "wrong shape",
        ),
        (
            {
                f"{LAYER}.lora_A.weight": DOWN,
                f"{LAYER}.lora_B.weight": UP,
                f"{LAYER}.alpha": torch.ones(2),
            },
            {},
            rf"wrong shape: .*{LAYER}.alpha \[2\]",
        ),
        (
            {f"{LAYER}.lora_A.weight": DOWN, f"{LAYER}.lora.down.weight": DOWN},
            {},
            "are the same tensor of one layer",
        ),
        ({}, {}, "contains no LoRA"),
    ],
)
def test_files_that_do_not_fit(model, tmp_path, tensors, metadata, message):
    """One line names the file and the keys, and the model stays as it is."""
    file = tmp_path / "lora.safetensors"
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    networks = {"unet": model("sd-1").unet}
    before = dict(tree_flatten(networks["unet"].parameters()))
    with pytest.raises(ValueError, match=message) as caught:
        load_lora(networks, file, 1.0, mx.float32)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert are_identical(dict(tree_flatten(networks["unet"].parameters())), before)


def test_files_that_are_no_lora(tmp_path):
    file = tmp_path / "lora.safetensors"
    with pytest.raises(OSError, match="no such LoRA file"):
        load_lora({}, file, 1.0, mx.float32)
    file.write_bytes(b"pickled")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_lora({}, file, 1.0, mx.float32)
    save_file({}, file, metadata={"lora_adapter_metadata": "[1]"})
    with pytest.raises(ValueError, match="is not a JSON object"):
        load_lora({}, file, 1.0, mx.float32)
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        load_lora({}, file, float("nan"), mx.float32)


def test_the_options(checkpoint, oracle, tmp_path, monkeypatch):
    """Two LoRA, one of them with a scale, change the script's picture as in diffusers; merged."""
    merged, merge = [], AdaptedLinear.merge
    monkeypatch.setattr(AdaptedLinear, "merge", lambda layer: merged.append(layer) or merge(layer))
    bare, theirs = oracle("sd-1").exact, Oracle(checkpoint("sd-1"))
    files = [tmp_path / "a.safetensors", tmp_path / "b:1.safetensors"]
    for i, (file, scale) in enumerate(zip(files, (0.4, 1.0), strict=True)):
        changes = random_changes(bare, seed=i, rank=4, alpha=4.0, only="attn")
        write_diffusers(file, changes)
        add_to_weights(theirs.single, changes, scale)
    expected = theirs.pictures("a photo", seeds=[7], num_inference_steps=2, guidance_scale=3.0)
    options = ["--model", checkpoint("sd-1"), "--seed=7", "--steps=2", "--cfg=3", "--n_images=1"]
    options += ["--output", tmp_path / "o.png", "--lora", f"{files[0]}:0.4", "--lora", files[1]]
    assert txt2image.main(["a photo", "--merge-loras", *map(str, options)]) == 0
    assert merged
    picture = np.asarray(Image.open(tmp_path / "o.png"))
    assert psnr(picture, expected[0]) >= 50


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("none.safetensors", "argument --lora: no such LoRA file: none.safetensors"),
        ("none.safetensors:0.5", "argument --lora: no such LoRA file: none.safetensors"),
        (f"{__file__}:much", "argument --lora: 'much' is not a number"),
        (f"{__file__}:nan", "argument --lora: must be from -100 to 100, got nan"),
    ],
)
def test_wrong_usage_of_the_option(capsys, lora, message):
    with pytest.raises(SystemExit) as caught:
        txt2image.main(["a photo", "--lora", lora])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_does_not_fit_is_one_line(checkpoint, tmp_path, capsys):
    options = ["--model", str(checkpoint("sd-1")), "--output", str(tmp_path / "o.png")]
    assert txt2image.main(["a photo", "--lora", __file__, *options]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("n_bytes", [10_000_000_000, 10_000_000_001])
def test_how_large_a_file_may_be(tmp_path, n_bytes):
    """There is a limit, as files are read as a whole; this file takes no space on the disk."""
    file = tmp_path / "lora.safetensors"
    file.touch()
    os.truncate(file, n_bytes)
    if n_bytes == 10_000_000_000:
        assert value_types.parse_lora(str(file)) == (str(file), 1.0)
        return
    with pytest.raises(argparse.ArgumentTypeError, match="the most for a LoRA file is 10.0 GB"):
        value_types.parse_lora(str(file))
