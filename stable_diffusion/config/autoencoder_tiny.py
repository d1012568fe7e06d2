"""The config of a tiny VAE, and which config a VAE has."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from ..utils.strict_json import require, require_in, require_known
from .networks import ACTIVATIONS, MAX_BLOCKS, MAX_LAYERS, MAX_WIDTH, AutoencoderConfig
from .strict_config import Config

CLASS_NAME = "AutoencoderTiny"

# Short names of tiny VAEs: the repositories, for SD 1 and 2 and for SDXL.
TINY_VAES = {
    "taesd": ("madebyollin/taesd", "madebyollin/taesdxl"),
    "taesdxl": ("madebyollin/taesdxl", "madebyollin/taesdxl"),
}


@dataclass(frozen=True)
class AutoencoderTinyConfig(Config):
    """`vae/config.json`, of diffusers' AutoencoderTiny.

    It has the attributes that the rest of the package reads of an `AutoencoderConfig`.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks of each level
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    act_fn: str = "relu"
    scaling_factor: float = 1.0  # it takes the latents as the UNet gives them
    # If there is a decoder only: the file that the encoder would be in, or "" if in no other file.
    _missing_encoder: str | None = None

    CLASS_NAMES = (CLASS_NAME,)
    FIXED = MappingProxyType(
        {
            "shift_factor": 0,  # diffusers' pipelines of SD ignore it
            "upsample_fn": "nearest",
            "upsampling_scaling_factor": 2,
        }
    )
    # Diffusers computes half precision as it is asked to, whatever `force_upcast` says, and takes
    # the widths from the other two lists. Magnitude and shift are for latents stored in bytes.
    IGNORED = frozenset({"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"})
    force_upcast: ClassVar[bool] = False  # half precision does not overflow

    def __post_init__(self) -> None:
        for option in ("in_channels", "out_channels"):
            require_in(option, getattr(self, option), 3, 3)  # red, green and blue
        require_in("latent_channels", self.latent_channels, 1, MAX_WIDTH)
        require_known("act_fn", self.act_fn, ACTIVATIONS)
        require_in("scaling_factor", abs(self.scaling_factor), 1e-4, 1e4)
        for half in ("encoder", "decoder"):
            counts_name, widths_name = f"num_{half}_blocks", f"{half}_block_out_channels"
            counts, widths = getattr(self, counts_name), getattr(self, widths_name)
            require_in(f"the number of {counts_name}", len(counts), 1, MAX_BLOCKS)
            require(
                len(counts) == len(widths),
                f"{counts_name} has {len(counts)} levels, {widths_name} {len(widths)}",
            )
            require_in(counts_name, counts, 0, MAX_LAYERS // MAX_BLOCKS)
            require_in(widths_name, widths, 1, MAX_WIDTH)
            # No layer changes the width between two levels.
            require(len(set(widths)) == 1, f"{widths_name} = {widths} are not all the same")
        n_down, n_up = len(self.num_encoder_blocks), len(self.num_decoder_blocks)
        require(n_down == n_up, f"the encoder has {n_down} levels, the decoder {n_up}")

    @property
    def factor(self) -> int:
        """Return how many pixels a latent stands for along each side: each level doubles them."""
        return 2 ** (len(self.num_decoder_blocks) - 1)


VaeConfig = AutoencoderConfig | AutoencoderTinyConfig


def is_tiny(content: Any) -> bool:
    """Return whether the content of a VAE's config file is that of a tiny VAE."""
    if not isinstance(content, Mapping):
        return False
    class_name = content.get("_class_name")
    return class_name == CLASS_NAME or (class_name is None and "num_decoder_blocks" in content)


def read_vae_config(content: Any, source: str) -> VaeConfig:
    """Return the config of a VAE; see `Config.from_dict` for the arguments and errors."""
    kind = AutoencoderTinyConfig if is_tiny(content) else AutoencoderConfig
    return kind.from_dict(content, source)


def require_encoder(config: VaeConfig) -> None:
    """Check that a VAE has an encoder.

    Raises:
        ValueError: if it does not.
    """
    missing = getattr(config, "_missing_encoder", None)
    if missing is not None:
        advice = f"put {missing} beside it, or give" if missing else "give"
        raise ValueError(
            "the VAE is a decoder alone, and a picture to start from needs the encoder, too: "
            f"{advice} another VAE (--vae)"
        )
