"""The names of weight files, in folders of diffusers and in those that `convert` writes."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}  # of the parts of a model
CONTROLNET = "controlnet"  # goes beside a model; in the folder of a pipeline it has this name
ALL_STEMS = {**STEMS, CONTROLNET: "diffusion_pytorch_model"}
FULL = ("{}.safetensors", "{}.safetensors.index.json")
FP16 = (
    "{}.fp16.safetensors",
    "{}.safetensors.index.fp16.json",  # diffusers and transformers
    "{}.safetensors.fp16.index.json",  # older diffusers
    "{}.fp16.safetensors.index.json",  # huggingface_hub's own `save_torch_model`
)
NATIVE = "mlx_model.safetensors"  # of a converted component: diffusers reads no file of this name
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def list_weight_files(component: str, float16: bool) -> list[str]:
    """Return the paths at which the weights of a component may be, the best one first."""
    patterns = FP16 + FULL if float16 else FULL + FP16
    names = (NATIVE, *(pattern.format(ALL_STEMS[component]) for pattern in patterns))
    return [f"{component}/{name}" for name in names]


def add_shards(path: str, listing: Iterable[str]) -> list[str]:
    """Return the path of a weight file or an index, and after an index the paths of its shards.

    The shards are found by their names in the listing, because the index is not read.
    """
    if not path.endswith(".json"):
        return [path]
    folder, is_fp16 = PurePosixPath(path).parent, "fp16" in path
    shards = (PurePosixPath(file) for file in listing if SHARD.search(file))
    return [path, *(str(f) for f in shards if f.parent == folder and ("fp16" in f.name) == is_fp16)]
