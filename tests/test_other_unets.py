"""Models with another UNet draw diffusers' pictures, wherever the UNet comes from."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import original_layout
import pytest
from oracle import Oracle, psnr
from ours import pictures, same
from safetensors.numpy import load_file
from unet_kinds import make_unet

from stable_diffusion import StableDiffusion
from stable_diffusion.cli.job import warn_of_no_guidance
from stable_diffusion.model_io.loaders import load_unet, open_model
from stable_diffusion.pipeline import pipeline_class

PROMPT = "a photo of a café, at night!"
SAME = 45  # dB
# By UNet: the model that it is put into, the sampler, and the guidance.
PICTURES = {
    "bk-sdm-tiny": ("sd-1-published", "euler", 5.0),
    "ssd-1b": ("sdxl-published", "euler", 5.0),
    "lcm": ("sd-1-published", "lcm", 8.5),
    "lcm-ssd-1b": ("sdxl-published", "lcm", 8.0),
}


def write_unet(name: str, file: Path, **options) -> Path:
    """Write a UNet alone, in diffusers' names."""
    tensors = {key: value.numpy() for key, value in make_unet(name).state_dict().items()}
    return original_layout.save(tensors, file, **options)


def draw(sd: StableDiffusion, **options) -> np.ndarray:
    return pictures(sd, sd.generate_latents(PROMPT, num_steps=3, seed=7, **options))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_equal_diffusers(name, checkpoint, tmp_path):
    kind, sampler, guidance = PICTURES[name]
    file = write_unet(name, tmp_path / "unet.safetensors")
    model = open_model(checkpoint(kind), unet=file)
    sd = pipeline_class(model.config)(model, sampler=sampler)
    oracle = Oracle(checkpoint(kind))
    oracle.single = oracle._read(unet=make_unet(name), **oracle._read_tokenizers())
    theirs = oracle.pictures(
        PROMPT, seeds=[7], sampler=sampler, num_inference_steps=3, guidance_scale=guidance
    )
    ours = draw(sd, cfg_weight=guidance)
    assert psnr(ours, theirs) >= SAME
    assert theirs.std() >= 30  # of 255: they show something
    if sd.config.unet.embeds_guidance:
        assert np.array_equal(draw(sd, cfg_weight=guidance, negative_text="no night"), ours)
        assert psnr(draw(sd, cfg_weight=2.0), ours) < SAME  # the guidance is not ignored


def test_defaults_of_embedded_guidance(checkpoint, tmp_path):
    file = write_unet("lcm", tmp_path / "unet.safetensors")
    config = open_model(checkpoint("sd-1-published"), unet=file).config
    assert (config.defaults.steps, config.defaults.guidance) == (4, 8.5)
    assert not config.needs_second_text(8.5)
    job = type("Job", (), {"cfg": 8.5, "negative_prompt": "dog", "guidance_rescale": 0.0})
    with pytest.warns(UserWarning, match="--negative_prompt has no effect with this model"):
        warn_of_no_guidance([job], config)


def test_sources_of_a_unet(checkpoint, tmp_path):
    """A UNet is taken from a file, from a model as a folder or a file, and from its own folder."""
    folder, other = checkpoint("sd-1-published"), checkpoint("sd-1-published")
    expected = load_unet(other)
    bare = tmp_path / "bare"
    bare.symlink_to(other / "unet")
    weights = load_file(other / original_layout.WEIGHT_FILE)
    half = {f"diffusion_model.{k}": v for k, v in original_layout.original_unet(weights).items()}
    half = original_layout.save(half, tmp_path / "half.safetensors", dtype=np.float16)
    single = original_layout.write_single_file(other, tmp_path / "single.safetensors")
    for source in (other, bare, single, open_model(other)):
        model = open_model(folder, unet=source)
        assert model.config.unet.heads == (8, 8, 8, 8)
        assert same(load_unet(model), expected)
    narrow = load_unet(open_model(folder, unet=half)).conv_in.weight
    wanted = expected.conv_in.weight.astype(mx.float16).astype(mx.float32)
    assert narrow.dtype == mx.float32
    assert mx.array_equal(narrow, wanted)


@pytest.mark.parametrize(
    ("metadata", "marker", "expected"),
    [
        ({}, False, "epsilon"),  # as the model's scheduler says
        ({"modelspec.prediction_type": "v"}, False, "v_prediction"),
        ({}, True, "v_prediction"),
    ],
)
def test_prediction_type(checkpoint, tmp_path, metadata, marker, expected):
    tensors = {key: value.numpy() for key, value in make_unet("lcm").state_dict().items()}
    if marker:
        tensors["v_pred"] = np.zeros(0, np.float32)
    file = original_layout.save(tensors, tmp_path / "unet.safetensors", metadata)
    model = open_model(checkpoint("sd-1-published"), unet=file)
    assert model.config.diffusion.prediction_type == expected
    load_unet(model)  # the marker is not a weight
    model = open_model(checkpoint("sd-1-published"), unet=file, prediction_type="sample")
    assert model.config.diffusion.prediction_type == "sample"


def test_unet_of_another_family(checkpoint, tmp_path):
    file = write_unet("ssd-1b", tmp_path / "xl.safetensors")
    message = (
        "xl.safetensors is the UNet of SDXL with text embeddings of 192, and .* is Stable "
        "Diffusion with text embeddings of 128: they do not fit together"
    )
    with pytest.raises(ValueError, match=message):
        open_model(checkpoint("sd-1-published"), unet=file)
    with pytest.raises(ValueError, match="UNet of SDXL .* they do not fit together"):
        load_unet(open_model(checkpoint("sd-1-published"), unet=checkpoint("sdxl-published")))


def test_files_that_are_no_unet(checkpoint, tmp_path):
    vae = original_layout.save(
        original_layout.vae_tensors(checkpoint("sd-1-published")), tmp_path / "vae.safetensors"
    )
    lora = original_layout.save({"lora_unet_x.lora_up.weight": np.ones(1)}, tmp_path / "l.st")
    nothing = original_layout.save({"x": np.ones(1)}, tmp_path / "x.safetensors")
    for file, message in (
        (vae, "cannot replace a UNet: it is a VAE"),
        (lora, "this is a LoRA, not a model"),
        (nothing, "cannot replace a UNet: it holds no UNet"),
        (tmp_path / "missing.safetensors", "there is no file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            open_model(checkpoint("sd-1-published"), unet=file)


def test_refiner_is_named(checkpoint, tmp_path):
    """Its time ids are five, so its embedding fits no six."""
    tensors = {key: value.numpy() for key, value in make_unet("koala-700m").state_dict().items()}
    wide = {
        key: np.zeros((len(value), 1280), np.float32)
        for key, value in tensors.items()
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    file = original_layout.save(tensors | wide, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="this is the SDXL refiner"):
        open_model(checkpoint("sdxl-published"), unet=file)
