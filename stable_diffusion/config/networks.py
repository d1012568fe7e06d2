"""The configs of the networks, as frozen dataclasses.

Every key of a file is read, ignored by name, or an error: a model whose config asks for something
that this package cannot compute is an error, not a wrong picture. Field names and defaults
are those of diffusers and transformers, because a missing key means their default.
"""

from dataclasses import dataclass
from types import MappingProxyType

from ..utils.strict_json import require, require_in, require_known
from .per_block import MAX_WIDTH, PerBlock, PerLayer, repeat_per_block, repeat_per_layer
from .strict_config import Config
from .task import Task, find_task

# Configs beyond these limits are mistakes or attacks: no real model is anywhere near them.
MAX_BLOCKS = 8
MAX_LAYERS = 1000  # residual blocks, or transformer blocks, in one network
MAX_SAMPLE_SIZE = 4096  # width and height in latents

# The kinds of block between the ways down and up. The second is one residual block alone.
MID_WITH_ATTENTION, MID_WITHOUT = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"

BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)
# The activations of diffusers and transformers that `layers.py` implements.
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu", "quick_gelu")


@dataclass(frozen=True)
class Quantization(Config):
    """`quantization` in a config.json: the weights of linear layers are stored in few bits."""

    bits: int | None = None
    group_size: int | None = None  # how many numbers of a row share a scale and an offset
    unquantized: tuple[str, ...] = ()  # paths of the linear layers that are not quantized

    def __post_init__(self) -> None:
        for option, known in (("bits", BITS), ("group_size", GROUP_SIZES)):
            value = getattr(self, option)
            listed = ", ".join(map(str, known))
            require(value in known, f"{option} = {value!r} is not supported, only {listed}")


@dataclass(frozen=True)
class UNetConfig(Config):
    """`unet/config.json`, of diffusers' UNet2DConditionModel."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: PerBlock | None = None  # in latents
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    layers_per_block: PerBlock = 2
    mid_block_type: str | None = MID_WITH_ATTENTION  # null: no block between down and up
    transformer_layers_per_block: PerLayer = 1
    # On the way up, from the bottom; the reverse of the way down if it is not given.
    reverse_transformer_layers_per_block: tuple[PerBlock, ...] | None = None
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
    time_cond_proj_dim: int | None = None  # LCM: the guidance is embedded in so many numbers
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    quantization: Quantization | None = None  # of a network that `convert` wrote

    CLASS_NAMES = ("UNet2DConditionModel",)
    NULLABLE = frozenset({"mid_block_type"})
    FIXED = MappingProxyType(
        {
            "attention_type": "default",
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
            "resnet_out_scale_factor": 1,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
        }
    )
    # Attention is always summed in float32 here, so `upcast_attention` has no effect; `dropout` is
    # for training; the last two belong to kinds of embedding and mid block that are not supported.
    IGNORED = frozenset(
        {
            *("upcast_attention", "dropout", "addition_embed_type_num_heads"),
            "mid_block_only_cross_attention",
        }
    )

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
        widths = ("in_channels", "out_channels", "norm_num_groups", "cross_attention_dim")
        embedded = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        for option in (*widths, *embedded):
            require_in(option, getattr(self, option), 1, MAX_WIDTH)
        # Half of the numbers are sines, whose frequencies need two.
        require_in("time_cond_proj_dim", self.time_cond_proj_dim, 4, MAX_WIDTH)
        require_in("block_out_channels", self.block_out_channels, 1, MAX_WIDTH)
        require_in("sample_size", self.sample_size, 1, MAX_SAMPLE_SIZE)
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
        n_blocks = len(self.block_out_channels)
        for option in ("down_block_types", "up_block_types"):
            n = len(getattr(self, option))
            require(n == n_blocks, f"{option} names {n} blocks, block_out_channels {n_blocks}")
        for name in self.down_block_types:
            require_known("down_block_types", name, ("CrossAttnDownBlock2D", "DownBlock2D"))
        for name in self.up_block_types:
            require_known("up_block_types", name, ("CrossAttnUpBlock2D", "UpBlock2D"))
        if self.mid_block_type is not None:
            require_known("mid_block_type", self.mid_block_type, (MID_WITH_ATTENTION, MID_WITHOUT))
        require_known("act_fn", self.act_fn, ACTIVATIONS)

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
        depths = [*self.down_depths, *self.up_depths, (self.mid_depth,)]
        self._check_count("transformer", sum(map(sum, depths)))

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
    def up_depths(self) -> tuple[tuple[int, ...], ...]:
        """Return the same for each up block, in their order, from the bottom to the top."""
        n_layers = [n + 1 for n in reversed(self.layers)]
        depths = self.reverse_transformer_layers_per_block
        if depths is not None:
            return repeat_per_layer("reverse_transformer_layers_per_block", depths, n_layers)
        down = self.transformer_layers_per_block
        require(
            isinstance(down, int) or all(isinstance(depth, int) for depth in down),
            f"transformer_layers_per_block = {down!r} needs reverse_transformer_layers_per_block",
        )
        option = "transformer_layers_per_block"
        return repeat_per_layer(option, down if isinstance(down, int) else down[::-1], n_layers)

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
    def embeds_guidance(self) -> bool:
        """Return whether the network takes the guidance as a number, and needs no second prompt.

        Luo et al. 2023 (arXiv:2310.04378, section 4.2).
        """
        return self.time_cond_proj_dim is not None

    @property
    def task(self) -> Task | None:
        """Return what the network is trained for; None if it is not known."""
        return find_task(self.in_channels, self.out_channels)


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """`vae/config.json`, of diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    act_fn: str = "silu"
    scaling_factor: float = 0.18215  # absent from the configs of SD 1.x and 2.x
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    force_upcast: bool = True  # half precision overflows; it means nothing outside SDXL

    CLASS_NAMES = ("AutoencoderKL",)
    FIXED = MappingProxyType({"shift_factor": 0})  # diffusers' pipelines of SD ignore it
    IGNORED = frozenset({"sample_size"})  # limits diffusers' tiles

    def __post_init__(self) -> None:
        n_blocks = len(self.block_out_channels)
        require_in("the number of blocks", n_blocks, 1, MAX_BLOCKS)
        for option in ("in_channels", "out_channels"):
            require_in(option, getattr(self, option), 3, 3)  # red, green and blue
        for option in ("latent_channels", "norm_num_groups", "block_out_channels"):
            require_in(option, getattr(self, option), 1, MAX_WIDTH)
        require_in("layers_per_block", self.layers_per_block, 1, MAX_LAYERS // MAX_BLOCKS)
        for option, known in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            names = getattr(self, option)
            n = len(names)
            require(n == n_blocks, f"{option} names {n} blocks, block_out_channels {n_blocks}")
            for name in names:
                require_known(option, name, (known,))
        require_known("act_fn", self.act_fn, ACTIVATIONS)
        require_in("scaling_factor", abs(self.scaling_factor), 1e-4, 1e4)
        for channels in self.block_out_channels:
            require(
                channels % self.norm_num_groups == 0,
                f"norm_num_groups = {self.norm_num_groups} does not divide {channels} channels",
            )

    @property
    def factor(self) -> int:
        """Return how many pixels a latent stands for along each side.

        Every block except the last one halves width and height.
        """
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """`text_encoder/config.json`, of transformers' CLIPTextModel (or …WithProjection)."""

    architectures: tuple[str, ...] = ("CLIPTextModel",)
    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    eos_token_id: int = 49407
    quantization: Quantization | None = None  # of a network that `convert` wrote

    # For training, for the tokenizer, or about how transformers stores and runs the model.
    IGNORED = frozenset(
        {
            *("attention_dropout", "dropout", "initializer_factor", "initializer_range"),
            *("bos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version"),
            *("model_type", "return_dict", "tie_word_embeddings", "use_cache"),
            *("chunk_size_feed_forward", "id2label", "label2id", "problem_type"),
        }
    )

    def __post_init__(self) -> None:
        widths = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
        for option in (*widths, "projection_dim"):
            require_in(option, getattr(self, option), 1, MAX_WIDTH)
        require_in("num_hidden_layers", self.num_hidden_layers, 1, MAX_LAYERS)
        require_in("eos_token_id", self.eos_token_id, -1, MAX_WIDTH)  # some have -1 for none
        require_in("layer_norm_eps", self.layer_norm_eps, 0, 1)
        for name in self.architectures:
            require_known("architectures", name, ("CLIPTextModel", "CLIPTextModelWithProjection"))
        require_known("hidden_act", self.hidden_act, ACTIVATIONS)
        require(
            self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads = {self.num_attention_heads} does not divide "
            f"hidden_size = {self.hidden_size}",
        )

    @property
    def has_projection(self) -> bool:
        """Return whether a last linear layer projects the pooled output."""
        return "CLIPTextModelWithProjection" in self.architectures
