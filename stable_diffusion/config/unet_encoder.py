"""The config of the UNet's encoder, its blocks down to the middle, which ControlNets copy."""

from dataclasses import dataclass
from types import MappingProxyType

from ..utils.strict_json import require, require_in, require_known
from .per_block import MAX_WIDTH, PerBlock, PerLayer, repeat_per_block, repeat_per_layer
from .strict_config import Config

# Configs beyond these limits are mistakes or attacks: no real model is anywhere near them.
MAX_BLOCKS = 8
MAX_LAYERS = 1000  # residual blocks, or transformer blocks, in one network

# The kinds of block between the ways down and up. The second is one residual block alone.
MID_WITH_ATTENTION, MID_WITHOUT = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"

# The activations of diffusers and transformers that `layers.py` implements.
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu", "quick_gelu")


@dataclass(frozen=True)
class UNetEncoderConfig(Config):
    """The options that the configs of a UNet and of a ControlNet share.

    Field names and defaults are those of diffusers.
    """

    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    layers_per_block: PerBlock = 2
    mid_block_type: str | None = MID_WITH_ATTENTION  # null: no block between down and up
    transformer_layers_per_block: PerLayer = 1
    only_cross_attention: bool | tuple[bool, ...] = False  # in place of pixels to each other, too
    attention_head_dim: PerBlock = 8  # a misnomer: diffusers reads the number of heads from it
    num_attention_heads: PerBlock | None = None  # the number of heads under its own name
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False  # how the files store it only: see `model_io/weights.py`
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    NULLABLE = frozenset({"mid_block_type"})
    FIXED = MappingProxyType(
        {
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
            "resnet_time_scale_shift": "default",
        }
    )
    # Attention is always summed in float32 here, so `upcast_attention` has no effect; the other
    # belongs to a kind of embedding that is not supported.
    IGNORED = frozenset({"upcast_attention", "addition_embed_type_num_heads"})

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_blocks()
        self._check_layers()
        if self.addition_embed_type is not None:
            self._check_added_embedding(self.addition_embed_type)

    def _check_numbers(self) -> None:
        n_blocks = len(self.block_out_channels)
        require(n_blocks > 0, "block_out_channels is empty")
        require_in("the number of blocks", n_blocks, 1, MAX_BLOCKS)
        widths = ("in_channels", "norm_num_groups", "cross_attention_dim")
        embedded = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        for option in (*widths, *embedded):
            require_in(option, getattr(self, option), 1, MAX_WIDTH)
        require_in("block_out_channels", self.block_out_channels, 1, MAX_WIDTH)
        require_in("norm_eps", self.norm_eps, 0, 1)
        require_in("freq_shift", self.freq_shift, 0, 1)
        first = self.block_out_channels[0]
        require(
            self._is_sinusoidal_width(first),
            f"block_out_channels begins with {first}, which cannot embed the timestep",
        )

    def _is_sinusoidal_width(self, width: int) -> bool:
        """Return whether a number can be embedded in `width` numbers: half sines, half cosines."""
        return width % 2 == 0 and width // 2 > self.freq_shift

    def _check_blocks(self) -> None:
        self._check_length("down_block_types")
        for name in self.down_block_types:
            require_known("down_block_types", name, ("CrossAttnDownBlock2D", "DownBlock2D"))
        if self.mid_block_type is not None:
            require_known("mid_block_type", self.mid_block_type, (MID_WITH_ATTENTION, MID_WITHOUT))
        require_known("act_fn", self.act_fn, ACTIVATIONS)

    def _check_length(self, option: str) -> None:
        """Check that an option lists as many blocks as `block_out_channels`."""
        n, n_blocks = len(getattr(self, option)), len(self.block_out_channels)
        require(n == n_blocks, f"{option} names {n} blocks, block_out_channels {n_blocks}")

    def _check_layers(self) -> None:
        require(min(self.layers) > 0, f"layers_per_block = {self.layers_per_block} has a zero")
        self._check_count("residual", sum(self.layers))
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            require(
                channels % self.norm_num_groups == 0,
                f"norm_num_groups = {self.norm_num_groups} does not divide {channels} channels",
            )
            require(
                heads > 0 and channels % heads == 0,
                f"attention_head_dim: {heads} heads do not divide {channels} channels",
            )
        n = len(self.has_self_attention)
        require(
            n == len(self.layers), f"only_cross_attention names {n} of {len(self.layers)} blocks"
        )
        self._check_count("transformer", sum(map(sum, self._list_depths())))

    def _list_depths(self) -> list[tuple[int, ...]]:
        """Return how many transformer blocks follow each residual block, for each block."""
        return [*self.down_depths, (self.mid_depth,)]

    def _check_count(self, what: str, count: int) -> None:
        """Check that there are not more blocks of a kind than any real model is near to."""
        require(count <= MAX_LAYERS, f"{count} {what} blocks are more than {MAX_LAYERS}")

    def _check_added_embedding(self, kind: str) -> None:
        """Check that SDXL's embedding of text and sizes is complete."""
        require_known("addition_embed_type", kind, ("text_time",))
        width = self.addition_time_embed_dim
        if width is None:
            raise ValueError("text_time needs addition_time_embed_dim")
        n_inputs = self.projection_class_embeddings_input_dim
        require(n_inputs is not None, "text_time needs projection_class_embeddings_input_dim")
        require(
            self._is_sinusoidal_width(width),
            f"addition_time_embed_dim = {width} cannot embed sizes",
        )

    @property
    def heads(self) -> tuple[int, ...]:
        """Return the number of attention heads of each block."""
        heads = self.num_attention_heads
        if heads is None:
            heads = self.attention_head_dim
        return repeat_per_block("attention_head_dim", heads, len(self.block_out_channels))

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the number of residual blocks of each down block."""
        n_blocks = len(self.block_out_channels)
        return repeat_per_block("layers_per_block", self.layers_per_block, n_blocks)

    @property
    def down_depths(self) -> tuple[tuple[int, ...], ...]:
        """Return how many transformer blocks follow each residual block, for each down block.

        Blocks without attention have a number too, which is not used.
        """
        option = "transformer_layers_per_block"
        return repeat_per_layer(option, self.transformer_layers_per_block, self.layers)

    @property
    def mid_depth(self) -> int:
        """Return the number of transformer blocks between the residual blocks of the mid block."""
        if self.mid_block_type != MID_WITH_ATTENTION:
            return 0
        depths = self.transformer_layers_per_block
        last = depths if isinstance(depths, int) else depths[-1]
        return last if isinstance(last, int) else last[0]

    @property
    def has_self_attention(self) -> tuple[bool, ...]:
        """Return whether pixels attend to each other, for each down block; in the mid they do."""
        only_text = self.only_cross_attention
        if isinstance(only_text, bool):
            return (not only_text,) * len(self.block_out_channels)
        return tuple(not only for only in only_text)

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Return the width of each skip connection, in order: the input, then those of each level.

        A level has one for each layer, and one at half the size, except the last.
        """
        widths = [self.block_out_channels[0]]
        last = len(self.block_out_channels) - 1
        for level, (channels, n) in enumerate(
            zip(self.block_out_channels, self.layers, strict=True)
        ):
            widths += [channels] * (n if level == last else n + 1)
        return tuple(widths)
