"""Recognize the files of models that are distilled to few steps; see `config.few_step`."""

import os
from pathlib import Path

from ..config.few_step import FewStepSettings, recognize_few_step
from .safetensors_file import Header


def recognize_lora(path: str | os.PathLike[str]) -> FewStepSettings | None:
    """Return the settings that a LoRA file was distilled for; None if it is not known.

    It is also None for a file that cannot be read: loading it says why.
    """
    file = Path(path)
    try:
        metadata = Header(str(file), file).metadata
    except (OSError, ValueError):
        return None
    return recognize_few_step(str(file), "lora", metadata)
