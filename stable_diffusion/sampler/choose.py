"""The sampler of a call: what the caller asks for, and the model's own choices for the rest."""

from collections.abc import Sequence

from ..config.model import ModelConfig
from .sampler import SAMPLERS, Sampler


def choose_sampler(
    config: ModelConfig,
    name: str | None = None,
    schedule: str | None = None,
    timesteps: Sequence[int] | None = None,
    eta: float | None = None,
    *,
    steps: int | None = None,
) -> Sampler:
    """Return the sampler of a model; the arguments replace the model's own choices.

    Args:
        name, schedule, timesteps, eta: as in `Sampler.for_model`.
        steps: those that the caller asks for. For another number of steps than a distilled model
            was made for, its timesteps are left out.

    Raises:
        ValueError: as `Sampler.for_model` does.
    """
    few_step = config.few_step
    if name is None:
        name = config.sampler
        if schedule is not None and schedule not in SAMPLERS[name].schedules:
            name = config.diffusion.sampler  # the caller's schedule wins
    if few_step is not None and name == few_step.sampler:
        eta = few_step.eta if eta is None else eta
        own = few_step.timesteps
        is_free = timesteps is None and schedule is None
        if is_free and own is not None and steps in (None, len(own)):
            timesteps = own
    return Sampler.for_model(config.diffusion, name, schedule, timesteps, eta)
