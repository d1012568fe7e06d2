"""Results that are not finite: half precision is given up, or the guilty weights are named."""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import UNET_FILE, edit
from oracle import psnr
from ours import pictures, same

import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL, cpu, finite, model_io
from stable_diffusion.denoising import Denoising

TEXT_FILE = "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
OPTIONS = {"n_images": 1, "num_steps": 2, "cfg_weight": 3.0, "seed": 5}
TOO_LARGE = 1e5  # for half precision, whose largest number is 65504


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that computes in half precision, as Metal does, by MLX's own operations."""
    monkeypatch.setattr(cpu, "is_used", lambda: False)
    mx.disable_compile()  # which takes a CPU most of a minute
    yield
    mx.enable_compile()


def overflow_within(tensors: dict) -> None:
    """Attention whose values exceed half precision; what comes of them is as before."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    tensors[f"{name}.to_v.weight"] *= 1e6
    tensors[f"{name}.to_out.0.weight"] /= 1e6


def last(latents: Denoising) -> mx.array:
    for x_t in latents:
        mx.eval(x_t)
    return x_t


def run(folder: Path, *options: object, prompt: str = "a photo") -> int:
    common = ["--n_images=1", "--steps=1", "--cfg=0", "--seed=5", "--model", folder, *options]
    return txt2image.main([prompt, *map(str, common)])


def test_denoising_is_done_again_in_float32(copy, half, monkeypatch):
    """The picture is then that of float32 from the start, and it is said."""
    folder = copy("sd-1")
    edit(folder / UNET_FILE, overflow_within)
    options = {"num_steps": 2, "cfg_weight": 0.0, "seed": 5}
    sd, exact = StableDiffusion(folder, float16=True), StableDiffusion(folder)
    expected = last(exact.generate_latents("a cat", **options))
    latents, other = (sd.generate_latents("a cat", **options) for _ in range(2))
    assert latents.inputs[1].dtype == mx.float16
    mx.eval(latents.inputs)
    sd.free_text_encoders()
    with pytest.warns(UserWarning, match="the latents are not finite .* once more in float32"):
        x_0 = finite.denoised(sd, latents, last, [other])
    assert sd.unet.conv_in.weight.dtype == mx.float32
    assert finite.is_finite(finite.denoised(sd, other, last))  # without another warning
    monkeypatch.undo()
    ours, theirs = (np.array(sd.decode(x)) for x in (x_0, expected))
    assert psnr(ours * 255, theirs * 255) > 50  # the text was embedded in half precision
    assert theirs.std() > 0.05


def test_text_is_embedded_again_in_float32(copy, half, checkpoint):
    folder = copy("sd-1")

    def overflow(tensors: dict) -> None:
        (prefix,) = {key.partition("encoder.layers")[0] for key in tensors if ".mlp." in key}
        tensors[f"{prefix}encoder.layers.0.self_attn.v_proj.weight"] *= 1e6
        tensors[f"{prefix}encoder.layers.0.self_attn.v_proj.bias"] *= 1e6
        tensors[f"{prefix}encoder.layers.0.self_attn.out_proj.weight"] /= 1e6

    edit(folder / TEXT_FILE, overflow)
    sd = StableDiffusion(folder, float16=True)
    before = sd.generate_latents("first", **OPTIONS)  # of another batch
    with pytest.warns(UserWarning, match="the text embeddings are not finite"):
        latents = finite.started(sd, lambda: sd.generate_latents("a cat", **OPTIONS), [before])
    assert finite.is_finite(*latents.inputs)
    assert (sd.float16, sd.dtype) == (False, mx.float32)
    expected = StableDiffusion(folder).generate_latents("a cat", **OPTIONS)
    assert mx.array_equal(latents.inputs[1], expected.inputs[1]).item()
    (*_, ours), (*_, theirs) = latents, expected
    assert mx.array_equal(ours, theirs).item()


def test_what_is_loaded_again_is_what_it_was(checkpoint, tmp_path):
    """Quantized, with a LoRA; text encoders that were freed stay away."""
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
    """Fresh noise included, and after some steps."""
    sd = StableDiffusion(checkpoint("sd-1"), sampler="euler-a")
    latents = sd.generate_latents("a cat", **OPTIONS)
    first = pictures(sd, latents)
    for _ in range(2):
        latents.restart()
        next(latents)
        latents.restart()
        assert np.array_equal(pictures(sd, latents), first)


@pytest.mark.parametrize(
    ("file", "what", "kind"),
    [
        (UNET_FILE, "latents", "sd-1"),
        (TEXT_FILE, "embeddings of text and picture", "sd-1"),
        (VAE_FILE, "pictures", "sd-1"),
        ("text_encoder_2/model.safetensors", "embeddings of text and picture", "sdxl"),
    ],
)
def test_the_guilty_weights_are_named(copy, capsys, tmp_path, file, what, kind):
    """In one line, with file and tensor; and nothing is written."""
    folder = copy(kind)
    guilty = []

    def damage(tensors: dict) -> None:
        ends = ("final_layer_norm.bias", "decoder.conv_out.bias")
        (key,) = (key for key in tensors if key.endswith(ends) or key == "conv_out.bias")
        tensors[key][0] = np.nan
        guilty.append(key)

    edit(folder / file, damage)
    assert run(folder, "--output", tmp_path / "o.png") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: the {what} are not finite numbers, for these weights are not: ")
    assert f"{folder / file}: {guilty[0]}; get the file again" in line
    assert not (tmp_path / "o.png").exists()


def test_infinite_pixels_are_not_white(copy, tmp_path, capsys):
    """Cut off at 1, they would be."""
    folder = copy("sd-1")
    edit(folder / VAE_FILE, lambda tensors: tensors["decoder.conv_out.bias"].fill(np.inf))
    assert run(folder, "--output", tmp_path / "o.png") == 1
    assert "decoder.conv_out.bias" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_weights_that_half_precision_cannot_hold(copy, capsys, tmp_path):
    """They are no error, for float32 holds them."""
    folder = copy("sd-1")

    def enlarge(tensors: dict) -> None:
        tensors["conv_norm_out.weight"] *= TOO_LARGE
        tensors["conv_norm_out.bias"] *= TOO_LARGE
        tensors["conv_out.weight"] /= TOO_LARGE

    edit(folder / UNET_FILE, enlarge)
    source = model_io.open_model(folder)
    assert model_io.damaged_weights(source, ["unet", "text_encoder", "vae"], float16=False) == []
    (found,) = model_io.damaged_weights(source, ["unet"], float16=True)
    assert found.endswith(f"{UNET_FILE}: conv_norm_out.weight")
    assert run(folder, "--float16", "--output", tmp_path / "o.png") == 0
    assert "once more in float32" in capsys.readouterr().err


def test_nothing_is_searched_on_the_good_path(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(finite, "damaged_weights", None)
    monkeypatch.setattr(finite, "not_finite", None)
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


@pytest.mark.parametrize(("level", "said"), [(0, "black"), (7, "of one colour")])
def test_blank_pictures_are_told_of(level, said):
    with pytest.warns(UserWarning, match=f"a picture is {said} all over"):
        finite.warn_of_blank(np.full((8, 8, 3), level, np.uint8))


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
