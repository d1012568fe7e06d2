"""`--model NAME` of a few-step model: the base, and the LoRA for the steps that are asked for."""

from collections.abc import Sequence
from typing import Any

from ...config.known_models import find_few_step_model
from ..settings import Request
from .value_types import parse_lora


def split_model(values: dict[str, Any], requests: Sequence[Request]) -> dict[str, Any]:
    """Return the values of the options with the base as model, and the LoRA before the others.

    The values are returned as they are if the model is no few-step model.

    Args:
        values: of the options, by their keys.
        requests: of the pictures, which say their steps.

    Raises:
        ValueError: if there is no file for these steps, or they need several files.
    """
    name = values["model"]
    found = find_few_step_model(name)
    if found is None:
        return values
    model, own_steps = found
    default = model.default_steps if own_steps is None else own_steps
    files = {}
    for request in requests:
        steps = default if request.steps is None else request.steps
        if request.timesteps is not None:
            steps = len(request.timesteps)
        if own_steps not in (None, steps):
            raise ValueError(
                f"{request.where}--model {name} is made for {own_steps} steps, not {steps}: leave "
                "--steps out, or the number in the name"
            )
        try:
            files[model.name_file(steps)] = steps
        except ValueError as error:
            raise ValueError(f"{request.where}--model {name}: {error}") from None
    if len(files) > 1:
        counts = " and ".join(map(str, files.values()))
        raise ValueError(
            f"--model {name} has a file for each number of steps: make the pictures of {counts} "
            "steps in runs of their own"
        )
    lora = [parse_lora(file) for file in files] + list(values["lora"])
    return values | {"model": model.base, "model_name": name, "lora": lora}
