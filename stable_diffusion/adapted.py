"""What files add to an open model: LoRA, textual inversions, and the settings for few steps."""

import os

import mlx.core as mx
import mlx.nn as nn

from . import check_arguments
from .adapters.find_lora_file import find_lora_file
from .adapters.lora import load_lora, unload_lora
from .adapters.textual_inversion import load_embedding
from .conditioning import Reader
from .config.diffusion import DiffusionConfig
from .config.few_step import FewStepSettings
from .config.known_models import find_few_step_model
from .config.model import ModelConfig
from .model_io.few_step_files import recognize_lora
from .model_io.loaders import Key
from .model_io.model import Model
from .sampler.choose import choose_sampler
from .sampler.sampler import Sampler


def split_few_step_model(model: Key) -> tuple[Key, str | None]:
    """Return the base and the LoRA of one of `FEW_STEP_MODELS`; of others, the model and None."""
    found = find_few_step_model(model) if isinstance(model, str) else None
    return (model, None) if found is None else (found[0].base, found[0].name_file(found[1]))


class Adapted:
    """The part of a pipeline that files change, after it has been loaded."""

    model: Model
    config: ModelConfig
    diffusion_config: DiffusionConfig
    sampler: Sampler
    dtype: mx.Dtype
    # The sampler and the schedule that the caller chose, which no file replaces.
    _chosen: tuple[str | None, str | None]

    def load_lora(
        self, path: str | os.PathLike[str], scale: float = 1.0, *, merged: bool = False
    ) -> None:
        """Add a LoRA, a file or on the Hub, to the UNet and text encoders; see `adapters.lora`.

        With `merged` its changes of linear layers are added to copies of the weights once a batch,
        which is faster in each step and takes as much memory as these weights.

        If the file is recognized as one that distils the model to few steps, its settings become
        the defaults: `config.few_step` has them.
        """
        scale = check_arguments.check_lora(path, scale)
        file = find_lora_file(path)
        # The text encoders may have been freed.
        readers = self._readers if "text_encoder" in self._networks else []
        load_lora(self._networks, file, scale, self.dtype, readers, merged)
        if scale > 0 and (few_step := recognize_lora(file)) is not None:
            self._set_few_step(few_step)

    def unload_lora(self) -> None:
        """Remove every LoRA, so that the networks are as they were before, to the bit."""
        unload_lora(self._networks)
        self._set_config(self.model.config)

    def load_embedding(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make `name` in prompts a textual inversion; see `adapters.textual_inversion`."""
        check_arguments.check_embedding(name, path)
        load_embedding(name, path, self._readers)

    @property
    def _networks(self) -> dict[str, nn.Module]:
        raise NotImplementedError

    @property
    def _readers(self) -> list[Reader]:
        raise NotImplementedError

    def _set_few_step(self, few_step: FewStepSettings) -> None:
        """Make the settings of a distilled model the defaults."""
        self._set_config(self.model.config.with_few_step(few_step))

    def _set_config(self, config: ModelConfig) -> None:
        """Replace the config, and the sampler unless the user has put another in its place."""
        has_own = self.sampler == choose_sampler(self.config, *self._chosen)
        self.config, self.diffusion_config = config, config.diffusion
        if has_own:
            self.sampler = choose_sampler(config, *self._chosen)
