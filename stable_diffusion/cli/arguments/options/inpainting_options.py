"""The options that say which part of a picture to repaint, and how to extend a picture."""

from .. import value_types
from ..option import IMAGE2IMAGE, Option

INPAINTING = (
    Option(
        "--mask",
        "repaint the part of the picture that is white in this one; alpha: the part that is "
        "transparent in the picture itself. The rest stays as it is",
        parse=value_types.parse_mask,
        default_text="repaint all of it",
        metavar="FILE",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--invert-mask",
        "repaint the part that is black",
        kind="switch",
        default=False,
        opposite="repaint the part that is white",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--mask-blur",
        "how far the new part and the old one blend at the edge of the mask",
        parse=value_types.parse_blur,
        default=0,
        metavar="PIXELS",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--mask-crop",
        "draw only the masked part, and so many pixels around it, in the size of the model (or "
        "--width and --height), and put it back into the picture",
        parse=value_types.parse_crop,
        default_text="draw the whole picture",
        metavar="PIXELS",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
    Option(
        "--outpaint",
        "extend the picture by so many pixels at its left, top, right and bottom, or one number "
        "for all sides, and draw what is new",
        kind="numbers",
        parse=value_types.parse_margins,
        default_text="none",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        scripts=IMAGE2IMAGE,
        in_recipe=True,
    ),
)
