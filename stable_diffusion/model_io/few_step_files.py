"""Recognize the files of models that are distilled to few steps; see `config.few_step`."""

import os
from pathlib import Path

from ..config.few_step import FewStepSettings, recognize_few_step
from .safetensors_file import Header


def recognize_lora(path: str | os.PathLike[str]) -> FewStepSettings | None:
    """Return the settings that a LoRA file was distilled for; None if it is not known.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not a safetensors file.
    """
    file = Path(path)
    return recognize_few_step(str(file), "lora", metadata=Header(str(file), file).metadata)
