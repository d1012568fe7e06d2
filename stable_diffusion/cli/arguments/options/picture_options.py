"""The options that say what to draw: the picture to start from, the prompt, and the pictures."""

from ....images.arrays import FITS
from .. import value_types
from ..option import BOTH, IMAGE2IMAGE, TXT2IMAGE, Option

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
        default_text="0.9; 1 with --mask or --outpaint; models that edit a picture have none",
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
