"""Options with one number for all blocks of a network, or one for each block or layer."""

from collections.abc import Sequence

from ..utils.strict_json import require, require_in

PerBlock = int | tuple[int, ...]  # one number for all blocks of a network, or one for each
PerLayer = int | tuple[PerBlock, ...]  # the same, or for a block one number for each of its layers

MAX_WIDTH = 2**20  # numbers that a layer takes or gives; no real model is anywhere near it


def repeat_per_block(option: str, value: PerBlock, n_blocks: int) -> tuple[int, ...]:
    """Return the value of an option as one number for each of the blocks.

    Raises:
        ValueError: if there are more or fewer numbers than blocks, or one is above `MAX_WIDTH`.
    """
    values = (value,) * n_blocks if isinstance(value, int) else value
    require(len(values) == n_blocks, f"{option} = {value!r} does not fit {n_blocks} blocks")
    require_in(option, values, 0, MAX_WIDTH)
    return values


def repeat_per_layer(
    option: str, value: PerLayer, n_layers: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the value of an option as one number for each layer of each block.

    Args:
        n_layers: how many layers each block has. A block may have more numbers than layers, as in
            diffusers; those at the end have no effect.

    Raises:
        ValueError: if there are more or fewer entries than blocks, or a block has too few numbers,
            or one is above `MAX_WIDTH`.
    """
    blocks = (value,) * len(n_layers) if isinstance(value, int) else value
    require(
        len(blocks) == len(n_layers), f"{option} = {value!r} does not fit {len(n_layers)} blocks"
    )
    repeated = []
    for numbers, n in zip(blocks, n_layers, strict=True):
        layers = (numbers,) * n if isinstance(numbers, int) else numbers[:n]
        require(len(layers) == n, f"{option} = {value!r} has too few numbers for {n} layers")
        require_in(option, layers, 0, MAX_WIDTH)
        repeated.append(layers)
    return tuple(repeated)
