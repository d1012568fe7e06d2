"""Inpainting equals diffusers' pipelines, and what is outside the mask stays."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import edit
from gpu import as_on, without_fusing
from oracle import channels_first, channels_last, psnr, relative_l2
from ours import pictures
from PIL import Image

from stable_diffusion import StableDiffusion, inpainting, overflow
from stable_diffusion.check_pictures import check_mask
from stable_diffusion.device.backend import Backend
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.overflow import evaluate_steps
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.prediction import NetworkInputs, make_predict
from stable_diffusion.sampler.schedule import CLEAN, Level, Step

PROMPT = "a photo of a café, at night"
SAME = 50  # dB at least between equal pictures
EXACT = 6e-6  # relative L2 at most of inputs of the UNet
FACTOR = 8  # of the VAEs of these kinds

Load = Callable[[str], StableDiffusion]


def make_image(height: int = 32, width: int = 48) -> np.ndarray:
    """Return a picture [H, W, 3] in [-1, 1]."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.stack([x, y, x * y], axis=-1).astype(np.float32)


def make_mask(height: int = 32, width: int = 48) -> np.ndarray:
    """Return a mask [H, W] with edges inside of latents, and levels beside and at 0.5."""
    mask = np.full((height, width), 0.49, dtype=np.float32)
    mask[height // 3 :, width // 3 : -9] = 0.5
    mask[: height // 2, -12:] = 1
    return mask


IMAGE, MASK = make_image(), make_mask()
IMAGE.setflags(write=False)
MASK.setflags(write=False)


@pytest.fixture(scope="module")
def model(checkpoint) -> Load:
    """Return a function that loads our pipeline of a kind, once."""
    loaded: dict[str, StableDiffusion] = {}

    def load(kind: str) -> StableDiffusion:
        if kind not in loaded:
            folder = checkpoint(kind)
            loaded[kind] = pipeline_class(load_model_config(folder))(folder)
        return loaded[kind]

    return load


def inpaint(sd: StableDiffusion, **options):
    """Return the latents of two steps, with the mask, unless the options say something else."""
    options = {"num_steps": 2, "cfg_weight": 1, "strength": 1, "seed": 7, "mask": MASK, **options}
    return sd.generate_latents_from_image(IMAGE, PROMPT, **options)


@pytest.mark.parametrize(
    ("kind", "strength", "guidance"),
    [
        ("sd-1", 1.0, 4.0),
        ("sdxl", 0.5, 1.0),
        ("sd-1-inpainting", 0.8, 4.0),
        ("sdxl-inpainting", 1.0, 4.0),
    ],
)
def test_pictures_equal_those_of_diffusers(model, oracle, kind, strength, guidance):
    """Two pictures in a batch do, from noise alone and from the picture with noise."""
    options = {"num_steps": 3, "strength": strength, "cfg_weight": guidance}
    ours = pictures(model(kind), inpaint(model(kind), n_images=2, **options))
    theirs = oracle(kind).inpainted_pictures(
        IMAGE,
        MASK,
        PROMPT,
        seeds=[7, 8],
        strength=strength,
        num_inference_steps=3,
        guidance_scale=guidance,
    )
    assert psnr(ours, theirs) >= SAME
    assert theirs.std() >= 30  # of 255: they show something


@pytest.mark.parametrize("name", ["heun", "unipc", "lcm", "euler-a"])
def test_samplers(model, oracle, name):
    """Samplers of two calls a step, that correct, that add noise, and whose steps end elsewhere."""
    sd = model("sd-1")
    ours = pictures(sd, inpaint(sd, sampler=name, num_steps=4, strength=0.8))
    theirs = oracle("sd-1").inpainted_pictures(
        IMAGE,
        MASK,
        PROMPT,
        seeds=[7],
        sampler=name,
        strength=0.8,
        num_inference_steps=4,
        guidance_scale=1.0,
    )
    assert psnr(ours, theirs) >= SAME


def test_masks_of_latents_equal_those_of_diffusers():
    """A latent is painted if the first of its pixels is: `interpolate` takes the nearest one."""
    mask = np.random.RandomState(0).uniform(size=(40, 56)) >= 0.5
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None] * 1.0, (5, 7))
    assert np.array_equal(inpainting.shrink_mask(mask, 8)[..., 0], expected[0] == 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd-1-inpainting", "sdxl-inpainting"])
def test_the_channels_in_float64(model, oracle, kind, monkeypatch):
    """The mask follows the latents, and then the latents of the picture with a grey hole."""
    sd, seen = model(kind), []
    call = type(sd.unet).__call__
    monkeypatch.setattr(
        type(sd.unet), "__call__", lambda unet, x, *rest: seen.append(x) or call(unet, x, *rest)
    )
    mx.eval(next(inpaint(sd, n_images=2, cfg_weight=3)))
    (x,) = seen
    hole = channels_first((IMAGE * (MASK < 0.5)[..., None])[None])
    vae = oracle(kind).exact.vae
    masked = channels_last(vae.encode(hole).latent_dist.mean * vae.config.scaling_factor)
    expected = np.concatenate([(MASK >= 0.5)[::FACTOR, ::FACTOR, None], masked[0]], axis=-1)
    assert x.shape == (4, 4, 6, 9)
    assert np.array_equal(x[:2], x[2:])  # with and without the text
    for each in x:
        assert relative_l2(each[..., 4:], expected) <= EXACT


def test_what_is_outside_the_mask_has_the_noise_of_the_next_step():
    """It is always the same noise, and none after the last step."""
    rows = np.random.RandomState(0).standard_normal((5, 2, 4, 6, 4)).astype(np.float32)
    latents, noise, x = rows[0, :1], rows[1], rows[2]
    mask = np.arange(4 * 6).reshape(1, 4, 6, 1) % 3 == 0
    restore = inpainting.restore_outside(mx.array(mask), mx.array(latents), mx.array(noise))
    level = Level.from_alpha_bar(0.3)
    step = Step(500.0, start=level, end=CLEAN)
    noisy = 0.3**0.5 * latents.astype(float) + 0.7**0.5 * noise
    np.testing.assert_allclose(
        np.array(restore(mx.array(x), step)), np.where(mask, x, noisy), rtol=0, atol=1e-6
    )
    assert np.array_equal(restore(mx.array(x), None), np.where(mask, x, latents))


@pytest.mark.parametrize("sampler", ["dpm2", "pndm", "tcd"])
def test_latents_outside_the_mask_become_those_of_the_picture(model, sampler):
    """The last latents and all estimates, which previews show, have them to the bit."""
    sd = model("sd-1")
    latents = inpaint(sd, sampler=sampler, num_steps=3)
    original = np.array(latents.inputs[-1])
    outside = ~(MASK >= 0.5)[::FACTOR, ::FACTOR]
    outputs = [(x_t, latents.estimate) for x_t in latents]
    for shown in (*(estimate for _, estimate in outputs), outputs[-1][0]):
        assert np.array_equal(np.array(shown)[0, outside], original[0, outside])
        assert not np.isclose(np.array(shown)[0, ~outside], original[0, ~outside]).all()


@pytest.mark.parametrize("kind", ["sd-1", "sd-1-inpainting"])
def test_a_picture_depends_on_its_seed_alone(model, kind):
    sd, options = model(kind), {"sampler": "euler-a", "strength": 0.8, "num_steps": 3}
    together = inpaint(sd, n_images=2, **options)
    x_0 = evaluate_steps(together)
    alone = evaluate_steps(inpaint(sd, seed=8, **options))
    np.testing.assert_allclose(np.array(x_0[1:]), np.array(alone), rtol=0, atol=1e-4)
    together.restart()
    assert np.array_equal(evaluate_steps(together), x_0)


def test_masks_of_all_kinds_give_the_same(model):
    sd, mask = model("sd-1"), MASK >= 0.5
    expected = evaluate_steps(inpaint(sd))
    of_pillow = np.asarray(Image.fromarray(mask))  # its true is the byte 255
    overshooting = np.where(mask, 1.2, -0.2)  # as after Lanczos' filter
    kinds = [mask, of_pillow, MASK.tolist(), overshooting]
    kinds += [mx.array(mask), mx.array(of_pillow), mx.array(MASK, dtype=mx.bfloat16)]
    for same in kinds:
        assert np.array_equal(evaluate_steps(inpaint(sd, mask=same)), expected)
    assert not np.array_equal(evaluate_steps(inpaint(sd, mask=~mask)), expected)
    plain = inpaint(sd, mask=np.ones_like(MASK))  # paints all: from noise, as without a picture
    options = {"num_steps": 2, "cfg_weight": 1, "seed": 7, "latent_size": (4, 6)}
    text = sd.generate_latents(PROMPT, **options)
    assert np.array_equal(evaluate_steps(plain), evaluate_steps(text))


def test_no_strength_leaves_the_picture(model):
    for kind in ("sd-1", "sd-1-inpainting"):
        latents = inpaint(model(kind), strength=0)
        assert len(latents) == 1 and np.array_equal(next(latents), latents.inputs[0])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("mask.png", TypeError, r"got text, 'mask.png': read a file first, np.*convert\(.L.\)"),
        (Image.new("L", (48, 32)), TypeError, r"a picture of Pillow, .*mask.convert\(.L.\)"),
        ([[1.0], [1.0, 2.0]], TypeError, "which is not an array"),
        (5, ValueError, r"\[H, W\] .* got the shape \[\] for an image of \[32, 48\]"),
        (np.ones((48, 32)), ValueError, r"got the shape \[48, 32\] for an image of \[32, 48\]"),
        (np.ones((32, 48, 1)), ValueError, r"got the shape \[32, 48, 1\]: give mask\[..., 0\]"),
        (np.ones((1, 32, 48)), ValueError, r"give mask\[0\]"),
        (np.ones((32, 48, 3)), ValueError, r"one number for each pixel, .*convert\(.L.\)"),
        (np.ones((0, 48)), ValueError, "it is empty"),
        (np.full((32, 48), 255, np.uint8), ValueError, "x / 255 .* got integers, uint8"),
        (mx.full((32, 48), 255), ValueError, "got integers, int32"),
        (np.full((32, 48), 255.0), ValueError, "got values from 255 to 255"),
        (np.full((32, 48), -1.0), ValueError, "got values from -1 to -1"),
        (np.full((32, 48), 1.6), ValueError, "got values from 1.6 to 1.6"),
        (np.full((32, 48), np.nan), ValueError, "not finite"),
        (np.full((32, 48), 0.499), ValueError, "mask is empty: it is nowhere 0.5 or more"),
        (np.eye(32, 48, 1), ValueError, "mask is too thin: .* one in 8 × 8: make each part .* 8"),
    ],
)
def test_masks_are_checked_when_called(model, mask, error, message):
    with pytest.raises(error, match=message):
        inpaint(model("sd-1"), mask=mask)


def test_thin_parts_of_a_mask(recwarn):
    """Those that no latent belongs to are said, unless they are the edge of others, or specks."""
    mask = np.zeros((64, 64))
    mask[9:24, 9:24] = 1  # its first row and column of latents are not painted
    mask[50, 50] = 1
    check_mask(mask, mask.shape, FACTOR)
    assert not recwarn
    mask[44:47, 2:60] = 1
    with pytest.warns(UserWarning, match="thin or small parts of the mask have no effect"):
        check_mask(mask, mask.shape, FACTOR)


def test_gradients_go_through_the_channels(model, oracle):
    """They equal PyTorch's in float64, with guidance."""
    sd = model("sd-1-inpainting")
    draw = np.random.RandomState(1).standard_normal
    x, channels, text = draw((1, 4, 6, 4)), draw((1, 4, 6, 5)), draw((2, 77, 32))
    texts = mx.array(text.astype(np.float32))

    def total(x: mx.array, channels: mx.array) -> mx.array:
        inputs = NetworkInputs(channels=channels)
        predict = make_predict(sd.unet, texts, None, 3.0, 0.0, mx.float32, inputs)
        return predict(x, mx.array(300.0), 0).square().sum()

    ours = mx.grad(total, argnums=(0, 1))(*(mx.array(a.astype(np.float32)) for a in (x, channels)))
    theirs = [channels_first(a).requires_grad_() for a in (x, channels)]
    prediction = oracle("sd-1-inpainting").exact.unet(
        torch.cat([torch.cat(theirs, dim=1)] * 2), torch.tensor(300.0), torch.from_numpy(text)
    )
    conditional, unconditional = prediction.sample.chunk(2)
    (unconditional + 3 * (conditional - unconditional)).square().sum().backward()
    for gradient, expected in zip(ours, theirs, strict=True):
        assert relative_l2(gradient, channels_last(expected.grad)) <= 1e-4


@pytest.mark.parametrize("kind", ["sd-1", "sd-1-inpainting"])
def test_a_gpu_gives_the_same(model, kind):
    """Its network is compiled, and the mask and picture are no constants of it."""
    sd = model(kind)
    for mask in (MASK, 1 - MASK):
        expected = evaluate_steps(inpaint(sd, mask=mask, cfg_weight=3))
        with as_on(Backend.METAL), without_fusing():
            ours = evaluate_steps(inpaint(sd, mask=mask, cfg_weight=3))
        np.testing.assert_allclose(np.array(ours), np.array(expected), rtol=0, atol=2e-3)


def test_half_precision_is_close(model, checkpoint):
    half = StableDiffusion(checkpoint("sd-1-inpainting"), float16=True)
    ours = overflow.make_pictures(half, lambda: inpaint(half))
    whole = model("sd-1-inpainting")
    assert psnr(np.array(ours) * 255, pictures(whole, inpaint(whole))) >= 40


def test_a_constant_masked_picture_is_no_fault_if_the_picture_is_grey(copy, recwarn):
    """A broken encoder is found even so, unless the mask hides everything."""
    folder = copy("sd-1-inpainting")
    edit(folder / "vae/diffusion_pytorch_model.safetensors", _zero_encoder)
    sd, everything = StableDiffusion(folder), np.ones_like(MASK)
    overflow.start_checked(sd, lambda: inpaint(sd, mask=everything))
    assert not recwarn
    with (
        pytest.warns(UserWarning, match="constant: computing them again"),
        pytest.raises(ValueError, match="embeddings of text and picture are constant"),
    ):
        overflow.start_checked(sd, lambda: inpaint(sd))


def _zero_encoder(tensors: dict[str, np.ndarray]) -> None:
    """Make the output of a VAE's encoder constant."""
    for key in ("encoder.conv_out.weight", "encoder.conv_out.bias", "quant_conv.bias"):
        tensors[key][:] = 0
