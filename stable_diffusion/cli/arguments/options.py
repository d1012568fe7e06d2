"""The table of all options, in the groups that `--help` shows.

The parser, the help, docs/options.md, and the options of prompts files and recipes come from it.
To add an option, add a row here, and a field of the same name to `cli.settings.Settings`; or, if it
may differ from picture to picture, to `PictureOptions`. What recipes have is in `Recipe`, too.
"""

from collections.abc import Iterator

from ...config.diffusion import PREDICTION_TYPES
from ...config.known_models import MODELS
from ...images.arrays import FITS
from ...sampler.sampler import SAMPLERS, SCHEDULES
from . import list_models, value_types
from .option import BOTH, IMAGE2IMAGE, TXT2IMAGE, Option, Script

START = (
    Option(
        "image",
        "the picture to start from, in any format Pillow opens",
        is_required=True,
        scripts=IMAGE2IMAGE,
    ),
    Option(
        "--strength",
        "how far to go from the picture, 0 to 1",
        parse=value_types.parse_fraction,
        default=0.9,
        metavar="X",
        scripts=IMAGE2IMAGE,
        line_scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--fit",
        "how to bring the picture to --width and --height: crop what does not fit, pad with its "
        "border's colours, or stretch it",
        choices=FITS,
        default_text="stretch",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
)
PROMPT = (
    Option("prompt", "what to draw", line_scripts=BOTH, in_recipe=True),
    Option(
        "--prompts-file",
        "a file of prompts in place of the prompt: one per line, or JSON lines or an array with "
        "options for each; - is the standard input. Pictures that exist are not made again",
        default_text="none",
        metavar="FILE",
    ),
    Option(
        "--from-image",
        "make a picture of this program again, with the prompt and options that are in the file; "
        "options given here replace them",
        default_text="none",
        metavar="FILE",
    ),
    Option(
        "--negative_prompt",
        "what to steer away from; needs guidance",
        default="",
        default_text="none",
        metavar="TEXT",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--long-prompt",
        "read prompts of more than 77 tokens to the end",
        kind="switch",
        default=False,
        opposite="cut prompts at 77 tokens",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--prompt-weights",
        r"let (this) weigh more, [this] less, (this:1.3) as it says; \( is a bracket",
        kind="switch",
        default=False,
        opposite="read brackets as text",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--clip-skip",
        "layers to leave out at the end of the text encoders",
        parse=value_types.parse_clip_skip,
        default=0,
        metavar="N",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--embedding",
        "let NAME in prompts stand for a textual inversion, a safetensors file; repeat for more",
        kind="list",
        parse=value_types.parse_embedding,
        default=(),
        default_text="none",
        metavar="NAME=FILE",
        in_recipe=True,
    ),
)
PICTURES = (
    Option(
        "--n_images",
        "how many pictures",
        parse=value_types.parse_count,
        default_text="4; with a prompts file, 1 of each",
        metavar="N",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    *(
        Option(
            f"--{side}",
            f"{side} of a picture, a multiple of 8",
            parse=value_types.parse_side,
            default_text="by model or image",
            metavar="PIXELS",
            line_scripts=TXT2IMAGE,  # the picture to start from is read once, at one size
            in_recipe=True,
        )
        for side in ("width", "height")
    ),
    Option(
        "--seed",
        "seed of the first picture; the others have the numbers that follow",
        parse=value_types.parse_seed,
        default_text="random, and printed; with a prompts file, computed from the prompts",
        metavar="N",
        line_scripts=BOTH,
        in_recipe=True,
    ),
)
SAMPLING = (
    Option(
        "--steps",
        "steps of denoising",
        parse=value_types.parse_count,
        default_text="by model",
        metavar="N",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--cfg",
        "guidance: how closely to follow the prompt; 1 or less means none",
        parse=value_types.parse_guidance,
        default_text="by model",
        metavar="X",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--guidance-rescale",
        "how much of the contrast that guidance adds is removed, 0 to 1",
        parse=value_types.parse_fraction,
        default=0.0,
        default_text="0",
        metavar="X",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--sampler",
        "how to step from noise to picture",
        choices=tuple(SAMPLERS),
        default_text="by model",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--schedule",
        "how timesteps are spaced; karras is for euler and dpm++2m",
        choices=tuple(SCHEDULES),
        default_text="by model",
        line_scripts=BOTH,
        in_recipe=True,
    ),
)
MODEL = (
    Option(
        "--model",
        f"one of {', '.join(MODELS)}; a folder in diffusers' layout; a .safetensors file in "
        "the original one; or a Hugging Face repository, with @revision if wanted",
        parse=value_types.parse_model_name,
        default="sdxl",
        in_recipe=True,
    ),
    Option(
        "--vae",
        "a model, folder, repository or file to take the VAE from",
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
        "a LoRA to add, a safetensors file, and how much of it (1 if left out); repeat for more",
        kind="list",
        parse=value_types.parse_lora,
        default=(),
        default_text="none",
        metavar="FILE[:SCALE]",
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
OUTPUT = (
    Option(
        "--output",
        "where to write: .png, .jpg, .webp, .bmp or .tif. One name is a grid of all pictures; a "
        "folder/, or a name with {index}, {seed} or {model} in it, is a file for each",
        default_text="out.png; with prompts.txt, prompts/",
        metavar="FILE",
        line_scripts=BOTH,
    ),
    Option(
        "--grid",
        "a grid of all pictures, in addition to a file for each",
        default_text="none",
        metavar="FILE",
    ),
    Option("--force", "overwrite files of single pictures, too", kind="switch", default=False),
    Option(
        "--no-metadata",
        "do not write into the files how they were made",
        kind="switch",
        default=False,
    ),
    Option(
        "--n_rows",
        "rows of the grid",
        parse=value_types.parse_count,
        default=1,
        metavar="N",
        in_recipe=True,
    ),
)
REPORTS = (
    Option(
        "--preview",
        "every N steps write a rough preview of the pictures to NAME.preview.png beside them, "
        "until they are finished; keeps the VAE's decoder in memory",
        parse=value_types.parse_count,
        default_text="none",
        metavar="N",
    ),
    Option(
        "--preview-vae",
        "decode the previews with the whole VAE, which takes the time and memory of pictures",
        kind="switch",
        default=False,
    ),
    Option(
        "--verbose",
        "report the peak memory of each phase",
        short="-v",
        kind="switch",
        default=False,
    ),
    Option(
        "--list-models",
        "list the known models, those that are on this machine, and their sizes",
        kind="print",
        show=list_models.describe_models,
    ),
    Option(
        "--version",
        "print the versions of this program and of MLX, and what computes: cpu, metal or cuda",
        kind="print",
        show=list_models.describe_version,
    ),
    Option("--help", "show this help", short="-h", kind="help"),
)
GROUPS: dict[str, tuple[Option, ...]] = {
    "picture to start from": START,
    "prompt": PROMPT,
    "pictures": PICTURES,
    "sampling": SAMPLING,
    "model": MODEL,
    "memory and speed": MEMORY_AND_SPEED,
    "output": OUTPUT,
    "reports": REPORTS,
}


def all_options(script: Script | None = None) -> Iterator[Option]:
    """Yield the options of a script, or of both scripts, in the order of the help."""
    for options in GROUPS.values():
        for option in options:
            if script is None or script in option.scripts:
                yield option
