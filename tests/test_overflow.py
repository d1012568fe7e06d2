"""Results that are not finite, or constant, are computed again; an error says why if need be."""

import doctest
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import UNET_FILE, edit
from oracle import psnr
from ours import pictures, same
from PIL import Image

import image2image
import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL, overflow
from stable_diffusion.denoising import Denoising
from stable_diffusion.device import cpu_kernels
from stable_diffusion.images.arrays import to_uint8
from stable_diffusion.model_io import loaders
from stable_diffusion.overflow import Fault, FaultyResultError, RecomputeWarning
from stable_diffusion.unet import UNetModel
from stable_diffusion.vae import Autoencoder

TEXT_FILE = "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
OPTIONS = {"n_images": 1, "num_steps": 2, "cfg_weight": 3.0, "seed": 5}
TOO_LARGE = 1e5  # for half precision, whose largest number is 65504


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute in half precision, as Metal does, with MLX's own operations."""
    if cpu_kernels.is_used():
        cpu_kernels.load_kernels()  # they can only be checked, once, while mx.compile is on
    monkeypatch.setattr(cpu_kernels, "is_used", lambda: False)
    mx.disable_compile()  # it takes a CPU most of a minute
    yield
    mx.enable_compile()


def make_overflow(tensors: dict) -> None:
    """Let the values of an attention layer exceed half precision, but not its result."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    tensors[f"{name}.to_v.weight"] *= 1e6
    tensors[f"{name}.to_out.0.weight"] /= 1e6


def run_all(latents: Denoising) -> mx.array:
    """Evaluate all steps, and return the last latents."""
    for x_t in latents:
        mx.eval(x_t)
    return x_t


def run(folder: Path, *options: object, prompt: str = "a photo") -> int:
    """Run txt2image.py with a small picture and return its exit status."""
    common = ["--n_images=1", "--steps=1", "--cfg=0", "--seed=5", "--model", folder, *options]
    return txt2image.main([prompt, *map(str, common)])


def test_denoising_is_done_again_in_float32(copy, half, monkeypatch):
    """The picture is then the same as in float32 from the start, and there is a warning."""
    folder = copy("sd-1")
    edit(folder / UNET_FILE, make_overflow)
    options = {"num_steps": 2, "cfg_weight": 0.0, "seed": 5}
    sd, exact = StableDiffusion(folder, float16=True), StableDiffusion(folder)
    expected = run_all(exact.generate_latents("a cat", **options))
    latents, other = (sd.generate_latents("a cat", **options) for _ in range(2))
    assert latents.inputs[1].dtype == mx.float16
    mx.eval(latents.inputs)
    sd.free_text_encoders()
    with pytest.warns(UserWarning, match="the latents are not finite .* again in float32"):
        x_0 = overflow.denoise_checked(sd, latents, run_all, [other])
    assert sd.unet.conv_in.weight.dtype == mx.float32
    assert overflow.is_finite(overflow.denoise_checked(sd, other))  # without another warning
    monkeypatch.undo()
    ours, theirs = (np.array(sd.decode(x)) for x in (x_0, expected))
    assert psnr(ours * 255, theirs * 255) > 50  # the text was embedded in half precision
    assert theirs.std() > 0.05


def test_text_is_embedded_again_in_float32(copy, half, checkpoint):
    folder = copy("sd-1")

    def enlarge_values(tensors: dict) -> None:
        (prefix,) = {key.partition("encoder.layers")[0] for key in tensors if ".mlp." in key}
        tensors[f"{prefix}encoder.layers.0.self_attn.v_proj.weight"] *= 1e6
        tensors[f"{prefix}encoder.layers.0.self_attn.v_proj.bias"] *= 1e6
        tensors[f"{prefix}encoder.layers.0.self_attn.out_proj.weight"] /= 1e6

    edit(folder / TEXT_FILE, enlarge_values)
    sd = StableDiffusion(folder, float16=True)
    before = sd.generate_latents("first", **OPTIONS)  # of another batch
    with pytest.warns(UserWarning, match="the text embeddings are not finite"):
        latents = overflow.start_checked(
            sd, lambda: sd.generate_latents("a cat", **OPTIONS), [before]
        )
    assert overflow.is_finite(*latents.inputs)
    assert (sd.float16, sd.dtype) == (False, mx.float32)
    expected = StableDiffusion(folder).generate_latents("a cat", **OPTIONS)
    assert mx.array_equal(latents.inputs[1], expected.inputs[1]).item()
    (*_, ours), (*_, theirs) = latents, expected
    assert mx.array_equal(ours, theirs).item()


def test_a_model_that_is_loaded_again(checkpoint, tmp_path):
    """It is quantized again; text encoders that were freed are not loaded."""
    sd = StableDiffusionXL(checkpoint("sdxl"), float16=True)
    sd.quantize()
    exact = StableDiffusionXL(checkpoint("sdxl"))
    exact.quantize()
    sd.use_float32()
    assert same(sd.unet, exact.unet) and same(sd.text_encoder_2, exact.text_encoder_2)
    sd.free_text_encoders()
    sd.use_float32()
    assert not hasattr(sd, "text_encoder_1")
    assert same(sd.unet, exact.unet)


def test_restart_makes_the_same_picture(checkpoint):
    """The fresh noise is the same, also if some steps were run."""
    sd = StableDiffusion(checkpoint("sd-1"), sampler="euler-a")
    latents = sd.generate_latents("a cat", **OPTIONS)
    first = pictures(sd, latents)
    latents.restart()
    next(latents)
    latents.restart()
    assert np.array_equal(pictures(sd, latents), first)


@pytest.mark.parametrize(
    ("file", "what", "kind"),
    [
        (UNET_FILE, "latents", "sd-1"),
        (VAE_FILE, "pictures", "sd-1"),
        ("text_encoder_2/model.safetensors", "embeddings of text and picture", "sdxl"),
    ],
)
def test_the_damaged_weights_are_named(copy, capsys, tmp_path, file, what, kind):
    """One line has the file and the tensor, and no picture is written."""
    folder = copy(kind)
    damaged = []

    def damage(tensors: dict) -> None:
        ends = ("final_layer_norm.bias", "decoder.conv_out.bias")
        (key,) = (key for key in tensors if key.endswith(ends) or key == "conv_out.bias")
        tensors[key][0] = np.nan
        damaged.append(key)

    edit(folder / file, damage)
    assert run(folder, "--output", tmp_path / "o.png") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"error: the {what} are not finite numbers, because these weights are not: "
    )
    assert f"{folder / file}: {damaged[0]}; get the file again" in line
    assert not (tmp_path / "o.png").exists()


def test_infinite_pixels_are_not_white(copy, tmp_path, capsys):
    """They would be if they were clipped at 1."""
    folder = copy("sd-1")
    edit(folder / VAE_FILE, lambda tensors: tensors["decoder.conv_out.bias"].fill(np.inf))
    assert run(folder, "--output", tmp_path / "o.png") == 1
    assert "decoder.conv_out.bias" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_weights_that_half_precision_cannot_hold(copy, capsys, tmp_path):
    """They are no error, because float32 can hold them."""
    folder = copy("sd-1")

    def enlarge(tensors: dict) -> None:
        tensors["conv_norm_out.weight"] *= TOO_LARGE
        tensors["conv_norm_out.bias"] *= TOO_LARGE
        tensors["conv_out.weight"] /= TOO_LARGE

    edit(folder / UNET_FILE, enlarge)
    model, components = loaders.open_model(folder), ["unet", "text_encoder", "vae"]
    assert loaders.find_damaged_weights(model, components, float16=False) == []
    (found,) = loaders.find_damaged_weights(model, ["unet"], float16=True)
    assert found.endswith(f"{UNET_FILE}: conv_norm_out.weight")
    assert run(folder, "--float16", "--output", tmp_path / "o.png") == 0
    assert "again in float32 (--no-float16 avoids this)" in capsys.readouterr().err


def test_nothing_is_searched_on_the_good_path(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(overflow, "find_damaged_weights", None)
    monkeypatch.setattr(overflow, "find_not_finite", None)
    assert run(checkpoint("sd-1"), "--output", tmp_path / "o.png") == 0


def test_a_lora_that_is_not_finite_is_named(checkpoint, tmp_path, capsys):
    file = tmp_path / "lora.safetensors"
    name = "lora_unet_mid_block_attentions_0_proj_in"
    mx.save_safetensors(
        str(file),
        {
            f"{name}.lora_down.weight": mx.full((4, 64), mx.nan),
            f"{name}.lora_up.weight": mx.ones((64, 4)),
        },
    )
    output = tmp_path / "o.png"
    assert run(checkpoint("sd-1"), "--lora", file, "--output", output) == 1
    assert f"{file}: {name}.lora_down.weight" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "colour"), [(0, "black"), (7, "of one colour")])
def test_blank_pictures_are_warned_of(level, colour):
    with pytest.warns(UserWarning, match=f"a picture is {colour} all over"):
        overflow.warn_of_blank(np.full((8, 8, 3), level, np.uint8))


def test_a_lora_stays_when_float32_takes_over(checkpoint, tmp_path):
    file = tmp_path / "lora.safetensors"
    name = "lora_unet_mid_block_attentions_0_proj_in"
    parts = {"down": mx.random.normal((4, 64)), "up": mx.random.normal((64, 4))}
    parts = {k: v.astype(mx.float16).astype(mx.float32) for k, v in parts.items()}
    mx.save_safetensors(
        str(file), {f"{name}.lora_{part}.weight": value for part, value in parts.items()}
    )
    sd, exact = (StableDiffusion(checkpoint("sd-1"), float16=half) for half in (True, False))
    for each in (sd, exact):
        each.load_lora(file)
    sd.use_float32()
    assert same(sd.unet, exact.unet)


@pytest.mark.parametrize(
    ("x", "constant"),
    [
        (mx.zeros((2, 4, 4, 3)), [True, True]),
        (mx.broadcast_to(mx.array([0.1, 0.2, 0.3]), (1, 4, 4, 3)), [True]),  # one colour
        (mx.concatenate([mx.zeros((1, 4, 4, 3)), mx.arange(48.0).reshape(1, 4, 4, 3)]), [True, 0]),
        (mx.broadcast_to(mx.arange(5.0), (1, 77, 5)), [True]),  # the same for every token
        (mx.array([[1.0, 1.0], [1.0, 2.0]]), [True, False]),  # pooled
        (mx.array([[[[3.0, 1.0]]]]), [False]),  # one latent
        (mx.full((1, 2, 2, 1), mx.nan), [False]),
        (mx.zeros((1, 1, 1, 1)), [False]),  # a single number says nothing
    ],
)
def test_is_constant(x, constant):
    assert overflow.is_constant(x).tolist() == constant


def make_zeroing(*ends: str) -> Callable[[dict], None]:
    """Return a function that sets tensors to zero, as a GPU does with too little memory."""

    def set_to_zero(tensors: dict) -> None:
        found = [key for key in tensors if key.endswith(ends)]
        assert found
        for key in found:
            tensors[key][:] = 0

    return set_to_zero


@pytest.mark.parametrize(
    ("file", "what", "ends", "kind"),
    [
        (UNET_FILE, "latents", ("conv_out.weight",), "sd-1"),  # constant, not zero
        (VAE_FILE, "pictures", ("decoder.conv_out.weight", "decoder.conv_out.bias"), "sd-1"),
        # One of two text encoders is damaged.
        (TEXT_FILE, "embeddings of text and picture", ("embedding.weight", "_proj.weight"), "sdxl"),
    ],
)
def test_constant_results_are_not_saved(copy, capsys, tmp_path, file, what, ends, kind):
    """They are computed again, and then one line says what is wrong and what to do."""
    folder = copy(kind)
    edit(folder / file, make_zeroing(*ends))
    assert run(folder, "--output", tmp_path / "o.png") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        f"error: the {what} are constant, even when computed again: the memory may not be enough: "
        "try smaller pictures, --low-memory or -q; if that does not help, the model may be damaged"
    )
    again = [line for line in lines if line.endswith("are constant: computing them again")]
    assert len(again) == (what != "pictures")
    assert not (tmp_path / "o.png").exists()


def test_a_constant_result_is_computed_again(checkpoint, monkeypatch):
    """If it is right the second time it is used: text, latents, and one picture of two."""
    sd = StableDiffusion(checkpoint("sd-1"))
    options = OPTIONS | {"n_images": 2}
    expected = sd.generate_latents("a cat", **options)
    embed, predict, decode = StableDiffusion._embed_text, UNetModel.__call__, Autoencoder.decode
    failing = {"text", "latents", "pictures"}

    def zero_once(what: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if what not in failing:
                return result
            if what == "text":
                return mx.zeros_like(result[0]), result[1]
            return mx.concatenate([result[:1], mx.zeros_like(result[1:])])

        return call

    monkeypatch.setattr(StableDiffusion, "_embed_text", zero_once("text", embed))
    monkeypatch.setattr(UNetModel, "__call__", zero_once("latents", predict))
    monkeypatch.setattr(Autoencoder, "decode", zero_once("pictures", decode))

    def start() -> Denoising:
        latents = sd.generate_latents("a cat", **options)
        failing.discard("text")
        return latents

    def run_(latents: Denoising) -> mx.array:
        x_0 = run_all(latents)
        failing.discard("latents")
        return x_0

    with pytest.warns(UserWarning, match="the text embeddings are constant: computing"):
        latents = overflow.start_checked(sd, start)
    assert mx.array_equal(latents.inputs[1], expected.inputs[1]).item()
    options["cfg_weight"] = 1.0  # with guidance, half of a prediction in zeros is no constant
    latents = sd.generate_latents("a cat", **options)
    with pytest.warns(UserWarning, match="the latents are constant: computing"):
        x_0 = overflow.denoise_checked(sd, latents, run_)
    assert mx.array_equal(x_0, run_all(sd.generate_latents("a cat", **options))).item()
    assert overflow.is_constant(sd.decode(x_0)).tolist() == [False, True]
    made = overflow.decode_checked(sd, x_0, tiled=None)
    failing.clear()
    assert psnr(np.array(made) * 255, np.array(sd.decode(x_0)) * 255) > 50


def test_half_precision_is_given_up_for_a_constant(copy, half):
    """A number that is too small for it is zero there."""
    folder = copy("sd-1")

    def shrink(tensors: dict) -> None:
        tensors["conv_norm_out.weight"] *= 1e-10
        tensors["conv_norm_out.bias"] *= 1e-10
        tensors["conv_out.bias"][:] = 0  # or the rest would be negligible in float32, too

    edit(folder / UNET_FILE, shrink)
    sd = StableDiffusion(folder, float16=True)
    latents = sd.generate_latents("a cat", **OPTIONS)
    with pytest.warns(UserWarning, match="the latents are constant in half precision: computing"):
        overflow.denoise_checked(sd, latents)
    assert not sd.float16


def test_a_white_picture_is_not_constant(copy, tmp_path):
    """Before it was clipped at 1, no two pixels were the same."""
    folder = copy("sd-1")
    edit(folder / VAE_FILE, lambda tensors: tensors["decoder.conv_out.bias"].fill(1000))
    with pytest.warns(UserWarning, match="of one colour all over"):
        sd = StableDiffusion(folder)
        x_0 = run_all(sd.generate_latents("a cat", **OPTIONS))
        picture = overflow.decode_checked(sd, x_0, tiled=None)
        overflow.warn_of_blank(to_uint8(np.array(picture))[0])
    assert (np.array(picture) == 1).all()
    assert run(folder, "--output", tmp_path / "o.png") == 0
    assert (tmp_path / "o.png").exists()


@pytest.mark.parametrize("strength", [0, 1])
def test_a_picture_that_starts_from_one_colour_may_be_of_one(copy, tmp_path, capsys, strength):
    """It is saved, without a warning."""
    folder = copy("sd-1")
    edit(folder / VAE_FILE, make_zeroing("decoder.conv_out.weight"))
    for name, level, status in (("flat", 0, 0), ("varied", 255, 1)):
        levels = np.full((64, 64, 3), 90, np.uint8)
        levels[0, 0] += level
        Image.fromarray(levels).save(tmp_path / f"{name}.png")
        output = tmp_path / f"made-{name}.png"
        options = ["--n_images=1", "--steps=1", "--cfg=0", "--seed=5", "--model", str(folder)]
        options += [f"--strength={strength}", f"--output={output}"]
        assert image2image.main([str(tmp_path / f"{name}.png"), "a photo", *options]) == status
        assert output.exists() == (status == 0)
    assert "all over" not in capsys.readouterr().err


def test_the_encoded_picture_is_checked(copy):
    folder = copy("sd-1")
    edit(folder / VAE_FILE, make_zeroing("encoder.conv_out.weight"))
    image = np.random.RandomState(0).uniform(-1, 1, (64, 64, 3))
    sd = StableDiffusion(folder)
    with (
        pytest.warns(UserWarning, match="constant: computing them again"),
        pytest.raises(ValueError, match="embeddings of text and picture are constant"),
    ):
        overflow.start_checked(
            sd, lambda: sd.generate_latents_from_image(image, "a cat", **OPTIONS)
        )
    overflow.start_checked(
        sd, lambda: sd.generate_latents_from_image(0 * image, "a cat", **OPTIONS), is_flat=True
    )


def test_zeros_instead_of_an_empty_negative_text_are_no_fault(checkpoint, recwarn):
    sd = StableDiffusionXL(checkpoint("sdxl-turbo"))
    assert sd.config.pipeline.force_zeros_for_empty_prompt
    latents = overflow.start_checked(sd, lambda: sd.generate_latents("a cat", **OPTIONS))
    assert not latents.inputs[1][1:].any().item()
    assert not [warning for warning in recwarn if "constant" in str(warning.message)]


def test_the_library_recovers_in_one_call(copy, half):
    """A warning says what has happened, without options of the command line."""
    folder = copy("sd-1")
    edit(folder / UNET_FILE, make_overflow)
    sd = StableDiffusion(folder, float16=True)
    with pytest.warns(RecomputeWarning) as caught:
        made = overflow.make_pictures(sd, lambda: sd.generate_latents("a cat", **OPTIONS))
    (warning,) = [each.message for each in caught]
    assert (warning.what, warning.fault) == ("latents", Fault.NOT_FINITE)
    assert warning.gives_up_float16
    assert "--" not in str(warning)
    assert not sd.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = overflow.make_pictures(sd, lambda: sd.generate_latents("a cat", **OPTIONS))
    # The text of the first picture was embedded in half precision.
    assert psnr(np.array(made) * 255, np.array(expected) * 255) > 50


@pytest.mark.parametrize(
    ("what", "fault", "damaged", "message"),
    [
        ("latents", Fault.NOT_FINITE, ["a: b"], "because these weights are not: a: b; get the fi"),
        ("latents", Fault.NOT_FINITE, [], "though all weights are: the model overflows$"),
        ("pictures", Fault.CONSTANT, [], "^the pictures are constant, even when computed again$"),
    ],
)
def test_errors_say_what_happened(what, fault, damaged, message):
    """They name no options of the command line."""
    error = FaultyResultError(what, fault, damaged)
    assert (error.what, error.fault, error.damaged) == (what, fault, tuple(damaged))
    with pytest.raises(ValueError, match=message):
        raise error
    assert "--" not in str(error)


def test_the_example_in_the_docstring():
    results = doctest.testmod(overflow)
    assert results.attempted >= 5 and results.failed == 0
