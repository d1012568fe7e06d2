"""The options that make pictures larger: a second pass, and an upscaler."""

from .. import value_types
from ..option import TXT2IMAGE, Option

LARGER = (
    Option(
        "--hires",
        "make each picture, enlarge it so many times, more than 1 and up to 4, and draw it again "
        "in part at that size",
        parse=value_types.parse_hires_scale,
        default_text="one pass",
        metavar="SCALE",
        scripts=TXT2IMAGE,
        line_scripts=TXT2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--hires-strength",
        "how far the second pass goes from the enlarged picture, above 0 and up to 1; a picture "
        "enlarged by latent is blurred below 0.5",
        parse=value_types.parse_hires_strength,
        default_text="0.7",
        metavar="X",
        scripts=TXT2IMAGE,
        line_scripts=TXT2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--hires-steps",
        "steps that the second pass runs",
        parse=value_types.parse_count,
        default_text="--steps times --hires-strength",
        metavar="N",
        scripts=TXT2IMAGE,
        line_scripts=TXT2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--hires-upscale",
        "what enlarges for the second pass: latent, the latents; lanczos, a filter; or the "
        ".safetensors file of an upscaler, as --upscale takes it",
        parse=value_types.parse_hires_upscale,
        default_text="latent",
        metavar="latent|lanczos|FILE",
        scripts=TXT2IMAGE,
        line_scripts=TXT2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--upscale",
        "enlarge the finished pictures with an upscaler of the ESRGAN family, a .safetensors file; "
        "1, 2, 4 or 8 times, as it was made",
        parse=value_types.parse_upscaler,
        default_text="none",
        metavar="FILE",
        in_recipe=True,
    ),
)
