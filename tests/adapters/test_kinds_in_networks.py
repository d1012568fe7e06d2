"""All kinds of adapters together, in all layers of the networks, equal changed weights."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from oracle import relative_l2
from safetensors.torch import save_file
from test_kinds import SAMPLES, Tensors, draw
from test_lora import (
    ERROR,
    MIN_CHANGE,
    are_identical,
    list_components,
    list_parameters,
    load,
    run_diffusers,
    run_ours,
    widen_weight,
)

from stable_diffusion.adapters.lora import copy_lora
from stable_diffusion.adapters.lora_layers import find_layers
from stable_diffusion.model_io.layouts import LAYOUTS

SCALE = 0.3
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
NORMS = torch.nn.GroupNorm | torch.nn.LayerNorm
CHANGED = torch.nn.Linear | torch.nn.Conv2d | NORMS


def list_layers(pipeline) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the name of each layer in kohya's files, and the layer."""
    for component, network in list_components(pipeline).items():
        for name, layer in network.named_modules():
            if isinstance(layer, CHANGED):
                name = name.removeprefix("text_model.").replace(".", "_")
                yield PREFIXES[component] + name, layer


def change_layers(pipeline, file: Path) -> None:
    """Change every layer of a pipeline, each by another kind of adapter, and write the file."""
    tensors: Tensors = {}
    kinds = cycle(SAMPLES)
    for number, (name, layer) in enumerate(list_layers(pipeline)):
        weight = layer.weight.detach().double().numpy()
        if isinstance(layer, NORMS):
            changes = {"w_norm": draw(len(weight), seed=number) * 0.1}
            changes["b_norm"] = draw(len(weight), seed=number + 1) * 0.1
            changed = weight + SCALE * changes["w_norm"]
            layer.bias.data += SCALE * torch.from_numpy(changes["b_norm"])
        else:
            n_out, n_in, *kernel = weight.shape
            kind = "LoHa" if n_out % 4 or n_in % 8 else next(kinds)
            changes, change = SAMPLES[kind](n_out, n_in, *kernel)
            changed = change(weight, SCALE)
        layer.weight.data = torch.from_numpy(changed)
        tensors |= {f"{name}.{part}": value for part, value in changes.items()}
    arrays = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in tensors.items()}
    save_file({k: x.float() if x.is_floating_point() else x for k, x in arrays.items()}, file)


def test_all_layers(checkpoint, oracle, tmp_path):
    """Quantized layers and others; without the file the model is as before, to the bit."""
    pipeline, sd = oracle("sd-1").make_copy(), load(checkpoint("sd-1"))
    sd.quantize()
    for component, network in sd._networks.items():
        modules = dict(getattr(pipeline, component).named_modules())
        for path, layer in find_layers(network).items():
            name = LAYOUTS[component].key(path)
            weight = (modules.get(name) or modules["text_model." + name]).weight
            if weight.ndim > 1:
                weight.data = torch.from_numpy(widen_weight(layer)).reshape(weight.shape)
    weights, before = list_parameters(sd), run_ours(sd)
    pipeline.to(torch.float64)
    change_layers(pipeline, tmp_path / "all.safetensors")
    sd.load_lora(tmp_path / "all.safetensors", SCALE)
    after, expected = run_ours(sd), run_diffusers(pipeline)
    for name in after:
        error = relative_l2(after[name], expected[name])
        assert error <= ERROR, name
        assert relative_l2(after[name], before[name]) > MIN_CHANGE
    copy = load(checkpoint("sd-1"))
    copy.quantize()
    for component, network in sd._networks.items():
        copy_lora(network, copy._networks[component], mx.float32)
    assert are_identical(run_ours(copy), after)
    sd.unload_lora()
    assert are_identical(list_parameters(sd), weights) and are_identical(run_ours(sd), before)
