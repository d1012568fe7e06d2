"""Find the file of a LoRA by its name."""

import os

from ..model_io.hub_file import Announce, ResolvedFile, resolve_file
from .peft_options import CONFIG_NAME

# The names that diffusers and PEFT give their files.
USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def find_lora_file(name: str | os.PathLike[str], announce: Announce | None = None) -> ResolvedFile:
    """Find the file of a LoRA, and download it if it is on the Hub.

    Args:
        name: a safetensors file; a folder with one in it, or with one of `USUAL_NAMES`; or on the
            Hub `org/name` or `org/name/file.safetensors`, with `@revision` after either.
        announce: called with a line about the download before it begins.

    Raises:
        OSError, ValueError: see `resolve_file`.
    """
    return resolve_file(name, "LoRA", USUAL_NAMES, [CONFIG_NAME], announce)
