"""Whole pictures equal diffusers' for the same checkpoint, prompt, seed and scheduler."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kinds import KINDS
from oracle import psnr, relative_l2
from ours import pictures
from PIL import Image

from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.check_pictures import check_image
from stable_diffusion.images.arrays import to_uint8
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.prediction import rescale_guidance
from stable_diffusion.unet import UNetModel

PROMPT = "a photo of a café, at night"
SAME = 50  # dB at least between equal pictures
OTHER = 25  # dB at most between pictures of which one is made wrongly


@pytest.fixture(scope="module")
def model(checkpoint):
    """Return a function that loads our pipeline of a kind, once."""
    loaded = {}

    def load(kind: str) -> StableDiffusion:
        if kind not in loaded:
            folder = checkpoint(kind)
            loaded[kind] = pipeline_class(load_model_config(folder))(folder)
        return loaded[kind]

    return load


def generate(sd: StableDiffusion, **options) -> np.ndarray:
    """Return the pictures of the prompt, uint8 [B, H, W, 3]."""
    options = {"num_steps": 2, "seed": 7, **options}
    return pictures(sd, sd.generate_latents(PROMPT, **options))


@pytest.mark.parametrize(
    ("kind", "guidance", "is_odd"),
    [*((kind, 6.0, True) for kind in KINDS), ("sd-1", 1.0, False), ("sdxl", 1.0, False)],
)
def test_text_to_picture_equals_diffusers(model, oracle, kind, guidance, is_odd):
    """Two pictures in a batch do, with and without guidance, also at an odd size."""
    sd = model(kind)
    # diffusers wants multiples of 8 pixels, even if a latent stands for 4.
    size = None if not is_odd else (6, 10) if kind == "unusual" else (5, 9)
    ours = generate(sd, n_images=2, cfg_weight=guidance, latent_size=size)
    factor = sd.config.autoencoder.factor
    pixels = {} if size is None else {"height": size[0] * factor, "width": size[1] * factor}
    theirs = oracle(kind).pictures(
        PROMPT, seeds=[7, 8], num_inference_steps=2, guidance_scale=guidance, **pixels
    )
    assert psnr(ours, theirs) >= SAME
    assert theirs.std() >= 30  # of 255: they show something


@pytest.mark.parametrize("kind", ["sd-2", "sdxl", "sdxl-turbo"])
def test_negative_prompt_equals_diffusers(model, oracle, kind):
    ours = generate(model(kind), cfg_weight=5, negative_text="blurry!")
    theirs = oracle(kind).pictures(
        PROMPT, seeds=[7], num_inference_steps=2, guidance_scale=5, negative_prompt="blurry!"
    )
    assert psnr(ours, theirs) >= SAME


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("kind", ["sd-2-v", "sdxl-turbo", "unusual"])
def test_another_sampler_equals_diffusers(model, oracle, kind, checkpoint):
    """Pictures of other samplers do, with kernels that divide the work between all cores."""
    own = model(kind).sampler.name
    other = "euler" if own == "euler-a" else "euler-a"
    folder = checkpoint(kind)
    sd = type(model(kind))(folder, sampler=other)
    theirs = oracle(kind).pictures(
        PROMPT, seeds=[7, 8], sampler=other, num_inference_steps=2, guidance_scale=3
    )
    assert psnr(generate(sd, n_images=2, cfg_weight=3), theirs) >= SAME


# What a strength means depends on the schedule, which differs between three of the kinds.
STRENGTHS = [*((kind, 0.7) for kind in KINDS), ("sd-1", 0.4), ("sdxl-turbo", 1.0)]


@pytest.mark.parametrize(("kind", "strength"), STRENGTHS)
def test_image_to_image_equals_diffusers(model, oracle, kind, strength):
    sd = model(kind)
    image = make_gradient(64, 96)
    latents = sd.generate_latents_from_image(
        image, PROMPT, n_images=2, strength=strength, num_steps=3, cfg_weight=3, seed=7
    )
    theirs = oracle(kind).pictures_from_image(
        image,
        PROMPT,
        seeds=[7, 8],
        strength=strength,
        num_inference_steps=3,
        guidance_scale=3,
    )
    assert psnr(pictures(sd, latents), theirs) >= SAME


def make_gradient(height: int, width: int) -> np.ndarray:
    """Return a picture [H, W, 3] in [-1, 1]."""
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    return np.stack([x + 0 * y, y + 0 * x, x * y], axis=-1).astype(np.float32)


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_mistakes_show(model, oracle, kind, monkeypatch):
    """The comparisons above can fail: a wrong seed, guidance or time gives another picture.

    If the time is off by 1, as in the original example, the pictures are more similar than `OTHER`,
    and less than `SAME`.
    """
    sd = model(kind)
    theirs = oracle(kind).pictures(PROMPT, seeds=[7], num_inference_steps=2, guidance_scale=6)
    right = {"cfg_weight": 6.0}
    assert psnr(generate(sd, **right), theirs) >= SAME
    assert psnr(generate(sd, **right, seed=8), theirs) < OTHER

    embed = sd._embed_text

    def swap_embeddings(*texts):
        embeddings, pooled = embed(*texts)
        return embeddings[::-1], None if pooled is None else pooled[::-1]

    monkeypatch.setattr(sd, "_embed_text", swap_embeddings)
    assert psnr(generate(sd, **right), theirs) < OTHER
    monkeypatch.undo()

    predict = UNetModel.__call__
    for shift, at_most in ((300, OTHER), (1, SAME)):
        later = lambda unet, x, t, *rest, by=shift: predict(unet, x, t + by, *rest)  # noqa: E731
        monkeypatch.setattr(UNetModel, "__call__", later)
        assert psnr(generate(sd, **right), theirs) < at_most


def test_prompt_embeddings_equal_diffusers(model, oracle, kind):
    sd, pipeline = model(kind), oracle(kind).exact
    for prompt, negative in ((PROMPT, ""), ("", "ugly !!"), (PROMPT * 20, "")):
        embeddings, pooled = sd._embed_text(prompt, negative)
        theirs = pipeline.encode_prompt(
            prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative or None,
        )
        assert relative_l2(embeddings[:1], theirs[0].detach()) <= 2e-6
        assert_equal_or_zero(embeddings[1:], theirs[1].detach())
        if pooled is not None:
            assert relative_l2(pooled[:1], theirs[2].detach()) <= 2e-6
            assert_equal_or_zero(pooled[1:], theirs[3].detach())


def assert_equal_or_zero(ours, theirs) -> None:
    if theirs.any():
        assert relative_l2(ours, theirs) <= 2e-6
    else:
        assert not np.array(ours).any()


def test_a_picture_does_not_depend_on_its_batch(model):
    """It does not depend on its place there either, nor on other code that draws numbers."""
    sd = model("sdxl-turbo")
    three = generate(sd, n_images=3, seed=5)
    mx.random.seed(0)
    np.random.seed(0)
    assert psnr(generate(sd, seed=7), three[2:]) >= SAME


def test_the_same_seed_gives_the_same_picture(model):
    sd = model("sdxl-turbo")
    assert np.array_equal(generate(sd, seed=0), generate(sd, seed=0))
    drawn = [sd.generate_latents(PROMPT).seed for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_no_guidance_ignores_the_negative_prompt(model):
    sd = model("sd-2")
    unguided = generate(sd, cfg_weight=1, num_steps=2)
    for guidance in (0, 0.5):
        one = generate(sd, cfg_weight=guidance, num_steps=2, negative_text="blue")
        assert np.array_equal(one, unguided)


def test_image_to_image_strength_0_is_the_picture_through_the_vae(model):
    sd = model("sd-1")
    image = make_gradient(64, 64)
    latents = sd.generate_latents_from_image(image, PROMPT, n_images=2, strength=0)
    through = to_uint8(np.array(sd.autoencoder(mx.array(image)[None])) / 2 + 0.5)
    ours = pictures(sd, latents)
    assert len(ours) == 2
    assert psnr(ours[:1], through) >= SAME


@pytest.mark.parametrize(("strength", "raised"), [(0.3, 4), (1 / 49, 50)])
def test_image_to_image_takes_at_least_one_step(model, strength, raised):
    sd = model("sd-1")
    with pytest.warns(UserWarning, match=f"less than one: 1 step is run, the last of {raised}$"):
        latents = sd.generate_latents_from_image(
            make_gradient(64, 64), PROMPT, strength=strength, num_steps=2
        )
    assert len(latents) == len(list(latents)) == 1


def test_every_step_can_be_decoded(model, monkeypatch):
    """The latents have the variance that the network sees at the next step."""
    sd = model("sd-1")
    # The network predicts no noise: x_0 stays.
    monkeypatch.setattr(UNetModel, "__call__", lambda self, x, *_: mx.zeros_like(x))
    schedule = sd.sampler.schedule(3)
    latents = sd.generate_latents(PROMPT, num_steps=3, cfg_weight=1, seed=1)
    assert len(latents) == 3
    x_0 = latents.inputs[0] / schedule.steps[0].start.alpha
    for x_t, step in zip(latents, schedule.steps, strict=True):
        assert relative_l2(x_t, x_0 * step.end.alpha) < 1e-6


@pytest.mark.parametrize("kind", ["sd-2-v", "sdxl"])
def test_float16(model, checkpoint, kind):
    """Half precision makes nearly the same picture, and the VAE stays in float32."""
    full = model(kind)
    half = type(full)(checkpoint(kind), float16=True)
    assert half.unet.conv_in.weight.dtype == mx.float16
    assert half.autoencoder.decoder.conv_in.weight.dtype == mx.float32
    options = {"cfg_weight": 3, "num_steps": 2}
    assert psnr(generate(half, **options), generate(full, **options)) > 30


def test_quantize(checkpoint):
    folder = checkpoint("sd-1")
    whole, quantized = StableDiffusion(folder), StableDiffusion(folder)
    quantized.quantize()
    attention = quantized.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert attention.query_proj.bits == 8
    # 32 inputs make no group of 64: the text encoder's attention stays; layers of 64 do not.
    layer = quantized.text_encoder.layers[0]
    assert isinstance(layer.linear1, nn.Linear)
    assert layer.linear2.bits == 4
    assert 15 < psnr(generate(quantized, cfg_weight=2), generate(whole, cfg_weight=2)) < 60


def test_what_users_do_to_the_parts(checkpoint):
    """They quantize by hand, load everything, free the encoders, then the UNet, and decode."""
    sd = StableDiffusion(checkpoint("sd-1"))
    nn.quantize(sd.unet, group_size=32, bits=8)
    sd.ensure_models_are_loaded()
    latents = sd.generate_latents(PROMPT, num_steps=2, seed=3)
    mx.eval(latents.inputs)
    sd.free_text_encoders()
    for x_t in latents:
        mx.eval(x_t)
    del sd.unet
    assert sd.decode(x_t).shape == (1, 64, 64, 3)


def test_wrong_class_names_the_right_one(checkpoint):
    with pytest.raises(ValueError, match="use the class StableDiffusionXL"):
        StableDiffusion(checkpoint("sdxl"))
    with pytest.raises(ValueError, match="use the class StableDiffusion$"):
        StableDiffusionXL(checkpoint("sd-1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 0}, "n_images must be at least 1, got 0"),
        ({"num_steps": 0}, "steps must be from 1 to 1000, got 0"),
        ({"num_steps": 1001}, "got 1001"),
        ({"cfg_weight": float("nan")}, "cfg_weight must be a finite number, got nan"),
        ({"latent_size": (0, 8)}, "latent_size must be a height and a width"),
        ({"seed": -1}, "seed must be from 0"),
        ({"latent_size": (8,)}, r"latent_size must be a height and a width .* got \(8,\)"),
        ({"clip_skip": 0.5}, "clip_skip must be from 0 to .*, got 0.5"),
        ({"cfg_weight": 10**400}, "cfg_weight must be a finite number"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale must be in \[0, 1\], got 1.5"),
        ({"timesteps": [9, 9]}, "timesteps must fall from one to the next"),
        ({"timesteps": [9], "num_steps": 1}, "timesteps are the steps: leave num_steps out"),
        ({"timesteps": [9], "schedule": "karras"}, "timesteps and schedule karras"),
        ({"eta": 0.5}, "sampler euler does not take eta"),
        ({"eta": 1.5, "sampler": "ddim"}, r"eta must be in \[0, 1\], got 1.5"),
    ],
)
def test_arguments_are_checked_when_called(model, options, message):
    with pytest.raises(ValueError, match=message):
        model("sd-1").generate_latents(PROMPT, **options)


@pytest.mark.parametrize(
    ("image", "strength", "message"),
    [
        (np.zeros((64, 64, 3)), 1.1, r"strength must be in \[0, 1\], got 1.1"),
        (np.zeros((64, 64, 3)), float("nan"), "strength must be"),
        (np.zeros((60, 64, 3)), 0.5, r"multiples of 8, got \[60, 64, 3\]"),
        (np.zeros((64, 64)), 0.5, r"image must be \[H, W, 3\] .* np.stack"),
        (np.zeros((1, 64, 64, 3)), 0.5, r"got the shape \[1, 64, 64, 3\]: .* image\[0\]"),
        (np.zeros((3, 64, 64)), 0.5, r"image.transpose\(1, 2, 0\)"),
        (np.zeros((64, 64, 4)), 0.5, r"image\[..., :3\]"),
        (np.zeros((64, 64, 1)), 0.5, "np.repeat"),
        (np.zeros((0, 64, 3)), 0.5, "it is empty"),
        (np.zeros((64, 64, 3), np.uint8), 0.5, r"\[-1, 1\]: x / 127.5 - 1 .* integers, uint8"),
        (mx.zeros((64, 64, 3), mx.int32), 0.5, "got integers, int32"),
        (np.full((64, 64, 3), 255.0), 0.5, "x / 127.5 - 1 .* got values from 255 to 255"),
        (np.full((64, 64, 3), np.nan), 0.5, "got numbers that are not finite"),
    ],
)
def test_image_arguments_are_checked_when_called(model, image, strength, message):
    with pytest.raises(ValueError, match=message):
        model("sd-1").generate_latents_from_image(image, PROMPT, strength=strength)


@pytest.mark.parametrize(("kind", "guidance"), [("sd-1", 5), ("sdxl", 1), ("sdxl-turbo", 5)])
def test_several_prompts_at_once_give_the_pictures_of_each_alone(model, kind, guidance):
    """They do, also if one has no negative text, for which SDXL-turbo uses zeros."""
    sd, options = model(kind), {"num_steps": 2, "cfg_weight": guidance}
    prompts, negatives, seeds = [PROMPT, "a fire", PROMPT], ["blue", "", ""], [3, 11, 5]
    together = sd.generate_latents(prompts, 3, negative_text=negatives, seed=seeds, **options)
    together = pictures(sd, together)
    for i in range(3):
        alone = sd.generate_latents(
            prompts[i], negative_text=negatives[i], seed=seeds[i], **options
        )
        assert psnr(together[i : i + 1], pictures(sd, alone)) >= SAME
    assert psnr(together[:1], together[1:2]) < OTHER


@pytest.mark.parametrize("name", ["text", "negative_text", "seed"])
def test_as_many_prompts_and_seeds_as_pictures(model, name):
    several = {"text": [PROMPT] * 2, "negative_text": [""] * 2, "seed": [1, 2]}[name]
    with pytest.raises(ValueError, match=f"{name}: got 2 {name[-4:]}s for n_images = 3: give one"):
        model("sd-1").generate_latents(**{"text": PROMPT, "n_images": 3, name: several})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": None}, "text must be text, or a list .* got None"),
        ({"text": ["a", 3], "n_images": 2}, "text must be text, .* a list with 3, an int"),
        ({"text": np.zeros((64, 64, 3))}, "text must be text, .* the image comes first"),
        ({"negative_text": 5}, "negative_text must be text, .* got 5"),
        ({"n_images": "2"}, "n_images must be an integer, got '2', a str"),
        ({"n_images": 2.0}, "n_images must be an integer, got 2.0"),
        ({"num_steps": True}, "num_steps must be an integer, got True"),
        ({"num_steps": 1.5}, "num_steps must be an integer, got 1.5"),
        ({"cfg_weight": "7"}, "cfg_weight must be a number, got '7'"),
        ({"guidance_rescale": None}, "guidance_rescale must be a number, got None"),
        ({"timesteps": "999,9"}, "timesteps must be a list of integers, got str"),
        ({"timesteps": 9}, "timesteps must be a list of integers, got int"),
        ({"timesteps": [9, 3.0]}, "each timestep must be an integer, got 3.0"),
        ({"eta": "1", "sampler": "ddim"}, "eta must be a number, got '1'"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"seed": "7"}, "seed must be an integer, got '7'"),
        ({"seed": [True]}, "each seed must be an integer, got True"),
        ({"latent_size": 64}, "latent_size must be a height and a width .* got 64"),
        ({"latent_size": (8.0, 8)}, "each side of latent_size must be an integer, got 8.0"),
    ],
)
def test_wrong_kinds_are_named(model, options, message):
    with pytest.raises(TypeError, match=message):
        model("sd-1").generate_latents(**{"text": PROMPT, **options})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipskip", "unexpected keyword argument 'clipskip': did you mean clip_skip?"),
        ("width", "unexpected keyword argument 'width'$"),
    ],
)
def test_unknown_arguments_are_named_when_called(model, name, message):
    sd = model("sd-1")
    with pytest.raises(TypeError, match=message):
        sd.generate_latents(PROMPT, **{name: 1})
    with pytest.raises(TypeError, match=message):
        sd.generate_latents_from_image(make_gradient(64, 64), PROMPT, **{name: 1})


def test_arguments_by_position(model):
    """They have the order of the original example."""
    sd, image = model("sd-1"), make_gradient(64, 64)
    by_name = {"n_images": 1, "num_steps": 5, "cfg_weight": 3.0, "negative_text": "a", "seed": 7}
    first = sd.generate_latents(PROMPT, 1, 5, 3.0, "a", (5, 9), 7)
    same = sd.generate_latents(PROMPT, latent_size=(5, 9), **by_name)
    (*_, ours), (*_, expected) = first, same
    assert ours.shape == (1, 5, 9, 4) and mx.array_equal(ours, expected).item()
    first = sd.generate_latents_from_image(image, PROMPT, 1, 0.4, 5, 3.0, "a", 7)
    same = sd.generate_latents_from_image(image, PROMPT, strength=0.4, **by_name)
    (*_, ours), (*_, expected) = first, same
    assert len(first) == 2 and mx.array_equal(ours, expected).item()


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (PROMPT, np.zeros((64, 64, 3)), "got text, .* the image comes first, then the text"),
        (Path("house.png"), PROMPT, r"got text, 'house.png': .*Image.open\(file\)"),
        (Image.new("RGB", (64, 64)), PROMPT, "a picture of Pillow, .*image.convert"),
        (np.zeros((64, 64, 3)), Image.new("RGB", (8, 8)), "text must be .* the image comes first"),
        ([[1.0], [1.0, 2.0]], PROMPT, "which is not an array"),
        (None, PROMPT, "got None, .* not an array of real numbers"),
    ],
)
def test_errors_say_how_to_make_it_an_image(model, image, text, message):
    with pytest.raises(TypeError, match=message):
        model("sd-1").generate_latents_from_image(image, text)


def test_other_arguments_of_a_wrong_kind(model):
    sd = model("sd-1")
    for call, message in (
        (lambda: StableDiffusion(5), "model must be text or a path, got 5"),
        (lambda: StableDiffusion("tiny", vae=5), "vae must be text or a path"),
        (lambda: StableDiffusion("tiny", sampler=5), "sampler must be text or None"),
        (lambda: sd.load_lora(5), "path must be text or a path"),
        (lambda: sd.load_lora("a", "1"), "scale must be a number, got '1'"),
        (lambda: sd.load_embedding(5, "a"), "name must be text, got 5"),
        (lambda: sd.decode("a"), r"latents must be an array \[B, h, w, 4\]"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"latents must be .* got \[8, 8, 4\]"):
        sd.decode(mx.zeros((8, 8, 4)))


def test_numbers_of_numpy_and_mlx_are_accepted(model):
    """0.7 in float32 is a little less than 0.7, but seven of ten steps are run."""
    sd, image = model("sd-1"), make_gradient(64, 64)
    plain = {"n_images": 2, "num_steps": 10, "cfg_weight": 3.0, "seed": 7, "strength": 0.7}
    expected = sd.generate_latents_from_image(image, PROMPT, **plain)
    others = [
        {"n_images": np.int64(2), "num_steps": np.int32(10), "cfg_weight": np.float64(3)},
        {"seed": np.uint32(7), "strength": np.float32(0.7)},
        {"n_images": mx.array(2), "cfg_weight": mx.array(3.0), "strength": mx.array(0.7)},
        {"seed": np.array([7, 8]), "num_steps": np.array(10)},
    ]
    for other in others:
        latents = sd.generate_latents_from_image(mx.array(image), PROMPT, **{**plain, **other})
        assert len(latents) == len(expected) == 7
        assert latents.seed == 7
        assert mx.array_equal(latents.inputs[0], expected.inputs[0]).item()


def test_a_filter_may_overshoot(model):
    """Lanczos' filter does at edges, and the picture is accepted."""
    image = 1.4 * make_gradient(64, 64)
    assert len(model("sd-1").generate_latents_from_image(image, PROMPT, strength=0)) == 1


def test_pictures_may_be_views_of_arrays():
    """MLX itself takes neither negative strides nor numbers in the other byte order."""
    image = make_gradient(64, 64)
    for view in (image[::-1], image[:, ::-1], image.astype(">f4"), np.asfortranarray(image)):
        assert np.array_equal(check_image(view, factor=8), view)


def test_no_negative_text(model):
    """None stands for the empty text, for all pictures or for some."""
    sd, options = model("sd-1"), {"num_steps": 2, "cfg_weight": 3, "seed": 7, "n_images": 2}
    (*_, empty) = sd.generate_latents(PROMPT, negative_text="", **options)
    for none in (None, [None, ""], (None, None)):
        (*_, x_0) = sd.generate_latents(PROMPT, negative_text=none, **options)
        assert mx.array_equal(x_0, empty).item()


def test_latents_are_a_generator(model):
    latents = model("sd-1").generate_latents(PROMPT, num_steps=3, cfg_weight=1, seed=1)
    assert isinstance(latents, Generator) and iter(latents) is latents
    assert latents.send(None).shape == (1, 8, 8, 4)
    with closing(latents):
        next(latents)
    assert next(latents, None) is None and len(latents) == 3
    latents.restart()
    with pytest.raises(KeyError, match="why"):
        latents.throw(KeyError("why"))
    assert list(latents) == []
    picture = model("sd-1").generate_latents_from_image(make_gradient(64, 64), PROMPT, strength=0)
    picture.close()
    assert list(picture) == []


def test_guidance_is_rescaled_picture_by_picture():
    """Each gets its own contrast, independent of the others (arXiv:2305.08891, section 3.4)."""
    conditional = np.random.RandomState(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    conditional *= np.array([1, 10])[:, None, None, None].astype(np.float32)
    guided = conditional * np.array([3, 5])[:, None, None, None].astype(np.float32)
    ours = rescale_guidance(mx.array(guided), mx.array(conditional), 1.0)
    assert relative_l2(ours, conditional) < 1e-6
