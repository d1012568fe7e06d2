"""Forecast the memory of a step of denoising, and so how many pictures can be denoised at once."""

import mlx.core as mx

from .config.networks import UNetConfig
from .config.unet_encoder import MID_WITH_ATTENTION
from .device import backend, fused_attention, memory

# Numbers in memory at the peak of a step, for each latent and each channel of the first block.
# Measured without convolutions and scores: 38 for SD 1.5, 37 for SD 2.1 and SDXL. Metal's
# convolution stores up to 2.25 numbers for each number of its input and output, which have four
# times these channels in the widest layer.
STEP_NUMBERS = 48
CPU_LATENTS = 64 * 64  # of 512×512 pixels: enough to keep a CPU busy
CPU_STEP_NUMBERS = 20  # the same as `STEP_NUMBERS` with the kernels of a Linux CPU, measured


def count_fitting(
    config: UNetConfig,
    latent_size: tuple[int, int],
    has_guidance: bool,
    dtype: mx.Dtype,
    weight_bytes: int,
    n_controls: int = 0,
) -> int:
    """Return how many pictures to denoise at once; 0 if the memory is too small for one.

    Args:
        latent_size: (height, width) of a picture, in latents.
        has_guidance: whether a step computes each picture twice, unless the UNet embeds guidance;
            with guidance an editing model computes it three times.
        dtype: the type that the UNet computes in.
        weight_bytes: of the UNet, and of the control networks.
        n_controls: how many control networks there are.
    """
    if not backend.is_gpu():
        return CPU_LATENTS // (latent_size[0] * latent_size[1])
    n_rows = 1
    if has_guidance and not config.embeds_guidance:
        n_rows = 3 if config.task == "editing" else 2
    room = memory.choose_step_bytes() - weight_bytes
    scores = n_rows * count_score_numbers(config, latent_size, dtype) * dtype.size
    numbers = _count_layer_numbers(config, latent_size)
    numbers += n_controls * _count_skip_numbers(config, latent_size)
    layers = n_rows * numbers * dtype.size
    # Above a limit the scores of a batch are stored in parts.
    limit = memory.choose_score_bytes()
    return max(room // (layers + scores), (room - limit) // layers, 0)


def count_step_bytes(
    config: UNetConfig,
    latent_size: tuple[int, int],
    n_rows: int,
    dtype: mx.Dtype,
    n_controls: int = 0,
) -> int:
    """Return how many bytes the results of the layers take at the peak of a step.

    Args:
        latent_size: (height, width) of a row of the batch, in latents.
        n_rows: of the batch; a picture with guidance has two.
        dtype: the type that the UNet computes in.
        n_controls: how many control networks there are.
    """
    numbers = n_controls * _count_skip_numbers(config, latent_size)
    if not backend.is_gpu():
        height, width = latent_size
        numbers += CPU_STEP_NUMBERS * config.block_out_channels[0] * height * width
        return n_rows * numbers * dtype.size
    numbers += _count_layer_numbers(config, latent_size)
    scores = n_rows * count_score_numbers(config, latent_size, dtype) * dtype.size
    return n_rows * numbers * dtype.size + min(scores, memory.choose_score_bytes())


def count_score_numbers(config: UNetConfig, latent_size: tuple[int, int], dtype: mx.Dtype) -> int:
    """Return the scores of the largest attention of pixels to each other that stores them.

    Args:
        latent_size: (height, width) of one row of a batch.
    """
    height, width = latent_size
    most = 0
    last = len(config.block_out_channels) - 1
    for level, (channels, heads) in enumerate(
        zip(config.block_out_channels, config.heads, strict=True)
    ):
        blocks = config.down_block_types[level], config.up_block_types[last - level]
        attends = any(block.startswith("CrossAttn") for block in blocks)
        in_middle = level == last and config.mid_block_type == MID_WITH_ATTENTION
        if (attends and config.has_self_attention[level]) or in_middle:
            n_pixels = -(-width // 2**level) * -(-height // 2**level)
            if fused_attention.stores_scores(channels // heads, n_pixels, dtype):
                most = max(most, heads * n_pixels**2)
    return most


def _count_layer_numbers(config: UNetConfig, latent_size: tuple[int, int]) -> int:
    """Return how many numbers the layers hold at the peak of a step, for one row of a batch."""
    height, width = latent_size
    return STEP_NUMBERS * config.block_out_channels[0] * height * width


def _count_skip_numbers(config: UNetConfig, latent_size: tuple[int, int]) -> int:
    """Return how many numbers a control network keeps for the UNet, for one row of a batch.

    They are as many as the numbers of the skip connections and of the middle.
    """
    height, width = latent_size
    bottom = len(config.block_out_channels) - 1
    levels = [*config.skip_levels, bottom]
    widths = [*config.skip_channels, config.block_out_channels[bottom]]
    return sum(
        channels * -(-height // 2**level) * -(-width // 2**level)
        for channels, level in zip(widths, levels, strict=True)
    )
