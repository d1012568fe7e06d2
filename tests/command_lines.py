"""Parse command lines in tests, write the files that they name, and read texts of the source."""

import argparse
import ast
import contextlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from ours import ROOT
from PIL import Image

from stable_diffusion.cli.arguments.parse import image2image_parser, parse, txt2image_parser
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.settings import Settings
from stable_diffusion.images.text_chunks import RECIPE, make_save_options

PARSERS = {"txt2image.py": txt2image_parser, "image2image.py": image2image_parser}
A_RECIPE = Recipe(prompt="a photo", model="tiny")
FILE = re.compile(r"[\w./-]+\.(?:png|jpg|webp|safetensors|txt|jsonl)\b")


def parse_in_folder(folder: Path, script: str, arguments: list[str]) -> Settings | None:
    """Return the settings, after writing the files that are named; None if the program ends."""
    write_named_files(folder, arguments)
    with contextlib.suppress(SystemExit):
        return parse(PARSERS[script](), arguments)
    return None


def write_named_files(folder: Path, arguments: list[str]) -> None:
    """Write the files that arguments name: prompts, upscalers, or pictures with a recipe."""
    upscalers = {after for before, after in pairwise(arguments) if before.endswith("upscale")}
    for name in FILE.findall(" ".join(arguments)):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name in upscalers:
            from upscalers import write_upscaler  # imports PyTorch

            write_upscaler(file)
        elif name.endswith("txt"):
            file.write_text("a photo\n")
        elif name.endswith("jsonl"):
            file.write_text('{"prompt": "a photo"}\n')
        else:
            options = make_save_options({RECIPE: A_RECIPE.to_json()}, "PNG")
            picture = Image.new("RGBA", (64, 64))  # transparent, with a white part for masks
            picture.paste("white", (0, 0, 32, 64))
            picture.save(file, "PNG", **options)


def list_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Yield the parser's options, each with the title of its group."""
    for group in parser._action_groups:
        yield from ((group.title, action) for action in group._group_actions)


@cache
def collect_texts() -> str:
    """Return all texts in the source of the package, with … for the values in them."""
    texts = []
    for file in (ROOT / "stable_diffusion").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                texts.append("".join(parts))
    return "\n".join(texts)
