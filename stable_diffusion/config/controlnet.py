"""The configs of control networks: ControlNets, those of several types, and T2I-Adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..utils.strict_json import require, require_in, require_known
from .per_block import MAX_WIDTH
from .strict_config import Config
from .unet_encoder import MAX_BLOCKS, MAX_LAYERS, UNetEncoderConfig

RGB, BGR = "rgb", "bgr"
# The kinds of T2I-Adapter, as diffusers calls them.
FULL, FULL_XL, LIGHT = "full_adapter", "full_adapter_xl", "light_adapter"
LIGHT_NARROWING = 4  # blocks of a light adapter are narrower inside by this factor
MAX_CONTROL_TYPES = 100
MAX_TOTAL_FACTOR = 256  # pixels for each number of a feature, along each side

# The names that configs give a union: diffusers', and that of the program that trained it.
UNION_CLASSES = ("ControlNetUnionModel", "ControlNetModel_Union")
N_TYPES, OLD_N_TYPES = "num_control_type", "num_control_types"  # two names of one option
# Options by which a union is known that has the class name of a ControlNet.
TRANSFORMER = ("num_trans_channel", "num_trans_head", "num_trans_layer", "num_proj_channel")
UNION_OPTIONS = frozenset({N_TYPES, *TRANSFORMER})


@dataclass(frozen=True)
class ControlNetConfig(UNetEncoderConfig):
    """`config.json` of diffusers' ControlNetModel."""

    conditioning_channels: int = 3
    # Widths of the convolutions that embed the picture; each but the first halves its size.
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = RGB
    # Residuals are averaged over the picture, and only the conditional half of guidance gets them.
    global_pool_conditions: bool = False

    CLASS_NAMES: ClassVar[tuple[str, ...]] = ("ControlNetModel",)
    NULLABLE = frozenset[str]()

    def _check_numbers(self) -> None:
        super()._check_numbers()
        require_in("conditioning_channels", self.conditioning_channels, 3, 3)  # red, green, blue
        widths = self.conditioning_embedding_out_channels
        require_in("the number of conditioning_embedding_out_channels", len(widths), 1, MAX_BLOCKS)
        require_in("conditioning_embedding_out_channels", widths, 1, MAX_WIDTH)
        order = self.controlnet_conditioning_channel_order
        require_known("controlnet_conditioning_channel_order", order, self._channel_orders())

    def _channel_orders(self) -> tuple[str, ...]:
        """Return the orders of channels that this kind of network may have."""
        return RGB, BGR

    @property
    def factor(self) -> int:
        """Return how many pixels of the picture stand for a latent, along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """`config.json` of diffusers' ControlNetUnionModel, a ControlNet for several types of picture.

    What is said of "trans" is a transformer over the pictures.
    """

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    CLASS_NAMES = (*UNION_CLASSES, *ControlNetConfig.CLASS_NAMES)
    IGNORED = ControlNetConfig.IGNORED | {OLD_N_TYPES}

    def _check_numbers(self) -> None:
        super()._check_numbers()
        require(not self.global_pool_conditions, "global_pool_conditions = True is not supported")
        require_in("num_control_type", self.num_control_type, 1, MAX_CONTROL_TYPES)
        require_in("num_trans_layer", self.num_trans_layer, 0, MAX_LAYERS)
        width = self.block_out_channels[0]
        for option in ("num_trans_channel", "num_proj_channel"):
            value = getattr(self, option)
            require(value == width, f"{option} = {value} is not {width}, the width of the input")
        heads = self.num_trans_head
        require(
            heads > 0 and width % heads == 0,
            f"num_trans_head: {heads} heads do not divide {width} channels",
        )
        dims = self.addition_time_embed_dim
        require(dims is not None, "a union needs addition_time_embed_dim, for its types")
        require(
            dims is None or self._is_sinusoidal_width(dims),
            f"addition_time_embed_dim = {dims} cannot embed types",
        )

    def _channel_orders(self) -> tuple[str, ...]:
        return (RGB,)

    @property
    def type_channels(self) -> int:
        """Return how many numbers the types are embedded in."""
        return self.num_control_type * (self.addition_time_embed_dim or 0)


@dataclass(frozen=True)
class T2IAdapterConfig(Config):
    """`config.json` of diffusers' T2IAdapter."""

    in_channels: int = 3  # 1: a grey picture
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8  # so many pixels along each side become channels
    adapter_type: str = FULL

    CLASS_NAMES = ("T2IAdapter",)

    def __post_init__(self) -> None:
        require_known("adapter_type", self.adapter_type, (FULL, FULL_XL, LIGHT))
        require(self.in_channels in (1, 3), f"in_channels = {self.in_channels} is not 1 or 3")
        n_blocks = len(self.channels)
        require_in("the number of channels", n_blocks, 1, MAX_BLOCKS)
        narrowest = LIGHT_NARROWING if self.adapter_type == LIGHT else 1
        require_in("channels", self.channels, narrowest, MAX_WIDTH)
        require_in("num_res_blocks", self.num_res_blocks, 0, MAX_LAYERS // MAX_BLOCKS)
        require_in("downscale_factor", self.downscale_factor, 1, MAX_TOTAL_FACTOR)
        require_in("the factor of the last block", self.features[-1][1], 1, MAX_TOTAL_FACTOR)
        if self.adapter_type == FULL_XL:
            # Only the second and the third block may change the width.
            later = set(self.channels[2:])
            require(len(later) < 2, f"channels = {self.channels}: from the third on they differ")

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """Return the width of each feature, and how many pixels a number of it stands for."""
        factors = [self.downscale_factor]
        is_light = self.adapter_type == LIGHT
        channels = (*self.channels, self.channels[-1]) if is_light else self.channels
        for block in range(1, len(channels)):
            halves = self.adapter_type != FULL_XL or block == 2
            factors.append(factors[-1] * (2 if halves else 1))
        return tuple(zip(channels, factors, strict=True))


ControlConfig = ControlNetConfig | ControlNetUnionConfig | T2IAdapterConfig


def read_control_config(content: Any, where: str) -> ControlConfig:
    """Return the config of a control network; see `Config.from_dict` for the arguments and errors.

    A union is known by its options, because published ones call themselves ControlNets.
    """
    if not isinstance(content, Mapping):
        return ControlNetConfig.from_dict(content, where)  # which refuses it
    class_name = content.get("_class_name")
    if class_name in T2IAdapterConfig.CLASS_NAMES or "adapter_type" in content:
        return T2IAdapterConfig.from_dict(content, where)
    if OLD_N_TYPES in content:
        content = {N_TYPES: content[OLD_N_TYPES], **content}
    if class_name in UNION_CLASSES or not UNION_OPTIONS.isdisjoint(content):
        return ControlNetUnionConfig.from_dict(content, where)
    return ControlNetConfig.from_dict(content, where)
