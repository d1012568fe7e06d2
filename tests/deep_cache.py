"""The published DeepCache (package DeepCache) on diffusers, and guidance in a part of the steps."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from DeepCache import DeepCacheSDHelper


class CountingHelper(DeepCacheSDHelper):
    """The published helper, but it counts the calls of the network, as the paper's pipelines do.

    `DeepCacheSDHelper` looks the timestep up among those of the scheduler instead. So if a sampler
    has a timestep twice, as Heun's and PLMS have, it takes the second for the first. It also fails
    if guidance begins or ends between two whole steps: here the rows of the prompt are taken of
    what is kept, and what is kept for too few rows is not used.
    """

    prompt_is_first = False  # whether its rows come before those of the other texts

    def wrap_unet_forward(self) -> None:
        forward = self.function_dict["unet_forward"] = self.pipe.unet.forward
        self.n_calls = self.n_rows = self.n_kept = 0

        def count_call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.cur_timestep, self.n_rows = self.n_calls, len(x)
            self.n_calls += 1
            result = forward(x, *args, **kwargs)
            self.n_kept = len(self.cached_output["mid", "mid_block", 0, 0])
            return result

        self.pipe.unet.forward = count_call

    def is_skip_step(self, *place: Any, **kind: Any) -> bool:
        if not super().is_skip_step(*place, **kind) or self.n_rows > self.n_kept:
            return False
        self.cached_output = {key: self._cut(kept) for key, kept in self.cached_output.items()}
        return True

    def _cut(self, kept: Any) -> Any:
        if isinstance(kept, tuple):
            return tuple(self._cut(each) for each in kept)
        return kept[: self.n_rows] if self.prompt_is_first else kept[-self.n_rows :]


class EditingHelper(CountingHelper):
    """The same for InstructPix2Pix."""

    prompt_is_first = True


@contextmanager
def deep_cache(
    pipeline: Any, interval: int, helper: type[DeepCacheSDHelper] = DeepCacheSDHelper
) -> Iterator[None]:
    """Let a pipeline reuse deep features for so many steps, inside the block."""
    cache = helper(pipeline)
    cache.set_params(cache_interval=interval, cache_branch_id=0)
    cache.enable()
    try:
        yield
    finally:
        cache.disable()
        for module in pipeline.unet.modules():  # `disable` leaves them on each module
            vars(module).pop("forward", None)


@contextmanager
def guided_steps(pipeline: Any, steps: Collection[int], n_parts: int = 2) -> Iterator[None]:
    """Let a pipeline compute the prediction for the prompt alone in other calls than these.

    It is given back for all parts, so that guidance, whatever its weight, returns it unchanged.

    Args:
        n_parts: of a batch; 3 for InstructPix2Pix, where that of the prompt is the first.
    """
    unet = pipeline.unet
    forward, n_calls = unet.forward, 0

    def choose_rows(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls - 1 in steps:
            return forward(x, *args, **options)

        def select(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: select(each) for key, each in value.items()}
            if isinstance(value, list | tuple):
                return [select(each) for each in value]
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                return value
            n = len(value) // n_parts
            return value[:n] if n_parts == 3 else value[-n:]

        (prediction,) = forward(select(x), *args, **select(options))
        return (torch.cat([prediction] * n_parts),)

    unet.forward = choose_rows
    try:
        yield
    finally:
        unet.forward = forward
