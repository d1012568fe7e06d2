"""The options for pictures that steer what is drawn."""

from .. import control_values
from ..option import Option

CONTROL = (
    Option(
        "--control",
        "a ControlNet or T2I-Adapter, the picture that it reads, and how much it steers (1 if left "
        "out); MODEL is a short name such as canny, a folder, a .safetensors file, or a Hugging "
        "Face repository, and TYPE what the picture shows, for a union of ControlNets; repeat for "
        "more",
        kind="list",
        parse=control_values.parse_control,
        default=(),
        default_text="none",
        metavar="MODEL[@TYPE]=IMAGE[:SCALE]",
        in_recipe=True,
    ),
    Option(
        "--control-range",
        "the part of the steps in which --control steers, such as 0-0.5 for the first half; once "
        "for all, or once for each --control",
        kind="list",
        parse=control_values.parse_range,
        default=(),
        default_text="0-1",
        metavar="START-END",
        in_recipe=True,
    ),
    Option(
        "--control-canny",
        "draw the edges of the picture of --control first, by two thresholds; with several, of "
        "those whose MODEL or TYPE has canny in its name; needs the package opencv-python-headless",
        parse=control_values.parse_canny,
        names_value=control_values.names_thresholds,
        default_text="off; the thresholds are 100,200 if left out",
        metavar="LOW,HIGH",
        in_recipe=True,
    ),
)
