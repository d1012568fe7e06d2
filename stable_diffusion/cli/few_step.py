"""Files that distil a model to few steps: take their settings as defaults, and say so."""

import os

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
        say(f"{os.path.basename(model.source_of('unet').name)}: {config.few_step}")
    for file, scale in settings.lora:
        if scale > 0 and (few_step := recognize_lora(file)) is not None:
            say(f"{os.path.basename(file.name)}: {few_step}")
            config = config.with_few_step(few_step)
    return config
