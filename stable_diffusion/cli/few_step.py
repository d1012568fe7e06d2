"""Files that distil a model to few steps: take their settings as defaults, and say so."""

from ..config.model import ModelConfig
from ..model_io.few_step_files import recognize_lora
from .settings import Settings
from .terminal.console import say


def adopt_few_step(settings: Settings, config: ModelConfig) -> ModelConfig:
    """Return the config of a model with the defaults of its files that are made for few steps.

    The pipeline takes the same defaults when it loads the files.
    """
    for file, scale in settings.lora:
        if scale > 0 and (few_step := recognize_lora(file)) is not None:
            say(f"{file.name}: {few_step}")
            config = config.with_few_step(few_step)
    return config
