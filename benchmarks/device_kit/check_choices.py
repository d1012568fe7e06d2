"""Whatever is chosen by the kind of device, against the plain way, on the device itself.

A choice is a function that returns both ways to compute something: a new one is a line in the
tables at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from unittest import mock

import mlx.core as mx
from tasks import TIMESTEP, random_normal

from stable_diffusion import attention, vae_strips
from stable_diffusion.activations import silu
from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.lora_layers import AdaptedConv3x3
from stable_diffusion.attention import attend
from stable_diffusion.config.networks import AutoencoderConfig, UNetConfig
from stable_diffusion.device import memory
from stable_diffusion.layers import Conv3x3, GroupNorm, upsample_nearest
from stable_diffusion.prediction import make_predict
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder

from .devices import evaluate, has_gpu, on_device
from .findings import LIMITS, Findings, Limits, Options
from .networks import SMALL_SD, fill, find_model
from .timing import measure_seconds

HEADS, HEAD_WIDTH = 8, 40  # of SD 1.x at its first level
RANK = 16  # of a LoRA
N_CHUNKS = 8  # of attention
N_STRIPS = 6  # of a picture
# Float16 ends at 65,504. Winograd's transforms are up to 45 times as large as their input.
LARGE = 3000.0

T = TypeVar("T")


class Sizes(NamedTuple):
    """The sizes at which the choices are compared.

    Attributes:
        tokens: of an attention of several heads.
        pixels: of the attention in the VAE, and of one head.
        width: of that head.
        side, channels: of the input of a convolution and of a norm.
        latents: height and width of what the VAE decodes, and of the UNet's input.
    """

    tokens: int
    pixels: int
    width: int
    side: int
    channels: int
    latents: int
    unet: UNetConfig
    vae: AutoencoderConfig


class Choice(NamedTuple):
    """Two ways to compute the same; `limits` is None if there is nothing to fail."""

    what: str
    chosen: Callable[[], mx.array]
    plain: Callable[[], mx.array]
    limits: Limits | None


def check_small(options: Options) -> Findings:
    """Compare the ways at small sizes."""
    findings = Findings()
    _compare(findings, _choose_small_sizes(), is_timed=False)
    return findings


def check_real(options: Options) -> Findings:
    """Compare the ways at the sizes of the real models, and time them on a GPU."""
    findings = Findings()
    if has_gpu():
        _compare(findings, _choose_real_sizes())
    else:  # smaller, and a CPU would compute for minutes in float16
        sizes = _choose_real_sizes()._replace(pixels=4096, latents=16)
        _compare(findings, sizes, [mx.float32], is_timed=False)
    return findings


def check_compiled(options: Options) -> Findings:
    """Compare and time a step that is compiled, and the same step that is not."""
    findings = Findings()
    sizes = _choose_real_sizes() if has_gpu() else _choose_small_sizes()
    with on_device(compiles=True):
        _compare_ways(findings, compiled_step(sizes, mx.float16), mx.float16, is_timed=True)
    return findings


def _choose_small_sizes() -> Sizes:
    tiny = find_model("tiny").autoencoder
    return Sizes(1024, 1024, 512, 33, 64, latents=8, unet=SMALL_SD, vae=tiny)


def _choose_real_sizes() -> Sizes:
    """Return the sizes of SD 1.5 for pictures of 512×512; the head is that of 1024×1024."""
    model = find_model("sd-1.5")
    return Sizes(4096, 16384, 512, 64, 320, 64, model.unet, model.autoencoder)


def _compare(
    findings: Findings,
    sizes: Sizes,
    dtypes: Sequence[mx.Dtype] = (mx.float32, mx.float16),
    is_timed: bool = True,
) -> None:
    """Compare the two ways of each choice, in each of some precisions."""
    for dtype in dtypes:
        for make in (*CHOICES, *CHOICES_BY_TYPE[dtype]):
            with on_device():
                _compare_ways(findings, make(sizes, dtype), dtype, is_timed)


def _compare_ways(findings: Findings, choice: Choice, dtype: mx.Dtype, is_timed: bool) -> None:
    what = f"{choice.what}, {str(dtype).removeprefix('mlx.core.')}"
    findings.compare(what, evaluate(choice.chosen), evaluate(choice.plain), choice.limits)
    if is_timed:
        ways = {"as chosen": choice.chosen, "the plain way": choice.plain}
        costs = {title: _measure_cost(way) for title, way in ways.items()}
        findings.measure({"computed": what} | costs)
    mx.clear_cache()


def _measure_cost(run: Callable[[], mx.array]) -> str:
    """Return the time of `run`, and the memory that it takes in addition."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = measure_seconds(run, 3.0)
    return f"{1e3 * seconds:.1f} ms, {(mx.get_peak_memory() - before) / 1e9:.2f} GB"


# --- attention and norms --------------------------------------------------------------------------


def padded_heads(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return attention with heads of 40, which Metal is given as heads of 64, and as they are."""
    shape = (2, sizes.tokens, HEADS * HEAD_WIDTH)
    inputs = [_normal(*shape, dtype=dtype, seed=seed) for seed in range(3)]

    def plain() -> mx.array:
        heads = (mx.unflatten(x, -1, (HEADS, -1)).swapaxes(1, 2) for x in inputs)
        attended = mx.fast.scaled_dot_product_attention(*heads, scale=HEAD_WIDTH**-0.5)
        return attended.swapaxes(1, 2).flatten(2)

    what = f"attention of {sizes.tokens} tokens, {HEADS} heads of {HEAD_WIDTH}: padded"
    return Choice(what, lambda: attend(*inputs, HEADS), plain, LIMITS[dtype])


def attention_in_chunks(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return the attention of the VAE with its scores in chunks, and with all at once."""
    shape = (1, sizes.pixels, sizes.width)
    inputs = [_normal(*shape, dtype=dtype, seed=seed) for seed in range(3)]
    all_bytes = sizes.pixels**2 * dtype.size

    def attend_within(n_bytes: int) -> mx.array:
        with mock.patch.object(attention, "choose_score_bytes", lambda: n_bytes):
            return attend(*inputs, num_heads=1)

    return Choice(
        f"attention of {sizes.pixels} pixels, a head of {sizes.width}: in chunks",
        lambda: attend_within(all_bytes // N_CHUNKS),
        lambda: attend_within(all_bytes),
        LIMITS[dtype],
    )


def group_norm(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return a norm with an activation, and its formula in float32."""
    n_groups, eps = 32, 1e-5
    norm = fill(GroupNorm(n_groups, sizes.channels, eps), dtype)
    x = 3 + _normal(2, sizes.side, sizes.side, sizes.channels, dtype=dtype)

    def plain() -> mx.array:
        groups = x.astype(mx.float32).reshape(2, -1, n_groups, sizes.channels // n_groups)
        mean = groups.mean(axis=(1, 3), keepdims=True)
        variance = (groups - mean).square().mean(axis=(1, 3), keepdims=True)
        normalized = ((groups - mean) * mx.rsqrt(variance + eps)).reshape(x.shape)
        y = normalized * norm.weight.astype(mx.float32) + norm.bias.astype(mx.float32)
        return y * mx.sigmoid(y)

    what = f"norm and activation of {sizes.side}×{sizes.side}, {sizes.channels} channels"
    return Choice(what, lambda: norm(x, activation=silu), plain, LIMITS[dtype])


# --- convolutions ---------------------------------------------------------------------------------


def merged_lora(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return a convolution with a LoRA put into its weight, and both computed and added."""
    n = sizes.channels
    change = LowRank(mx.zeros((RANK, 3, 3, n)), mx.zeros((n, RANK)))
    layer = fill(AdaptedConv3x3(Conv3x3(n, n), [change]), dtype)
    x = _normal(2, sizes.side, sizes.side, n, dtype=dtype)

    def plain() -> mx.array:
        return layer.base(x) + mx.conv2d(x, change.down, padding=1) @ change.up.T

    what = f"LoRA of a convolution of {sizes.side}×{sizes.side}, {n} channels: put into the weight"
    return Choice(what, lambda: layer(x), plain, LIMITS[dtype])


def upsampling(sizes: Sizes, dtype: mx.Dtype, scale: float = 1.0) -> Choice:
    """Return the convolution after upsampling, and the same by a convolution in float32."""
    n = sizes.channels
    layer = fill(Conv3x3(n, n), dtype)
    x = scale * _normal(1, sizes.side, sizes.side, n, dtype=dtype)

    def plain() -> mx.array:
        y = mx.conv2d(upsample_nearest(x.astype(mx.float32)), layer.weight, padding=1)
        return y + layer.bias

    what = f"convolution after upsampling {sizes.side}×{sizes.side}, numbers about {scale:.0f}"
    return Choice(what, lambda: layer.convolve_upsampled(x), plain, LIMITS[dtype])


def upsampling_large(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return `upsampling` of numbers that could overflow in float16."""
    return upsampling(sizes, dtype, LARGE)


# --- whole networks -------------------------------------------------------------------------------


def compiled_step(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return the prediction of a step with guidance, compiled as the program does, and not."""
    unet = fill(UNetModel(sizes.unet), dtype)
    text = _normal(2, 77, sizes.unet.cross_attention_dim, dtype=dtype, seed=1)
    x = _normal(1, sizes.latents, sizes.latents, sizes.unet.in_channels, dtype=mx.float32)
    predict = make_predict(unet, text, None, 7.5, 0.0, dtype)

    def plain() -> mx.array:
        mx.disable_compile()
        try:
            return predict(x, mx.array(TIMESTEP), 0)
        finally:
            mx.enable_compile()

    what = f"step of {sizes.latents}×{sizes.latents}, with guidance: compiled"
    return Choice(what, lambda: predict(x, mx.array(TIMESTEP), 0), plain, LIMITS[dtype])


def strips_of_decode(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return a decode in strips, and as a whole."""
    vae = fill(Autoencoder(sizes.vae), dtype)
    z = _normal(1, sizes.latents, sizes.latents, vae.latent_channels, dtype=dtype)
    return Choice(
        f"decode of {sizes.latents}×{sizes.latents} latents: in strips",
        lambda: _in_strips(vae_strips.decode, vae, z),
        lambda: vae.decode(z),
        LIMITS[dtype],
    )


def strips_of_encode(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return an encode in strips, and as a whole."""
    vae = fill(Autoencoder(sizes.vae), dtype)
    n = sizes.latents * sizes.vae.factor
    x = mx.tanh(_normal(1, n, n, 3, dtype=dtype))
    return Choice(
        f"encode to {sizes.latents}×{sizes.latents} latents: in strips",
        lambda: mx.concatenate(_in_strips(vae_strips.encode, vae, x), axis=-1),
        lambda: mx.concatenate(vae.encode(x), axis=-1),
        LIMITS[dtype],
    )


def half_vae(sizes: Sizes, dtype: mx.Dtype) -> Choice:
    """Return a decode in half precision, and in float32. It is off by default: nothing can fail."""
    vae, half = fill(Autoencoder(sizes.vae)), fill(Autoencoder(sizes.vae), dtype)
    z = _normal(1, sizes.latents, sizes.latents, vae.latent_channels, dtype=mx.float32)
    return Choice(
        f"decode of {sizes.latents}×{sizes.latents} latents: in half precision",
        lambda: half.decode(z.astype(dtype)),
        lambda: vae.decode(z),
        None,
    )


def _in_strips(function: Callable[..., T], vae: Autoencoder, x: mx.array) -> T:
    """Return what a function of `vae_strips` computes in several strips."""
    n_pixels = math.prod(x.shape[1:3])
    if function is vae_strips.decode:
        n_pixels *= vae.config.factor**2
    with mock.patch.object(memory, "choose_strip_pixels", lambda _: n_pixels // N_STRIPS):
        return function(vae, x, tiled=True)


def _normal(*shape: int, dtype: mx.Dtype, seed: int = 0) -> mx.array:
    return mx.array(random_normal(*shape, seed=seed)).astype(dtype)


Make = Callable[[Sizes, mx.Dtype], Choice]

CHOICES: tuple[Make, ...] = (
    padded_heads,
    attention_in_chunks,
    group_norm,
    merged_lora,
    upsampling,
    upsampling_large,
)
# The VAE computes in float32.
CHOICES_BY_TYPE: dict[mx.Dtype, tuple[Make, ...]] = {
    mx.float32: (strips_of_decode, strips_of_encode),
    mx.float16: (half_vae,),
}
