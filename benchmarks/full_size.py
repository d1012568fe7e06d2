"""Write a checkpoint of a real model's full size, with random weights, by diffusers.

    python benchmarks/full_size.py sd FOLDER        # SD 2.1 base: 1.3 billion parameters
    python benchmarks/full_size.py sdxl FOLDER      # SDXL-turbo: 3.5 billion

The configs are the published ones; the weights are float16 (2.6 and 7 GB). Networks are made one at
a time, so the memory must hold only the largest, SDXL's UNet (5.2 GB). It needs
`tests/requirements.txt`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
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
    SD_2_UNET,
    SDXL_SCALING_FACTOR,
    SDXL_UNET,
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["sd", "sdxl"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    {"sd": write_sd, "sdxl": write_sdxl}[args.model](args.folder)
