"""Configs of control networks are read strictly, and told apart."""

import inspect
import json
import random

import pytest
from control_networks import ADAPTERS, make_adapter, make_controlnet, make_union
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter

from stable_diffusion.config.controlnet import (
    ControlNetConfig,
    ControlNetUnionConfig,
    T2IAdapterConfig,
    read_control_config,
)

CONTROLNET = {"_class_name": "ControlNetModel"}
UNION = {"_class_name": "ControlNetUnionModel", "addition_time_embed_dim": 8}
ADAPTER = {"_class_name": "T2IAdapter"}
XL_ADAPTER = {**ADAPTER, "adapter_type": "full_adapter_xl", "downscale_factor": 16}


def test_defaults_are_those_of_diffusers():
    for ours, theirs in (
        (ControlNetConfig(), ControlNetModel),
        (ControlNetUnionConfig(addition_time_embed_dim=8), ControlNetUnionModel),
        (T2IAdapterConfig(), T2IAdapter),
    ):
        defaults = {k: p.default for k, p in inspect.signature(theirs).parameters.items()}
        defaults |= (
            {"mid_block_type": ours.__class__.mid_block_type} if "Union" in str(ours) else {}
        )
        for key, value in vars(ours).items():
            if key != "addition_time_embed_dim":
                wanted = defaults[key]
                wanted = tuple(wanted) if isinstance(wanted, list) else wanted
                assert (value or None) == (wanted or None), key


def test_kinds_are_told_apart():
    """Also a published union, which calls itself a ControlNet."""
    for network, kind in (
        (make_controlnet("sdxl mid"), ControlNetConfig),
        (make_union(8), ControlNetUnionConfig),
        *((make_adapter(name), T2IAdapterConfig) for name in ADAPTERS),
    ):
        content = json.loads(network.to_json_string())
        assert type(read_control_config(content, "config.json")) is kind
        del content["_class_name"]
        assert type(read_control_config(content, "config.json")) is kind
    for key in ("num_control_type", "num_control_types"):
        published = {**UNION, **CONTROLNET, key: 8}
        assert read_control_config(published, "config.json").num_control_type == 8


def test_skips_and_features():
    config = ControlNetConfig()
    assert config.skip_channels == (320,) * 4 + (640,) * 3 + (1280,) * 5
    assert config.skip_levels == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert config.factor == 8
    features = T2IAdapterConfig.from_dict(XL_ADAPTER, "x").features
    assert features == ((320, 16), (640, 16), (1280, 32), (1280, 32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({**CONTROLNET, "_class_name": "UNet2DConditionModel"}, "only ControlNetModel"),
        ({**CONTROLNET, "up_block_types": ["UpBlock2D"]}, "up_block_types = .* not supported"),
        ({**CONTROLNET, "conditioning_channels": 6}, "conditioning_channels = 6 is not from 3 to"),
        ({**CONTROLNET, "class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({**CONTROLNET, "num_class_embeds": 10}, "num_class_embeds = 10"),
        ({**CONTROLNET, "encoder_hid_dim": 768}, "encoder_hid_dim = 768"),
        ({**CONTROLNET, "controlnet_conditioning_channel_order": "rbg"}, "only rgb, bgr"),
        ({**CONTROLNET, "conditioning_embedding_out_channels": []}, "is not from 1 to 8"),
        ({**CONTROLNET, "conditioning_embedding_out_channels": [16, -1]}, "is not from 1 to"),
        ({**CONTROLNET, "conditioning_embedding_out_channels": [2**40]}, "is not from 1 to"),
        ({**CONTROLNET, "block_out_channels": [320, 640]}, "down_block_types names 4 blocks"),
        ({**CONTROLNET, "in_channels": 0}, "in_channels = 0 is not from 1"),
        ({**CONTROLNET, "layers_per_block": 10**9}, "layers_per_block = "),
        ({**CONTROLNET, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type = "),
        ({**CONTROLNET, "addition_embed_type": "text_time"}, "text_time needs addition_time"),
        ({**CONTROLNET, "something_new": 1}, "something_new = 1 is not supported"),
        ({**UNION, "controlnet_conditioning_channel_order": "bgr"}, "only rgb$"),
        ({**UNION, "global_pool_conditions": True}, "global_pool_conditions = True"),
        ({**UNION, "num_control_type": 0}, "num_control_type = 0 is not from 1"),
        ({**UNION, "num_control_type": 10**12}, "num_control_type = 10{12} is not from 1"),
        ({**UNION, "num_trans_channel": 640}, "num_trans_channel = 640 is not 320"),
        ({**UNION, "num_proj_channel": 2}, "num_proj_channel = 2 is not 320"),
        ({**UNION, "num_trans_head": 7}, "num_trans_head: 7 heads do not divide 320"),
        ({**UNION, "num_trans_head": -8}, "num_trans_head: -8 heads do not divide"),
        ({**UNION, "num_trans_layer": 10**9}, "num_trans_layer = "),
        ({**UNION, "addition_time_embed_dim": None}, "a union needs addition_time_embed_dim"),
        ({**UNION, "addition_time_embed_dim": 7}, "addition_time_embed_dim = 7 cannot embed"),
        ({**ADAPTER, "adapter_type": "heavy"}, "adapter_type = 'heavy' is not supported"),
        ({**ADAPTER, "in_channels": 4}, "in_channels = 4 is not 1 or 3"),
        ({**ADAPTER, "channels": []}, "the number of channels = 0 is not from 1"),
        ({**ADAPTER, "channels": [320, 0]}, "channels = .* is not from 1"),
        ({**ADAPTER, "channels": [2], "adapter_type": "light_adapter"}, "is not from 4"),
        ({**ADAPTER, "downscale_factor": 0}, "downscale_factor = 0 is not from 1"),
        ({**ADAPTER, "downscale_factor": 64}, "the factor of the last block = 512"),
        ({**ADAPTER, "num_res_blocks": 10**9}, "num_res_blocks = "),
        ({**XL_ADAPTER, "channels": [320, 640, 1280, 640]}, "from the third on they differ"),
        ({"_class_name": "MultiAdapter"}, "_class_name = 'MultiAdapter' is not supported"),
    ],
)
def test_bad_configs_are_refused(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_control_config(content, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert "\n" not in str(caught.value)


def test_hostile_configs_are_read_or_refused():
    """Whatever a value is replaced by, the config is as it should be, or there is one line."""
    rng = random.Random(0)
    values = (0, -1, 1, 3, 2**31, 10**30, 0.5, 1e-320, "", "x", True, None, [], [0], [1, [2]], {})
    contents = [
        json.loads(network.to_json_string())
        for network in (make_controlnet("sdxl"), make_union(6), make_adapter("light"))
    ]
    refused = 0
    for _ in range(600):
        content = dict(rng.choice(contents))
        for key in rng.sample(list(content), rng.choice((1, 1, 2))):
            value = rng.choice(values)
            if isinstance(content[key], list) and rng.random() < 0.5:
                place = rng.randrange(len(content[key]))
                content[key] = [value if i == place else v for i, v in enumerate(content[key])]
            else:
                content[key] = value
        try:
            read_control_config(content, "config.json")
        except ValueError as error:
            refused += 1
            assert str(error).startswith("config.json: ") and "\n" not in str(error)
    assert 200 < refused < 600
