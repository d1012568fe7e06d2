"""Few-step models draw what diffusers draws with the same files, scheduler and timesteps."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from oracle import Oracle, psnr
from ours import pictures
from PIL import Image
from safetensors.torch import save, save_file
from unet_kinds import make_unet

import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.config import few_step
from stable_diffusion.config.known_models import FEW_STEP_MODELS, MODELS
from stable_diffusion.config.model import PipelineConfig
from stable_diffusion.model_io.convert import convert_model
from stable_diffusion.model_io.loaders import load_unet, open_model
from stable_diffusion.sampler.choose import choose_sampler
from stable_diffusion.sampler.sampler import Sampler

PROMPT = "a red fox"
SAME = 45  # dB at least between equal pictures
BASE = MODELS["sdxl-base"].repo
TRAILING = {"timestep_spacing": "trailing"}
X0 = {**TRAILING, "prediction_type": "sample"}

LoRA = dict[str, torch.Tensor]


def make_lora(pipeline: diffusers.DiffusionPipeline) -> LoRA:
    """Return a LoRA of the UNet's attention with kohya's names; it changes the pipeline, too."""
    generator = torch.Generator().manual_seed(5)
    lora = {}
    for name, layer in pipeline.unet.named_modules():
        if name.endswith((".to_q", ".to_v")):
            down = torch.randn(2, layer.in_features, generator=generator) / 4
            up = torch.randn(layer.out_features, 2, generator=generator) / 4
            key = f"lora_unet_{name.replace('.', '_')}"
            lora |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            layer.weight.data += up @ down
    return lora


@pytest.fixture(scope="module")
def changed(oracle) -> Callable[[str], tuple[Oracle, LoRA]]:
    """Return a function that returns a kind of model with a LoRA in diffusers, and the LoRA."""

    @cache
    def change(kind: str) -> tuple[Oracle, LoRA]:
        copy = Oracle(oracle(kind).folder)
        copy.__dict__["single"] = oracle(kind).make_copy()
        return copy, make_lora(copy.single)

    return change


def make_expected(oracle: Oracle, kind: type, options: dict, **call: object) -> np.ndarray:
    """Return diffusers' picture with a scheduler made of the model's own, without guidance."""
    options = {"clip_sample": False, **options} if kind is diffusers.DDIMScheduler else options
    config = kind.load_config(oracle.folder, subfolder="scheduler")
    scheduler = kind.from_config(config, **options)
    oracle.scheduler = lambda *_: scheduler
    return oracle.pictures(PROMPT, seeds=[7], **{"guidance_scale": 0.0, **call})


def make_ours(sd: StableDiffusion, **options: object) -> np.ndarray:
    return pictures(sd, sd.generate_latents(PROMPT, seed=7, **options))


@pytest.fixture(scope="module")
def models(checkpoint) -> Callable[[str], StableDiffusion]:
    classes = {"sd-1": StableDiffusion, "sdxl": StableDiffusionXL}
    return cache(lambda kind: classes[kind](checkpoint(kind)))


@pytest.mark.parametrize(
    ("kind", "name", "scheduler", "options", "call"),
    [
        ("sdxl", "sdxl_lightning_4step_lora", "EulerDiscrete", TRAILING, {}),
        ("sdxl", "Hyper-SDXL-2steps-lora", "DDIM", TRAILING, {"num_inference_steps": 2}),
        ("sdxl", "dmd2_sdxl_4step_lora", "LCM", {}, {"timesteps": [999, 749, 499, 249]}),
        ("sd-1", "LCM_LoRA_Weights_SD15", "LCM", {}, {}),
        ("sd-1", "Hyper-SD15-1step-lora", "TCD", {}, {"num_inference_steps": 1, "eta": 1.0}),
        ("sdxl", "TCD-SDXL-LoRA", "TCD", {}, {"eta": 0.3}),
    ],
)
def test_a_recognized_lora(models, changed, tmp_path, kind, name, scheduler, options, call):
    """Its settings are the defaults, and are gone after it is removed."""
    reference, lora = changed(kind)
    save_file(lora, tmp_path / f"{name}.safetensors")
    sd = models(kind)
    before = sd.config, sd.diffusion_config, sd.sampler
    sd.load_lora(tmp_path / f"{name}.safetensors")
    if "timesteps" not in call:
        call = {"num_inference_steps": 4, **call}
    expected = make_expected(
        reference, getattr(diffusers, f"{scheduler}Scheduler"), options, **call
    )
    assert psnr(make_ours(sd), expected) >= SAME
    sd.unload_lora()
    assert (sd.config, sd.diffusion_config, sd.sampler) == before


@pytest.mark.parametrize(
    ("name", "scheduler", "options", "call"),
    [
        ("sdxl_lightning_1step_unet_x0", "EulerDiscrete", X0, {"num_inference_steps": 1}),
        ("Hyper-SDXL-1step-Unet", "LCM", {}, {"timesteps": [800]}),
    ],
)
def test_a_recognized_unet(checkpoint, changed, tmp_path, name, scheduler, options, call):
    """Its settings are the defaults, and stay if a LoRA is removed."""
    reference, _ = changed("sdxl-published")
    file = tmp_path / f"{name}.safetensors"
    save_file(reference.single.unet.state_dict(), file)
    sd = StableDiffusionXL(checkpoint("sdxl-published"), unet=file)
    kind = getattr(diffusers, f"{scheduler}Scheduler")
    assert psnr(make_ours(sd), make_expected(reference, kind, options, **call)) >= SAME
    before = sd.config
    assert before.few_step is not None
    sd.unload_lora()
    assert sd.config == before
    given = open_model(checkpoint("sdxl-published"), unet=file, prediction_type="epsilon")
    assert given.config.diffusion.prediction_type == "epsilon"


def test_a_unet_that_embeds_the_guidance(checkpoint, tmp_path):
    """It is LCM's, whatever it is called."""
    tensors = make_unet("lcm").state_dict()
    save_file(tensors, tmp_path / "x.safetensors")
    config = open_model(checkpoint("sd-1-published"), unet=tmp_path / "x.safetensors").config
    assert config.few_step == few_step.LCM_UNET
    assert choose_sampler(config).name == "lcm"
    PipelineConfig.from_dict({"_class_name": "LatentConsistencyModelPipeline"}, "a whole model")


def test_what_is_given_wins(models, changed, checkpoint, tmp_path):
    """Each setting for itself: of the constructor, of a call, and of the attribute."""
    reference, lora = changed("sdxl")
    file = tmp_path / "dmd2_sdxl_4step_lora.safetensors"
    save_file(lora, file)
    sd = models("sdxl")
    sd.load_lora(file)
    expected = make_expected(reference, diffusers.LCMScheduler, {}, num_inference_steps=2)
    assert psnr(make_ours(sd, num_steps=2), expected) >= SAME
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    expected = make_expected(reference, diffusers.EulerDiscreteScheduler, TRAILING, **options)
    ours = make_ours(sd, sampler="euler", schedule="trailing", num_steps=2, cfg_weight=3.0)
    assert psnr(ours, expected) >= SAME
    sd.unload_lora()
    plain, sd.sampler = sd.sampler, Sampler.for_model(sd.diffusion_config, "ddim")
    own = sd.sampler
    sd.load_lora(file)
    assert sd.sampler is own
    sd.unload_lora()
    sd.sampler = plain
    scheduled = StableDiffusionXL(checkpoint("sdxl"), schedule="karras")
    scheduled.load_lora(file)
    assert (scheduled.sampler.name, scheduled.sampler.schedule_name) == ("euler", "karras")
    chosen = StableDiffusionXL(checkpoint("sdxl"), sampler="ddim")
    chosen.load_lora(file)
    assert (chosen.sampler.name, chosen.config.defaults.steps) == ("ddim", 4)


def test_a_lora_that_is_not_used_sets_nothing(models, changed, tmp_path):
    save_file(changed("sdxl")[1], tmp_path / "sdxl_lightning_4step_lora.safetensors")
    sd = models("sdxl")
    before = sd.config
    for scale in (0.0, -1.0):
        sd.load_lora(tmp_path / "sdxl_lightning_4step_lora.safetensors", scale)
        assert sd.config is before
    sd.unload_lora()


def add_models(hub, checkpoint, lora: LoRA, *names: str) -> None:
    """Add the base of SDXL to a Hub, and the LoRA under the names of few-step models."""
    hub.add(BASE, checkpoint("sdxl"))
    for name in names:
        model = FEW_STEP_MODELS[name]
        hub.add(model.repo, dict.fromkeys(model.files.values(), save(lora)))


def test_a_known_model(hub, checkpoint, changed):
    """The file for the steps is downloaded, no other; and only a pipeline takes the name."""
    reference, lora = changed("sdxl")
    add_models(hub, checkpoint, lora, "sdxl-lightning")
    sd = StableDiffusionXL("sdxl-lightning-2")
    options = {"num_inference_steps": 2, "height": 64, "width": 64}
    expected = make_expected(reference, diffusers.EulerDiscreteScheduler, TRAILING, **options)
    assert psnr(make_ours(sd, latent_size=(8, 8)), expected) >= SAME
    assert sd.config.few_step == few_step.LIGHTNING[2]
    assert sd.config.defaults.size == (1024, 1024)
    assert [file for file in hub.fetched() if "lora" in file] == [
        "sdxl_lightning_2step_lora.safetensors"
    ]
    for load in (load_unet, lambda name: convert_model(name, Path("x"))):
        with pytest.raises(
            ValueError, match="sdxl-lightning is sdxl-base with a LoRA, .* give sdxl-base"
        ):
            load("sdxl-lightning")
    with pytest.raises(OSError, match="lcm-sdxl-4 is neither .*: did you mean lcm-sdxl"):
        StableDiffusion("lcm-sdxl-4")


def read_recipe(file: Path) -> dict:
    return json.loads(Image.open(file).text["stable-diffusion-mlx"])


def test_a_known_model_from_the_command_line(hub, checkpoint, changed, tmp_path, capsys):
    """--steps chooses the file; the recipe has what makes the picture again."""
    add_models(hub, checkpoint, changed("sdxl")[1], "sdxl-dmd2", "sdxl-lightning")
    small = ["--width=64", "--height=64", "--seed=7", "--n_images=1", "a red fox"]
    output = f"--output={tmp_path}/{{model}}.png"
    assert txt2image.main(["--model=sdxl-dmd2", output, *small]) == 0
    said = capsys.readouterr().out
    file = "dmd2_sdxl_4step_lora_fp16.safetensors"
    settings = "4 steps of lcm at 999, 749, 499, 249, no guidance"
    assert f"\n{file}: {settings}, unless you say otherwise\n" in said
    for repo, licence in (("tianweiy/DMD2", "openrail++"), (BASE, MODELS["sdxl-base"].licence)):
        assert re.search(f"Downloading {repo}, .* licence: {re.escape(licence)}\n", said)
    first = tmp_path / "sdxl-dmd2.png"
    recipe = read_recipe(first)
    assert (recipe["model"], recipe["lora"]) == (BASE, [f"tianweiy/DMD2/{file}:1.0"])
    assert recipe["timesteps"] == [999, 749, 499, 249]
    again = tmp_path / "again.png"
    assert txt2image.main(["--from-image", str(first), f"--output={again}"]) == 0
    assert read_recipe(again) == recipe
    assert np.array_equal(np.array(Image.open(again)), np.array(Image.open(first)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=sdxl-lightning", "--steps=6"], "it is made for 2, 4 or 8 steps, not 6"),
        (["--model=sdxl-lightning-8", "--steps=4"], "sdxl-lightning-8 is made for 8 steps, not 4"),
        (["--model=lcm", "--steps=9"], "it is made for 1 to 8 steps, not 9"),
        (["--model=sdxl-dmd2", "--timesteps=999,499"], "it is made for 4 steps, not 2"),
    ],
)
def test_steps_without_a_file(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        txt2image.main([*arguments, "a red fox"])
    assert (stopped.value.code, message in capsys.readouterr().err) == (2, True)


def test_lines_with_other_steps(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "steps": 2}\n{"prompt": "b"}\n')
    with pytest.raises(SystemExit):
        txt2image.main(["--model=sdxl-lightning", f"--prompts-file={file}"])
    assert "make the pictures of 2 and 4 steps in runs of their own" in capsys.readouterr().err


def test_sd_turbo(hub, copy, oracle):
    """It is a whole model, of Euler's method with trailing timesteps."""
    folder = copy("sd-1")
    config = diffusers.EulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
    diffusers.EulerDiscreteScheduler.from_config(config, **TRAILING).save_pretrained(
        folder / "scheduler"
    )
    hub.add("stabilityai/sd-turbo", folder)
    sd = StableDiffusion("sd-turbo")
    reference = Oracle(folder)
    reference.__dict__["single"] = oracle("sd-1").make_copy()
    options = {"num_inference_steps": 2, "height": 64, "width": 64}
    expected = make_expected(reference, diffusers.EulerDiscreteScheduler, TRAILING, **options)
    assert psnr(make_ours(sd, latent_size=(8, 8)), expected) >= SAME
    assert sd.config.defaults.size == (512, 512)
