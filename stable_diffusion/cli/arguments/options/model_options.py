"""The options that say which model computes, and with how much memory."""

from ....config.diffusion import PREDICTION_TYPES
from ....config.known_models import NAMES
from .. import value_types
from ..option import Option

MODEL = (
    Option(
        "--model",
        f"one of {', '.join(NAMES)}; a folder in diffusers' layout; a .safetensors file in "
        "the original one; or a Hugging Face repository, with @revision if wanted",
        parse=value_types.parse_model_name,
        default="sdxl",
        in_recipe=True,
    ),
    Option(
        "--vae",
        "a model, folder, repository or file to take the VAE from, of a repository also one file, "
        "ORGANISATION/NAME/FILE.safetensors; or taesd, a tiny VAE, which is fast and a little less "
        "accurate",
        parse=value_types.parse_model_name,
        default_text="by model",
        in_recipe=True,
    ),
    Option(
        "--unet",
        "a model, folder, repository or file to take the UNet from; of a repository also one file, "
        "ORGANISATION/NAME/FILE.safetensors",
        parse=value_types.parse_model_name,
        default_text="by model",
        in_recipe=True,
    ),
    Option(
        "--prediction-type",
        "what the UNet predicts, for a file that does not say it",
        choices=PREDICTION_TYPES,
        default_text="by model",
        in_recipe=True,
    ),
    Option(
        "--lora",
        "a LoRA or LyCORIS to add, a file, folder or Hub repository, and how much of it (1 if left "
        "out); repeat for more",
        kind="list",
        parse=value_types.parse_lora,
        default=(),
        default_text="none",
        metavar="NAME[:SCALE]",
        in_recipe=True,
    ),
)
MEMORY_AND_SPEED = (
    Option(
        "--quantize",
        "4-bit text encoders, 8-bit UNet",
        short="-q",
        kind="switch",
        default=False,
        opposite="weights as they are",
        in_recipe=True,
    ),
    Option(
        "--unet-bits",
        "bits of UNet and control networks with -q, their convolutions included",
        parse=value_types.parse_bits,
        default_text="8, without convolutions",
        metavar="{4,6,8}",
        in_recipe=True,
    ),
    Option(
        "--text-encoder-bits",
        "bits of the text encoders with -q",
        parse=value_types.parse_bits,
        default_text="4",
        metavar="{4,6,8}",
        in_recipe=True,
    ),
    Option(
        "--merge-loras",
        "add LoRAs to copies of the weights once, not in each step: faster with several, and takes "
        "as much memory as the weights; no effect with -q",
        kind="switch",
        default=False,
    ),
    Option(
        "--float16",
        "half precision, except in the VAE",
        kind="switch",
        default_text="on a GPU",
        opposite="float32",
        in_recipe=True,
    ),
    Option(
        "--vae-float16",
        "half precision in the VAE, too: saves memory, but the pictures may differ visibly; SDXL "
        "needs a VAE made for it",
        kind="switch",
        default=False,
        opposite="float32 in the VAE",
        in_recipe=True,
    ),
    Option(
        "--batch-size",
        "pictures that are denoised at once",
        parse=value_types.parse_count,
        default_text="all of a grid, else by memory",
        metavar="N",
    ),
    Option(
        "--decoding_batch_size",
        "pictures that are decoded at once",
        parse=value_types.parse_count,
        default=1,
        metavar="N",
    ),
    Option(
        "--tiled",
        "decode in strips, which takes less memory and looks the same",
        kind="switch",
        default=False,
        default_text="by size and memory",
    ),
    Option(
        "--low-memory",
        "save memory, not time",
        kind="switch",
        default_text="below 12 GB",
        opposite="save time, not memory",
    ),
    Option("--preload-models", "read all weights before any step", kind="switch", default=False),
)
