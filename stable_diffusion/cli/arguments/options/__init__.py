"""The table of all options, in the groups that `--help` shows.

The parser, the help, docs/options.md, and the options of prompts files and recipes come from it.
To add an option, add a row to the file of its group here, and a field of the same name to
`cli.settings.Settings`; or, if it may differ from picture to picture, to `PictureOptions`. What
recipes have is in `Recipe`, too.
"""

from collections.abc import Iterator

from ..option import Option, Script
from .control_options import CONTROL
from .inpainting_options import INPAINTING
from .model_options import MEMORY_AND_SPEED, MODEL
from .output_options import OUTPUT, REPORTS
from .picture_options import PICTURES, PROMPT, START
from .sampling_options import SAMPLING

GROUPS: dict[str, tuple[Option, ...]] = {
    "picture to start from": START,
    "repaint a part": INPAINTING,
    "prompt": PROMPT,
    "pictures": PICTURES,
    "control": CONTROL,
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
