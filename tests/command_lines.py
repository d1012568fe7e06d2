"""Command lines for tests: parsing them, with the files that they name."""

import argparse
import ast
import contextlib
import re
from collections.abc import Iterator
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
    for name in FILE.findall(" ".join(arguments)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (folder / name).write_text("a photo\n")
        elif name.endswith("jsonl"):
            (folder / name).write_text('{"prompt": "a photo"}\n')
        else:
            options = make_save_options({RECIPE: A_RECIPE.to_json()}, "PNG")
            Image.new("RGB", (64, 64)).save(folder / name, "PNG", **options)
    with contextlib.suppress(SystemExit):
        return parse(PARSERS[script](), arguments)
    return None


def list_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Yield the parser's options, each with the title of its group."""
    for group in parser._action_groups:
        yield from ((group.title, action) for action in group._group_actions)


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
