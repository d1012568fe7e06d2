"""The options that say how to step from noise to a picture."""

from ....config.task import IMAGE_GUIDANCE
from ....sampler.sampler import SAMPLERS, SCHEDULES
from .. import value_types
from ..option import BOTH, IMAGE2IMAGE, Option

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
        "--image-cfg",
        "guidance by the picture, for models that edit one: how closely to keep to it; less than 1 "
        "means no guidance at all",
        parse=value_types.parse_guidance,
        default_text=f"{IMAGE_GUIDANCE} with these models",
        metavar="X",
        scripts=IMAGE2IMAGE,
        line_scripts=IMAGE2IMAGE,
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
        "--cfg-range",
        "the part of the steps with guidance, such as 0.1-0.7; the others follow the prompt alone, "
        "in half the time",
        kind="numbers",
        parse=value_types.parse_cfg_range,
        default=(),
        default_text="0-1",
        metavar="START-END",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--sampler",
        "how to step from noise to picture",
        choices=tuple(SAMPLERS),
        default_text="by model",
        metavar="NAME",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--schedule",
        "how timesteps or noise levels are spaced; not every sampler has all of these",
        choices=tuple(SCHEDULES),
        default_text="by model",
        metavar="NAME",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--timesteps",
        "the timesteps of the steps, falling, such as 999,749,499,249, in place of --steps and "
        "--schedule; not every sampler takes them",
        kind="numbers",
        parse=value_types.parse_timesteps,
        default_text="by --steps and --schedule",
        metavar="T,T,…",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--eta",
        "how much noise each step of ddim or tcd adds, 0 to 1",
        parse=value_types.parse_fraction,
        default_text="0 for ddim, 0.3 for tcd",
        metavar="X",
        line_scripts=BOTH,
        in_recipe=True,
    ),
    Option(
        "--reuse",
        "compute the whole UNet in every N-th step only, and reuse its deep features in the steps "
        "between: faster, and a little different; 1 is off",
        parse=value_types.parse_count,
        default=1,
        metavar="N",
        line_scripts=BOTH,
        in_recipe=True,
    ),
)
