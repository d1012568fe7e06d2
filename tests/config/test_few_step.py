"""Files of few-step models are recognized by their names, and other files are not."""

import pytest

from stable_diffusion.config import few_step
from stable_diffusion.config.few_step import recognize_few_step, seems_few_step
from stable_diffusion.config.known_models import (
    FEW_STEP_MODELS,
    MODELS,
    find_few_step_model,
)

CACHED = "/cache/models--latent-consistency--lcm-lora-sdxl/snapshots/0a1b/"
HYPER_CFG = few_step.HYPER_CFG


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors", few_step.LIGHTNING[4]),
        ("SDXL-Lightning 8 steps LoRA.safetensors", few_step.LIGHTNING[8]),
        ("sdxlLightning_2stepLora.safetensors", few_step.LIGHTNING[2]),
        ("lightning_4step_lora_fp16.safetensors", few_step.LIGHTNING[4]),
        ("Hyper-SDXL-1step-lora.safetensors", few_step.HYPER[1]),
        ("Hyper-SD15-8steps-lora.safetensors", few_step.HYPER[8]),
        ("Hyper-SD15-8steps-CFG-lora.safetensors", HYPER_CFG[8]),
        ("Hyper-SDXL-12steps-CFG-lora.safetensors", HYPER_CFG[12]),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", few_step.DMD2[4]),
        ("DMD2LoRA.safetensors", few_step.DMD2[4]),
        ("LCM_LoRA_Weights_SD15.safetensors", few_step.LCM),
        ("SDXL_LCM_LoRA.safetensors", few_step.LCM),
        ("lcm_lora_10000steps.safetensors", few_step.LCM),
        ("lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", few_step.LCM),
        (f"{CACHED}pytorch_lora_weights.safetensors", few_step.LCM),
        ("TCD-SDXL-LoRA.safetensors", few_step.TCD),
        ("comfy/FlashSDXL.safetensors", few_step.FLASH),
    ],
)
def test_a_lora_is_recognized(file, settings):
    assert recognize_few_step(file, "lora") == settings


@pytest.mark.parametrize(
    "name",
    [
        "lightning_storm",
        "lightning_storm_4step",
        "lightning",
        "sdxl_lightning_3step_lora",
        "Qwen-Image-Lightning-4steps-V1.0",
        "Hyper-FLUX.1-dev-8steps-lora",
        "Hyper-SD3-4steps-CFG-lora",
        "hyperdetailed_8steps",
        "anime_style_lcm",
        "lcm",
        "AnimateLCM_sd15_t2v_lora",
        "my_style_dmd2",
        "flash_photography",
        "flash_lora",
        "sdxl_lightning_1step_x0",
        "turbo_car_xl",
        "pytorch_lora_weights",
        "",
    ],
)
def test_another_lora_is_not_recognized(name):
    assert recognize_few_step(f"{name}.safetensors", "lora") is None


@pytest.mark.parametrize("key", ["modelspec.title", "ss_output_name"])
def test_a_title_is_recognized(key):
    """It counts if the name of the file says nothing, however long it is."""
    title = {key: "Hyper-SD15-4steps-lora"}
    assert recognize_few_step("x.safetensors", "lora", title) == few_step.HYPER[4]
    assert recognize_few_step("x.safetensors", "lora", {key: "lightning " * 10**6}) is None
    lcm = recognize_few_step("lcm_lora.safetensors", "lora", title)
    assert lcm == few_step.LCM


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("sdxl_lightning_4step_unet.safetensors", few_step.LIGHTNING[4]),
        ("ByteDance/x/sdxl_lightning_1step_unet_x0.safetensors", few_step.LIGHTNING_X0),
        ("Hyper-SDXL-1step-Unet.safetensors", few_step.HYPER_UNET),
        ("dmd2_sdxl_1step_unet_fp16.safetensors", few_step.DMD2[1]),
        ("Hyper-SDXL-8steps-unet.safetensors", None),
        ("diffusion_pytorch_model.safetensors", None),
    ],
)
def test_a_unet(file, settings):
    assert recognize_few_step(file, "unet") == settings


def test_a_whole_checkpoint_only_by_its_published_name():
    """A merge may need other settings than what it is merged from."""
    assert recognize_few_step("x/sd_turbo.safetensors", "checkpoint") == few_step.SD_TURBO
    for name in ("dreamshaperXL_sdxl_lightning_4step.safetensors", "sd_turbo", "org/sd-turbo"):
        assert recognize_few_step(name, "checkpoint") is None


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("dreamshaperXL_lightningDPMSDE", True),
        ("dreamshaperXL_v21TurboDPMSDE", True),
        ("realvisxl_hyper_v2", True),
        ("hyperrealism_v3", False),
        ("juggernautXL_v9", False),
    ],
)
def test_a_merge_gets_a_hint_only(name, seems):
    assert seems_few_step(f"{name}.safetensors") == seems
    assert recognize_few_step(f"{name}.safetensors", "checkpoint") is None


def test_settings_in_words():
    assert str(few_step.LIGHTNING[4]) == "4 steps of euler, trailing, no guidance"
    assert str(few_step.HYPER[1]) == "1 step of tcd, eta 1, no guidance"
    assert str(few_step.HYPER_CFG[8]) == "8 steps of ddim, trailing, guidance 5"
    assert str(few_step.DMD2[4]) == "4 steps of lcm at 999, 749, 499, 249, no guidance"


@pytest.mark.parametrize("name", FEW_STEP_MODELS)
def test_the_table_of_models(name):
    """Every file of the table is recognized as what the table says, and has a base."""
    model = FEW_STEP_MODELS[name]
    assert model.base in MODELS
    assert name not in MODELS
    for steps in model.files:
        found = recognize_few_step(model.name_file(steps), "lora")
        assert found is not None
        assert found.steps == steps
        assert (model.base == "sdxl-base") == ("xl" in name)
    with pytest.raises(ValueError, match=f"it is made for {model.join_steps()} steps, not 16"):
        model.name_file(16)


def test_steps_in_a_name():
    lightning, lcm = FEW_STEP_MODELS["sdxl-lightning"], FEW_STEP_MODELS["lcm"]
    assert find_few_step_model("sdxl-lightning") == (lightning, None)
    assert find_few_step_model("sdxl-lightning-8") == (lightning, 8)
    assert find_few_step_model("lcm") == (lcm, None)
    assert lcm.name_file(7) == lcm.name_file()
    for name in ("sdxl-lightning-6", "lcm-4", "sdxl", "sdxl-lightning-", "sdxl-lightning-٨"):
        assert find_few_step_model(name) is None
