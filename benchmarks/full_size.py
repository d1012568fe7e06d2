"""Write a checkpoint of a real model's full size, with random weights, by diffusers.

    python benchmarks/full_size.py sd FOLDER        # SD 2.1 base: 1.3 billion parameters
    python benchmarks/full_size.py sdxl FOLDER      # SDXL-turbo: 3.5 billion
    python benchmarks/full_size.py sd15 FOLDER      # SD 1.5 with a ControlNet: 1.4 billion
    python benchmarks/full_size.py sdxl-controlnet FOLDER  # a ControlNet alone: 1.3 billion

The configs are the published ones; the weights are float16 (2.6, 7, 2.9 and 2.5 GB). Networks are
made one at a time, so the memory must hold only the largest, SDXL's UNet (5.2 GB). It needs
`tests/requirements.txt`.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from checkpoints import BETAS
from clip_vocabulary import write_tokenizer
from real_sizes import (
    AUTOENCODER,
    CLIP_BIG_G,
    CLIP_H,
    CLIP_L,
    SD_1_UNET,
    SD_2_UNET,
    SDXL_SCALING_FACTOR,
    SDXL_UNET,
    Sizes,
)

Component = torch.nn.Module | PNDMScheduler | EulerAncestralDiscreteScheduler
SIDE = 512  # pixels of the pictures


def write_sd(folder: Path) -> None:
    """Write Stable Diffusion 2.1 base."""
    write_tokenizer(folder / "tokenizer", "!")
    _write(
        folder,
        "StableDiffusionPipeline",
        {
            "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_H, projection_dim=512)),
            "unet": lambda: UNet2DConditionModel(**SD_2_UNET),
            "vae": lambda: AutoencoderKL(**AUTOENCODER, sample_size=SIDE),
            "scheduler": lambda: PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
        },
    )


def write_sdxl(folder: Path) -> None:
    """Write SDXL-turbo."""
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")
    _write(
        folder,
        "StableDiffusionXLPipeline",
        {
            "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIG_G)),
            "unet": lambda: UNet2DConditionModel(**SDXL_UNET, sample_size=SIDE // 8),
            "vae": lambda: AutoencoderKL(
                **AUTOENCODER, scaling_factor=SDXL_SCALING_FACTOR, sample_size=SIDE
            ),
            "scheduler": lambda: EulerAncestralDiscreteScheduler(
                **BETAS, timestep_spacing="trailing"
            ),
        },
    )


def write_sd_15(folder: Path) -> None:
    """Write Stable Diffusion 1.5, and in the folder `controlnet` a ControlNet for it."""
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    _write(
        folder,
        "StableDiffusionPipeline",
        {
            "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "unet": lambda: UNet2DConditionModel(**SD_1_UNET),
            "vae": lambda: AutoencoderKL(**AUTOENCODER, sample_size=SIDE),
            "scheduler": lambda: PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
        },
    )
    _write_controlnet(folder / "controlnet", SD_1_UNET)


def write_sdxl_controlnet(folder: Path) -> None:
    """Write a ControlNet for SDXL, with all of the encoder's transformers."""
    _write_controlnet(folder, SDXL_UNET)


def _write_controlnet(folder: Path, unet: Sizes) -> None:
    """Write a ControlNet for a UNet of these sizes; no layer of it is zero."""
    torch.set_default_dtype(torch.float16)
    torch.manual_seed(1)
    options = inspect.signature(ControlNetModel).parameters
    network = ControlNetModel(**{key: unet[key] for key in unet if key in options})
    for name, parameter in network.named_parameters():
        if name.startswith("controlnet_") and parameter.ndim > 1:
            parameter.data = torch.randn_like(parameter) * parameter[0].numel() ** -0.5
    network.save_pretrained(folder)


def _write(folder: Path, pipeline: str, components: dict[str, Callable[[], Component]]) -> None:
    """Write the components, each made by its function, and the index of the pipeline."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    kinds: dict[str, type] = {}
    for name, make in components.items():
        component = make()
        component.save_pretrained(folder / name)
        kinds[name] = type(component)
        if isinstance(component, torch.nn.Module):
            n_parameters = sum(p.numel() for p in component.parameters())
            print(f"{name}: {n_parameters / 1e6:,.0f} million parameters", flush=True)
        del component
    # As diffusers' pipelines write it, so that they can read it.
    index: dict[str, object] = {"_class_name": pipeline}
    tokenizers = {path.name: CLIPTokenizer for path in folder.glob("tokenizer*")}
    for name, kind in (kinds | tokenizers).items():
        index[name] = [kind.__module__.split(".")[0], kind.__name__]
    if pipeline == "StableDiffusionXLPipeline":
        index["force_zeros_for_empty_prompt"] = True
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


WRITERS = {
    "sd": write_sd,
    "sdxl": write_sdxl,
    "sd15": write_sd_15,
    "sdxl-controlnet": write_sdxl_controlnet,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=WRITERS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    WRITERS[args.model](args.folder)
