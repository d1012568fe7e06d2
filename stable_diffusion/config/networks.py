"""The configs of the networks, as frozen dataclasses.

Every key of a file is read, ignored by name, or an error: a model whose config asks for something
that this package cannot compute is an error, not a wrong picture. Field names and defaults
are those of diffusers and transformers, because a missing key means their default.
"""

from dataclasses import dataclass
from types import MappingProxyType

from ..utils.strict_json import require, require_in, require_known
from .per_block import MAX_WIDTH, PerBlock, repeat_per_layer
from .strict_config import Config
from .task import Task, find_task
from .unet_encoder import (
    ACTIVATIONS,
    MAX_BLOCKS,
    MAX_LAYERS,
    UNetEncoderConfig,
)

MAX_SAMPLE_SIZE = 4096  # width and height in latents; no real model is anywhere near it

BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Quantization(Config):
    """`quantization` in a config.json: the weights of layers are stored in few bits.

    Folders that older versions wrote have the first three only: their convolutions are in float16.
    """

    bits: int | None = None
    group_size: int | None = None  # how many numbers of a row share a scale and an offset
    unquantized: tuple[str, ...] = ()  # paths of the layers that are not quantized
    convolution_group_size: int | None = None  # None: the convolutions are not quantized
    in_8_bits: tuple[str, ...] = ()  # paths of the layers that have 8 bits in place of `bits`

    def __post_init__(self) -> None:
        choices = {
            "bits": BITS,
            "group_size": GROUP_SIZES,
            "convolution_group_size": (None, *GROUP_SIZES),
        }
        for option, known in choices.items():
            value = getattr(self, option)
            listed = ", ".join(map(str, known))
            require(value in known, f"{option} = {value!r} is not supported, only {listed}")


@dataclass(frozen=True)
class UNetConfig(UNetEncoderConfig):
    """`unet/config.json`, of diffusers' UNet2DConditionModel."""

    out_channels: int = 4
    sample_size: PerBlock | None = None  # in latents
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    # On the way up, from the bottom; the reverse of the way down if it is not given.
    reverse_transformer_layers_per_block: tuple[PerBlock, ...] | None = None
    time_cond_proj_dim: int | None = None  # LCM: the guidance is embedded in so many numbers
    quantization: Quantization | None = None  # of a network that `convert` wrote

    CLASS_NAMES = ("UNet2DConditionModel",)
    FIXED = MappingProxyType(
        {
            **UNetEncoderConfig.FIXED,
            "attention_type": "default",
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "resnet_out_scale_factor": 1,
            "time_embedding_type": "positional",
        }
    )
    # `dropout` is for training; the other belongs to a kind of mid block that is not supported.
    IGNORED = UNetEncoderConfig.IGNORED | {"dropout", "mid_block_only_cross_attention"}

    def _check_numbers(self) -> None:
        super()._check_numbers()
        require_in("out_channels", self.out_channels, 1, MAX_WIDTH)
        # Half of the numbers are sines, whose frequencies need two.
        require_in("time_cond_proj_dim", self.time_cond_proj_dim, 4, MAX_WIDTH)
        require_in("sample_size", self.sample_size, 1, MAX_SAMPLE_SIZE)

    def _check_blocks(self) -> None:
        super()._check_blocks()
        self._check_length("up_block_types")
        for name in self.up_block_types:
            require_known("up_block_types", name, ("CrossAttnUpBlock2D", "UpBlock2D"))

    def _list_depths(self) -> list[tuple[int, ...]]:
        return [*super()._list_depths(), *self.up_depths]

    @property
    def up_depths(self) -> tuple[tuple[int, ...], ...]:
        """Return the depths of each up block as `down_depths`, from the bottom to the top."""
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
