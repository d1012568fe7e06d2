"""Read the pages of the documentation: links, commands, code and quotes; and what links name."""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ours import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = {  # by the words that start them
    "txt2image.py": "txt2image.py",
    "mlx-txt2image": "txt2image.py",
    "image2image.py": "image2image.py",
    "mlx-image2image": "image2image.py",
    "stable_diffusion.convert": "convert",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_page(page: Path) -> str:
    """Return the path of a page in the repository, for error messages and the ids of tests."""
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path, language: str) -> list[str]:
    """Return the contents of the fenced blocks of a language."""
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def read_prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


@cache
def find_anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    n_before: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w -]", "", text).replace(" ", "-")
        anchors.add(f"{anchor}-{n_before[anchor]}" if n_before[anchor] else anchor)
        n_before[anchor] += 1
    return frozenset(anchors)


def find_links(page: Path) -> list[tuple[str, str]]:
    """Return the text and the target of each link and picture of a page."""
    return re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", read_prose(page))


def find_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the program and the arguments of each call of our programs in the shell blocks."""
    for block in read_blocks(page, "shell"):
        for line in block.replace("\\\n", " ").replace("$strength", "0.5").splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word in PROGRAMS:
                    yield PROGRAMS[word], words[i + 1 :]
                    break


def find_quotes(page: Path) -> list[str]:
    """Return the messages that a page quotes, in double backticks, with … for names and numbers."""
    return [
        " ".join(quote.split()) for quote in re.findall(r"``(.+?)``", read_prose(page), re.DOTALL)
    ]


def find_definitions(file: Path) -> set[str]:
    """Return the names that a Python file defines: functions, classes, methods, and constants."""
    names: set[str] = set()

    def add(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(
                    prefix + target.id for target in targets if isinstance(target, ast.Name)
                )

    add(ast.parse(file.read_text()).body, "")
    return names
