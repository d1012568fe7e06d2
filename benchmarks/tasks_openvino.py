"""The benchmark's tasks in OpenVINO, with networks that `convert_checkpoints.py` wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino
from convert_checkpoints import find_converted
from processor import count_cores
from tasks import (
    LATENTS,
    TIMESTEP,
    Task,
    pooled_width,
    random_normal,
    random_picture,
    token_ids,
)

HINTS = {"float32": "f32", "bfloat16": "bf16"}


def prepare(task: Task, folder: Path) -> Callable[[], np.ndarray]:
    """Compile the network of a task for its inputs' shapes, and return a function that runs it.

    Its results are channels-last.
    """
    file = find_converted(folder, task.part)
    if not file.exists():
        raise SystemExit(f"{file} could not be written")
    core = openvino.Core()
    model = core.read_model(file)
    inputs = _make_inputs(task, folder)
    model.reshape({i: list(np.shape(x)) for i, x in enumerate(inputs)})
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[task.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": count_cores(),
    }
    compiled = core.compile_model(model, "CPU", options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != HINTS[task.precision]:
        raise SystemExit(f"OpenVINO computes in {used}, not in {HINTS[task.precision]}")
    if task.part == "text":
        return lambda: compiled(inputs)[0]
    return lambda: compiled(inputs)[0].transpose(0, 2, 3, 1)


def _make_inputs(task: Task, folder: Path) -> list[np.ndarray]:
    """Return the inputs of a task, in the order of the converted network."""
    match task.part:
        case "text":
            return [token_ids()]
        case "decode":
            return [_channels_first(random_normal(1, *LATENTS))]
        case "encode":
            return [_channels_first(random_picture())]
    config = json.loads((folder / "unet" / "config.json").read_text())
    x = _channels_first(random_normal(task.batch, *LATENTS))
    text = random_normal(task.batch, 77, config["cross_attention_dim"], seed=1)
    inputs = [x, np.array(float(TIMESTEP), np.float32), text]
    if config.get("addition_embed_type") is not None:
        pooled = random_normal(task.batch, pooled_width(SimpleNamespace(**config)), seed=2)
        sizes = np.array([[512.0, 512, 0, 0, 512, 512]] * task.batch, np.float32)
        inputs += [pooled, sizes]
    return inputs


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
