"""Write docs/options.md from the table of options: `python -m tools.options_page`."""

import re
from pathlib import Path

from stable_diffusion.cli.arguments.option import BOTH, IMAGE2IMAGE, Option
from stable_diffusion.cli.arguments.options import GROUPS

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

START = """\
# Options

<!-- Written by `python -m tools.options_page` from stable_diffusion/cli/arguments/options/. -->

These are the options of both scripts; `python txt2image.py --help` shows the same, with examples.
Underscores and hyphens in an option mean the same: `--n_images` is `--n-images`.

*Prompts file* says whether a line of a [prompts file](batches-and-machines.md) may set the option,
for its own pictures. *Recipe* says whether the option is in the
[recipe](files-and-recipes.md) of a picture, so that `--from-image` sets it again.
"""

# The pages that say more about the options of a group.
SEE_ALSO = {
    "repaint a part": ("[inpainting](inpainting.md)",),
    "prompt": ("[prompts](prompts.md)", "[LoRA and embeddings](lora-and-embeddings.md)"),
    "pictures": ("[batches and machines](batches-and-machines.md)",),
    "control": ("[ControlNet](controlnet.md)", "[control models](control-models.md)"),
    "sampling": ("[samplers](samplers.md)",),
    "larger pictures": ("[larger pictures](larger-pictures.md)",),
    "model": ("[checkpoints](checkpoints.md)", "[LoRA and embeddings](lora-and-embeddings.md)"),
    "memory and speed": ("[memory and quantization](memory-and-quantization.md)",),
    "output": ("[files and recipes](files-and-recipes.md)",),
    "reports": ("[while it runs](files-and-recipes.md#while-it-runs)",),
}


def make_page() -> str:
    """Return the page in Markdown."""
    return "\n".join([START, *(_make_section(title) for title in GROUPS)])


def _make_section(title: str) -> str:
    """Return the heading and the table of a group of options."""
    lines = [f"## {title.capitalize()}", ""]
    if all(option.scripts == IMAGE2IMAGE for option in GROUPS[title]):
        lines += ["Only `image2image.py` has these options.", ""]
    if pages := SEE_ALSO.get(title):
        lines += [f"More about this: {', '.join(pages)}.", ""]
    lines += ["| option | meaning | default | prompts file | recipe |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_make_row, GROUPS[title]), ""])


def _make_row(option: Option) -> str:
    """Return the line of a table that describes an option."""
    meaning = _mark_options(option.help)
    if option.choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in option.choices)})"
    if option.opposite is not None:
        meaning += f"; `{option.opposite_spellings[0]}`: {_mark_options(option.opposite)}"
    default = _mark_options(option.shown_default or "")
    lines = "yes" if option.line_scripts else ""
    if option.line_scripts not in ((), BOTH, option.scripts):
        lines = f"of {' and '.join(f'`{script}`' for script in option.line_scripts)}"
    cells = (_make_name(option), meaning, default, lines, "yes" if option.in_recipe else "")
    return f"| {' | '.join(cells)} |".replace("  |", " |")


def _make_name(option: Option) -> str:
    """Return the names of an option, with what stands for its value."""
    if option.is_positional:
        return f"`{option.name}`"
    name = option.name if option.metavar is None else f"{option.name} {option.metavar}"
    return f"`{name}`" if option.short is None else f"`{option.short}`, `{name}`"


def _mark_options(text: str) -> str:
    """Return a text with options as code, and backslashes that Markdown does not read."""
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", text.replace("\\", "\\\\"))


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
