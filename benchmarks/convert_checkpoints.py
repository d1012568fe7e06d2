"""Write the benchmark's checkpoints in the formats of OpenVINO and stable-diffusion.cpp.

    python benchmarks/convert_checkpoints.py openvino FOLDER unet
    python benchmarks/convert_checkpoints.py sd.cpp FOLDER

FOLDER is a checkpoint of diffusers; the files are written beside it, into the folder `converted`.
"""

import argparse
import sys
from pathlib import Path

EXAMPLE = 16  # height and width of the latents for tracing; other sizes may be computed
PART_FOLDERS = {"text": "text_encoder", "unet": "unet", "decode": "vae", "encode": "vae"}


def find_converted(folder: Path, part: str) -> Path:
    """Return the file of a network for OpenVINO."""
    return folder.parent / "converted" / folder.name / f"{part}.xml"


def find_single_file(folder: Path) -> Path:
    """Return the file of a whole model for stable-diffusion.cpp."""
    return folder.parent / "converted" / f"{folder.name}.safetensors"


def convert_for_openvino(folder: Path, part: str, file: Path) -> None:
    """Write a network of diffusers for OpenVINO, in float32.

    Weights of float16 would be exact, but the same option rounds the frequencies of the UNet's time
    embedding, too: in a tiny UNet this changed the result by 1e-2.
    """
    import openvino
    import torch

    network, example = make_network(folder, part)
    with torch.no_grad():
        model = openvino.convert_model(network, example_input=example)
    openvino.save_model(model, file, compress_to_fp16=False)


def make_network(folder: Path, part: str):
    """Return a network of diffusers in float32 that returns one tensor, and inputs for tracing."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    class Call(torch.nn.Module):
        """A method of a network as a network."""

        def __init__(self, network: torch.nn.Module, call) -> None:
            super().__init__()
            self.network, self.call = network, call

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.call(self.network, *inputs)

    path = folder / PART_FOLDERS[part]
    match part:
        case "text":
            network = CLIPTextModel.from_pretrained(path, dtype=torch.float32)
            call, example = _encode_text, (torch.zeros(1, 77, dtype=torch.long),)
        case "unet":
            network = UNet2DConditionModel.from_pretrained(path, torch_dtype=torch.float32)
            call, example = _predict_noise, _make_unet_example(network)
        case "decode":
            network = AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32)
            call, example = _decode, (torch.zeros(1, 4, EXAMPLE, EXAMPLE),)
        case "encode":
            network = AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32)
            call, example = _encode, (torch.zeros(1, 3, 8 * EXAMPLE, 8 * EXAMPLE),)
    return Call(network.eval(), call), example


def _encode_text(encoder, ids):
    return encoder(ids).last_hidden_state


def _predict_noise(unet, x, timestep, text, pooled=None, sizes=None):
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
    return unet(x, timestep, text, added_cond_kwargs=added, return_dict=False)[0]


def _decode(vae, z):
    return vae.decode(z / vae.config.scaling_factor, return_dict=False)[0]


def _encode(vae, x):
    moments = vae.encode(x, return_dict=False)[0].parameters
    return moments.chunk(2, dim=1)[0] * vae.config.scaling_factor


def _make_unet_example(unet):
    """Return inputs in a batch of two, so that the traced network takes any batch."""
    import torch
    from tasks import pooled_width

    config = unet.config
    example = [torch.zeros(2, 4, EXAMPLE, EXAMPLE), torch.tensor(1.0)]
    example.append(torch.zeros(2, 77, config.cross_attention_dim))
    if config.addition_embed_type is not None:
        example += [torch.zeros(2, pooled_width(config)), torch.zeros(2, 6)]
    return tuple(example)


def write_single_file(folder: Path, file: Path) -> None:
    """Write the whole model as one file of float16 weights, under the original names."""
    import numpy as np

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from original_layout import original_tensors, save

    save(original_tensors(folder), file, dtype=np.float16)


def main(arguments: list[str] | None = None) -> None:
    """Write one network or file, completely or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["openvino", "sd.cpp"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", nargs="?", choices=PART_FOLDERS, default="unet")
    args = parser.parse_args(arguments)
    folder = args.folder
    if args.kind == "openvino":
        file = find_converted(folder, args.part)
        part_file = file.with_name(f"part-{file.name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        convert_for_openvino(folder, args.part, part_file)
        # The weights first: without the other file they are not used.
        part_file.with_suffix(".bin").rename(file.with_suffix(".bin"))
    else:
        file = find_single_file(folder)
        part_file = file.with_name(f"part-{file.name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_single_file(folder, part_file)
    part_file.rename(file)


if __name__ == "__main__":
    main()
