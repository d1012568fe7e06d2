"""The sizes of a network that enlarges pictures."""

from dataclasses import dataclass

from ..utils.strict_json import require, require_in

MAX_BLOCKS = 128  # published networks have 6 to 23
MAX_WIDTH = 512  # published ones have 64, and 32 in their dense blocks
MAX_UPSAMPLES = 3
SHUFFLES = (1, 2, 4)  # how many pixels along each side become channels of one place
COLOURS = 3


@dataclass(frozen=True)
class UpscalerConfig:
    """The sizes of an `RRDBNet`, as its weights show them. The names are those of BasicSR.

    Attributes:
        in_channels: of a place: 3 for each of the shuffle² pixels that it is made of.
        num_block: how many residual blocks there are.
        num_feat: channels between the blocks.
        num_grow_ch: channels that each layer of a dense block adds.
        num_upsample: how often the features are doubled along both sides.
    """

    in_channels: int
    num_block: int
    num_feat: int
    num_grow_ch: int
    num_upsample: int

    def __post_init__(self) -> None:
        channels = [COLOURS * shuffle**2 for shuffle in SHUFFLES]
        require(
            self.in_channels in channels,
            f"it takes {self.in_channels} channels, not one of {', '.join(map(str, channels))}",
        )
        require_in("the number of its blocks", self.num_block, 1, MAX_BLOCKS)
        require_in("the number of its features", self.num_feat, 1, MAX_WIDTH)
        require_in("the growth of its dense blocks", self.num_grow_ch, 1, MAX_WIDTH)
        require_in("the number of its upsampling layers", self.num_upsample, 0, MAX_UPSAMPLES)
        require(self.scale >= 1, "it makes pictures smaller")

    @property
    def shuffle(self) -> int:
        """Return how many pixels along each side become channels of one place."""
        return {COLOURS * shuffle**2: shuffle for shuffle in SHUFFLES}[self.in_channels]

    @property
    def scale(self) -> int:
        """Return how many times larger each side of the picture becomes."""
        return 2**self.num_upsample // self.shuffle
