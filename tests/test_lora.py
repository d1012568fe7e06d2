"""LoRA equals diffusers' in every naming, on every layer, and goes without a trace.

diffusers only warns of keys that it does not know, so each comparison first counts what it took.
"""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from mlx.utils import tree_flatten
from oracle import Oracle, channels_first, channels_last, relative_l2
from parity import POOLED_WIDTH, TIME_IDS, random_normal, random_tokens
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from stable_diffusion import StableDiffusion, StableDiffusionXL

ERROR = 2e-5
HEARD = 0.05  # how far, at least, the LoRA of these tests move every network's output
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

# A layer of a pipeline, "COMPONENT.NAME" → D, U and alpha.
Changes = dict[str, tuple[torch.Tensor, torch.Tensor, float]]
Write = Callable[[Path, Changes], None]


def components(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    found = {name: getattr(pipeline, name, None) for name in ("unet", *TEXT_ENCODERS)}
    return {name: network for name, network in found.items() if network is not None}


def random_changes(
    pipeline: DiffusionPipeline, seed: int, rank: int, alpha: float, only: str = ""
) -> Changes:
    """Of all linear layers and convolutions whose names hold `only`."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for component, network in components(pipeline).items():
        for name, layer in network.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or only not in name:
                continue
            out, *rest = layer.weight.shape
            down = torch.randn(rank, *rest, generator=generator) / np.prod(rest) ** 0.5
            up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
            changes[f"{component}.{name}"] = (down, up * 0.3 / rank**0.5, alpha)
    return changes


def write_kohya(file: Path, changes: Changes, prefixes: dict[str, str] = KOHYA) -> None:
    """kohya's scripts: dots made underscores, an alpha a layer."""
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
    """kohya's scripts on SDXL: the layers have the names of Stability AI's code."""
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
    """diffusers today: PEFT's names, and its options as metadata."""
    tensors, options = {}, {}
    for name, (down, up, alpha) in changes.items():
        component, _, layer = name.partition(".")
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
        options[f"{component}.r"] = len(down)
        options[f"{component}.lora_alpha"] = alpha
        if layer.endswith(("to_k", "k_proj")):
            options.setdefault(f"{component}.alpha_pattern", {})[layer] = 2 * alpha
        options.setdefault(f"{component}.target_modules", []).append(layer)
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(options)})


def write_diffusers(file: Path, changes: Changes) -> None:
    """diffusers 0.17 to 0.25; the product comes as it is, without an alpha."""
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
    """diffusers before 0.17, which knew attention only."""
    tensors = {}
    for name, (down, up, _) in changes.items():
        for today, old in OLD_ATTENTION.items():
            if name.endswith("." + today):
                key = name.removesuffix(today) + old
                tensors[f"{key}.down.weight"] = down
                tensors[f"{key}.up.weight"] = up
    assert len(tensors) == 2 * len(changes)
    save_file(tensors, file)


def with_lora(folder: Path, files: list[Path], scales: list[float]) -> DiffusionPipeline:
    """diffusers in float64 with the LoRA of `files`."""
    pipeline = Oracle(folder)._load()
    names = [f"lora{i}" for i in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipeline.load_lora_weights(file, adapter_name=name)
    pipeline.set_adapters(names, scales)
    return pipeline.to(torch.float64)


def count(pipeline: DiffusionPipeline, adapter: str = "lora0") -> int:
    """The layers that have an adapter."""
    layers = (layer for network in components(pipeline).values() for layer in network.modules())
    return sum(isinstance(layer, LoraLayer) and adapter in layer.r for layer in layers)


def load(folder: Path) -> StableDiffusion:
    return (StableDiffusionXL if "xl" in folder.name else StableDiffusion)(folder)


def ours(sd: StableDiffusion) -> dict[str, mx.array]:
    """What the networks give for random inputs, by component."""
    x = mx.array(random_normal(2, 7, 9, 4))
    text = mx.array(random_normal(2, 77, sd.config.unet.cross_attention_dim))
    text_time = None
    if sd.config.is_xl:
        text_time = (mx.array(random_normal(2, POOLED_WIDTH)), mx.array(TIME_IDS))
    outputs = {"unet": sd.unet(x, mx.array([999, 3.5]), text, text_time)}
    for name, text_encoder in zip(TEXT_ENCODERS, sd._text_encoders(), strict=False):
        output = text_encoder(mx.array(random_tokens()))
        outputs[name] = mx.concatenate([output.last_hidden_state.flatten(), output.pooled_output.flatten()])
    return outputs


@torch.no_grad()
def theirs(pipeline: DiffusionPipeline) -> dict[str, np.ndarray]:
    """The same of diffusers."""
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
            outputs[name] = torch.cat([output.last_hidden_state.flatten(), pooled.flatten()]).numpy()
    return outputs


def assert_equal(sd: StableDiffusion, pipeline: DiffusionPipeline) -> None:
    expected = theirs(pipeline)
    for name, output in ours(sd).items():
        assert relative_l2(output, expected[name]) <= ERROR, name


def identical(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]).item() for name in a)


def parameters(sd: StableDiffusion) -> dict[str, mx.array]:
    networks = [sd.unet, *sd._text_encoders()]
    return dict(tree_flatten([network.parameters() for network in networks]))


@pytest.mark.parametrize(
    ("kind", "write", "only"),
    [
        ("sd-1", write_kohya, ""),
        ("sd-1", write_peft, ""),
        ("sd-1", write_old_diffusers, "attn"),
        ("sd-2", write_diffusers, ""),
        ("sdxl", write_kohya, ""),
        ("sdxl", write_kohya_original, ""),
        ("sdxl", write_peft, ""),
    ],
)
def test_namings(checkpoint, oracle, tmp_path, kind, write, only):
    """Every layer of every network, in every naming, at scale 0.7."""
    file = tmp_path / "lora.safetensors"
    changes = random_changes(oracle(kind).single, seed=1, rank=4, alpha=2.0, only=only)
    if write is write_kohya:  # diffusers misreads the names of these two layers
        changes = {name: c for name, c in changes.items() if "add_embedding" not in name}
    write(file, changes)
    pipeline = with_lora(checkpoint(kind), [file], [0.7])
    assert count(pipeline) == len(changes)
    sd = load(checkpoint(kind))
    before = ours(sd)
    sd.load_lora(file, 0.7)
    assert_equal(sd, pipeline)
    for name, output in ours(sd).items():
        assert relative_l2(output, before[name]) >= HEARD
