"""Pictures that are edited as a text says equal those of diffusers' InstructPix2Pix."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch
from gpu import as_on, without_fusing
from kinds import EDITING
from oracle import channels_first, channels_last, psnr, relative_l2
from ours import pictures

from stable_diffusion import StableDiffusion
from stable_diffusion.config.autoencoder_tiny import AutoencoderTinyConfig
from stable_diffusion.device.backend import Backend
from stable_diffusion.editing import start_editing
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.prediction import NetworkInputs, make_predict

PROMPT, SEED = "make it snowy", 7
SAME, OTHER = 50, 25  # dB
Y, X = np.mgrid[-1:1:32j, -1:1:64j]
IMAGE = np.stack([X, Y, X * Y], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def model(checkpoint):
    """Return a function that loads a kind of model for editing, once."""
    loaded = {}

    def load(kind: str) -> StableDiffusion:
        if kind not in loaded:
            folder = checkpoint(f"{kind}{EDITING}")
            loaded[kind] = pipeline_class(load_model_config(folder))(folder)
        return loaded[kind]

    return load


def edit(sd: StableDiffusion, **options) -> np.ndarray:
    """Return edited pictures, uint8 [B, H, W, 3]."""
    options = {"num_steps": 2, "seed": SEED, "sampler": "euler", **options}
    return pictures(sd, sd.generate_latents_from_image(IMAGE, PROMPT, **options))


@pytest.mark.parametrize(
    ("kind", "guidance", "image_guidance", "more"),
    [
        ("sd-1", 7.5, 1.5, {"n_images": 2, "negative_text": "blue"}),
        ("sd-1", 5.0, 0.5, {}),  # no guidance at all
        ("sdxl", 5.0, 1.0, {"n_images": 2, "sampler": "euler-a", "guidance_rescale": 0.7}),
        ("sdxl", 1.0, 1.5, {}),
    ],
)
def test_edited_pictures_equal_diffusers(model, oracle, kind, guidance, image_guidance, more):
    """They do with two guidances, and without if one of them switches both off."""
    sd, seeds = model(kind), [SEED, SEED + 1][: more.get("n_images", 1)]
    ours = edit(sd, cfg_weight=guidance, image_cfg_weight=image_guidance, **more)
    rescale = {"guidance_rescale": more["guidance_rescale"]} if "guidance_rescale" in more else {}
    theirs = oracle(f"{kind}{EDITING}").pictures_edited(
        IMAGE,
        PROMPT,
        seeds=seeds,
        sampler=more.get("sampler", "euler"),
        num_inference_steps=2,
        guidance_scale=guidance,
        image_guidance_scale=image_guidance,
        negative_prompt=more.get("negative_text"),
        **rescale,
    )
    assert psnr(ours, theirs) >= SAME
    assert theirs.std() >= 30  # of 255: they show something


def test_what_matters(model):
    """The picture and each guidance do, and 1.5 is the default."""
    sd = model("sd-1")
    usual = edit(sd, cfg_weight=7.5)
    assert np.array_equal(edit(sd, cfg_weight=7.5, image_cfg_weight=1.5), usual)
    assert psnr(edit(sd, cfg_weight=7.5, image_cfg_weight=3), usual) < SAME
    assert psnr(edit(sd, cfg_weight=3), usual) < SAME
    options = {"num_steps": 2, "seed": SEED, "sampler": "euler", "cfg_weight": 7.5}
    other = pictures(sd, sd.generate_latents_from_image(-IMAGE, PROMPT, **options))
    assert psnr(other, usual) < SAME


def test_a_picture_does_not_depend_on_its_batch(model):
    sd, options = model("sd-1"), {"num_steps": 2, "cfg_weight": 5.0, "sampler": "euler-a"}
    prompts = [PROMPT, "a fire"]
    both = pictures(sd, sd.generate_latents_from_image(IMAGE, prompts, 2, seed=[3, 5], **options))
    alone = pictures(sd, sd.generate_latents_from_image(IMAGE, "a fire", seed=5, **options))
    assert psnr(both[1:], alone) >= SAME


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_on_a_gpu(checkpoint, model, kind):
    """The compiled function gives the same, also when it is called again with other numbers."""
    with as_on(Backend.METAL), without_fusing():
        sd = type(model(kind))(checkpoint(f"{kind}{EDITING}"))
        ours = [edit(sd, num_steps=1, cfg_weight=g, image_cfg_weight=g / 3) for g in (6, 3)]
    for guidance, picture in zip((6, 3), ours, strict=True):
        options = {"cfg_weight": guidance, "image_cfg_weight": guidance / 3}
        assert psnr(picture, edit(model(kind), num_steps=1, **options)) >= SAME


def test_guidance_is_the_formula(model):
    """Formula 3 of arXiv:2211.09800, from three predictions alone, in float64."""
    unet = model("sd-1").unet
    x, image = (mx.array(np.random.RandomState(i).randn(2, 4, 6, 4), mx.float32) for i in (0, 1))
    image = image[:1]
    text = mx.array(np.random.RandomState(2).randn(4, 7, 32), mx.float32)
    time = mx.array([300])

    def predict_alone(embeddings, channels):
        rows = mx.concatenate([x, mx.broadcast_to(channels, x.shape)], axis=-1)
        return np.array(unet(rows, time, embeddings), np.float64)

    by_both = predict_alone(text[:2], image)
    by_image = predict_alone(text[2:], image)
    by_none = predict_alone(text[2:], mx.zeros_like(image))
    expected = by_none + 7 * (by_both - by_image) + 2 * (by_image - by_none)
    inputs = NetworkInputs(image=image, image_cfg=2.0)
    predict = make_predict(unet, text, None, 7.0, 0.0, mx.float32, inputs)
    assert relative_l2(predict(x, time, 0), expected) <= 6e-6


def test_gradients_go_through_the_picture(model, oracle):
    """With both guidances they equal PyTorch's in float64."""
    draw = np.random.RandomState(1).standard_normal
    x, image, text = draw((1, 4, 6, 4)), draw((1, 4, 6, 4)), draw((2, 7, 32))
    texts, unet = mx.array(text.astype(np.float32)), model("sd-1").unet

    def total(x: mx.array, image: mx.array) -> mx.array:
        inputs = NetworkInputs(image=image, image_cfg=2.0)
        predict = make_predict(unet, texts, None, 4.0, 0.0, mx.float32, inputs)
        return predict(x, mx.array(300.0), 0).square().sum()

    ours = mx.grad(total, argnums=(0, 1))(*(mx.array(a.astype(np.float32)) for a in (x, image)))
    theirs = [channels_first(a).requires_grad_() for a in (x, image)]
    x_rows, image_rows = theirs[0], torch.cat([theirs[1], theirs[1], 0 * theirs[1]])
    rows = torch.cat([x_rows.expand(3, -1, -1, -1), image_rows], dim=1)
    texts_of_rows = torch.from_numpy(text[[0, 1, 1]])
    network = oracle(f"sd-1{EDITING}").exact.unet
    by_both, by_image, by_none = network(rows, torch.tensor(300.0), texts_of_rows).sample
    edited = by_none + 4 * (by_both - by_image) + 2 * (by_image - by_none)
    edited.square().sum().backward()
    for gradient, expected in zip(ours, theirs, strict=True):
        assert relative_l2(gradient, channels_last(expected.grad)) <= 1e-4


def test_the_picture_is_not_scaled(model):
    """The UNet takes the latents as the VAE encodes them; a tiny VAE encodes them scaled."""
    sd = model("sdxl")
    image = mx.array(IMAGE)
    schedule = sd.sampler.schedule(2)
    noise = mx.zeros((1, 4, 8, 4))
    start = start_editing(sd.autoencoder, image, noise, schedule, sd.config.latent_scale, 1.5)
    unscaled = sd.autoencoder.encode(image[None])[0] / 0.13025
    assert relative_l2(start.network_inputs.image, unscaled) <= 1e-6
    tiny = replace(sd.config, autoencoder=AutoencoderTinyConfig())
    assert tiny.latent_scale == 0.13025
    tiny = replace(model("sd-1").config, autoencoder=AutoencoderTinyConfig())
    assert tiny.latent_scale == 0.18215


def test_no_guidance_takes_one_prediction(model):
    sd = model("sd-1")
    usual = start_editing(
        sd.autoencoder, mx.array(IMAGE), mx.zeros((1, 4, 8, 4)), sd.sampler.schedule(2), 1.0, None
    )
    assert usual.network_inputs.image is None
    text = mx.zeros((1, 7, 32))
    predict = make_predict(sd.unet, text, None, 1.0, 0.0, mx.float32, usual.network_inputs)
    assert predict(mx.zeros((1, 4, 8, 4)), mx.array([1]), 0).shape == (1, 4, 8, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": 0.8}, ValueError, "begins with noise alone: leave strength out; image_cfg_"),
        ({"mask": np.ones((32, 64))}, ValueError, "changes the whole picture: leave the mask out"),
        ({"image_cfg_weight": "2"}, TypeError, "image_cfg_weight must be a number, got '2'"),
        ({"image_cfg_weight": np.nan}, ValueError, "image_cfg_weight must be a finite number"),
    ],
)
def test_wrong_arguments(model, options, error, message):
    with pytest.raises(error, match=message):
        model("sd-1").generate_latents_from_image(IMAGE, PROMPT, **options)


def test_other_models_take_no_image_guidance():
    sd = StableDiffusion("tiny")
    with pytest.raises(ValueError, match="image_cfg_weight is for models that edit a picture"):
        sd.generate_latents_from_image(IMAGE, PROMPT, image_cfg_weight=1.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_cfg_weight'"):
        sd.generate_latents(PROMPT, image_cfg_weight=1.5)
