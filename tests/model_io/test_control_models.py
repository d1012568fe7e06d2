"""Control models from folders, files and the Hub: the same network by each way in."""

import json
from functools import cache
from pathlib import Path

import control_files
import mlx.core as mx
import numpy as np
import original_layout
import pytest
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

from stable_diffusion.config import known_controls
from stable_diffusion.config.known_controls import KNOWN_CONTROLS, KnownControl
from stable_diffusion.model_io.control_models import (
    OpenedControl,
    find_damaged_control_weights,
    load_control_network,
    open_control,
)
from stable_diffusion.model_io.loaders import open_model
from stable_diffusion.model_io.model import Model
from stable_diffusion.model_io.weights import flatten_parameters

UNION_6, UNION_8 = "union 6", "union 8"
BASE_OF = {
    **{name: base for name, (base, _) in (*CONTROLNETS.items(), *ADAPTERS.items())},
    UNION_6: "sdxl",
    UNION_8: "sdxl",
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
            network = make_union(int(name[-1])) if "union" in name else make_controlnet(name)
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
    if "union" in name:
        return {"diffusers": tensors}
    names = original_controlnet(tensors)
    prefixed = {f"control_model.{key}": value for key, value in names.items()}
    others = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4, 3, 3), np.float32)}
    others["cond_stage_model.x"] = np.zeros(3, np.float32)
    return {
        "diffusers": tensors,
        "authors": names,
        "control_model": prefixed,
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
