"""Files that distil a model to few steps: take their settings as defaults, and say so."""

from pathlib import PurePath

from ..config.few_step import FewStepSettings, seems_few_step
from ..config.model import ModelConfig
from ..model_io.few_step_files import recognize_lora
from ..model_io.model import Model
from .settings import Settings
from .terminal.console import say


def adopt_few_step(settings: Settings, model: Model) -> ModelConfig:
    """Return the config of a model with the defaults of its files that are made for few steps.

    The pipeline takes the same defaults when it loads the files.
    """
    config = model.config
    if config.few_step is not None:
        _announce(model.source_of("unet").name, config.few_step)
    for file, scale in settings.lora:
        if scale > 0 and (few_step := recognize_lora(file)) is not None:
            _announce(str(file), few_step)
            config = model.config.with_few_step(few_step)  # the last one counts
    if config.few_step is None:
        _hint(settings)
    return config


def _announce(file: str, few_step: FewStepSettings) -> None:
    """Say which defaults a file sets; its folder is named, too, if its own name says nothing."""
    path = PurePath(file)
    is_plain = path.name.startswith("pytorch_lora_weights")
    name = "/".join(path.parts[-2:]) if is_plain else path.name
    say(f"{name}: {few_step}, unless you say otherwise")


def _hint(settings: Settings) -> None:
    """Say that a checkpoint may be made for few steps, if its name says so and nothing is given."""
    file = PurePath(settings.model)
    is_open = any(request.steps is None or request.cfg is None for request in settings.requests)
    if is_open and file.suffix == ".safetensors" and seems_few_step(file.name):
        say(f"{file.name} may be made for few steps: try --steps 6 --cfg 2, or what its page says")
