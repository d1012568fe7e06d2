"""Command lines: every option of every program, as its parser lists them, with invalid values.

Nothing may be loaded, downloaded or written before all values are checked.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants as constants
import numpy as np
from PIL import Image

import image2image
import txt2image
from attacks.harness import Case, Refused, attack, require
from stable_diffusion.cli import convert, generate
from stable_diffusion.cli.arguments import parse
from stable_diffusion.cli.plan import Plan
from stable_diffusion.cli.settings import Settings
from stable_diffusion.cli.terminal.console import WRONG_USAGE
from stable_diffusion.model_io import convert as convert_library

SMALLEST = Decimal(math.ulp(0.0))  # smaller numbers are 0
NUMBERS = """
0 -0 +1 -1 -0.5 1.5 1e3 1e-400 1e999 -1e999 nan NaN -nan inf -inf Infinity 0x10
1e . 1_000 _1 1__0 １２ ٣ ½ ² Ⅷ 1,5 −1 4,8
"""
TEXTS = """
many None true é EULER / ~ ~nosuch/x ~nosuch/x.safetensors . .. ../../etc/passwd /dev/null
/dev/zero /proc/self/mem a/b/c/d o o.png/ nowhere/o.png o.gif .png { } {} {0} {seed!r}
{index:99999999}.png %s %(prog)s $HOME `id` - -- -q --steps --steps=3 @file = a=b a=/dev/zero : a:1
"""
LONG = ["9" * 20, "9" * 400, "9" * 5000, "-" + "9" * 400, "x" * 99_999, "é" * 200 + ".png"]
SPACES = ["", " ", "\n", "\0", "\t", " 7 ", "7\n", "7\0", "\u20077", "a\nb", "a\nb.png", "euler "]
BYTES = ["\x1b[31m", "\udcff", "\udcff.png", "x" * 300 + "/{seed}.png", "/dev/zero:1"]
VALUES = [*NUMBERS.split(), *TEXTS.split(), *LONG, *SPACES, *BYTES]


class Reached(Exception):
    """Everything was checked, and a model would be opened now."""


@dataclass(frozen=True)
class Program:
    """A program with a command line; `usual` are arguments that are valid."""

    main: Callable[[Sequence[str]], int]
    parser: Callable[[], argparse.ArgumentParser]
    usual: tuple[str, ...]


PROGRAMS = (
    Program(txt2image.main, parse.txt2image_parser, ("a star",)),
    Program(image2image.main, parse.image2image_parser, ("{folder}/i.png", "a star")),
    Program(convert.main, convert.convert_parser, ("/nowhere", "{folder}/new")),
)


def options(program: Program) -> list[argparse.Action]:
    """Return the options that a parser knows: what starts with a hyphen."""
    return [action for action in program.parser()._actions if action.option_strings]


def takes_a_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def is_text(action: argparse.Action) -> bool:
    """Return whether the value of an option is taken as it is."""
    return action.type in (None, str)


def is_number(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") in ("parse_number", "int")


TABLE = [
    (program, action.option_strings[-1], value)
    for program in PROGRAMS
    for action in options(program)
    for value in VALUES
]


def reach(case: Case, program: Program, *arguments: str) -> dict[str, Any]:
    """Return what the program understands these arguments as, by name, if it accepts them.

    Raises:
        Refused: if it says in one line why it does not, with the status of wrong usage.
        Defect: if it does neither, or makes a file.
    """
    picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    Image.fromarray(picture).save(case.folder / "i.png")
    case.keep(case.folder / "i.png")
    taken: dict[str, Any] = {}

    def prepare_run(settings: Settings, plan: Plan, *_: object) -> None:
        taken.update(vars(settings.requests[0]) | vars(settings), plan=plan)
        raise Reached

    def open_model(model: str, **settings: Any) -> None:
        taken.update(settings, model=model)
        raise Reached

    usual = [word.format(folder=case.folder) for word in program.usual]
    before = {*case.folder.rglob("*")}
    with (
        patch.object(generate, "prepare_run", prepare_run),
        patch.object(convert_library, "open_model", open_model),
        patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
        try:
            case.script(program.main, *arguments[:-1], *usual, *arguments[-1:])
        except Reached:
            return taken
        except Refused as refused:
            require(refused.status == WRONG_USAGE, f"status {refused.status}: {refused}")
            raise
        finally:
            require({*case.folder.rglob("*")} == before, "a file was made")
    return {}  # it printed something, such as --help


def parse_decimal(text: str) -> Decimal | None:
    """Return the number that another parser reads from a text; None if it is not a number."""
    try:
        return Decimal(text.strip())
    except InvalidOperation:
        return None


@attack("arguments", cases=len(TABLE), quick=40)
def values(case: Case) -> None:
    """Give each option each value."""
    program, name, value = TABLE[case.seed % len(TABLE)]
    (action,) = [action for action in options(program) if name in action.option_strings]
    taken = reach(case, program, f"{name}={value}")
    require(taken, "ended as if all were well")
    require(takes_a_value(action), "a switch took a value")
    got, number = taken.get(action.dest), parse_decimal(value)
    if is_number(action):
        require(number is not None and number.is_finite(), f"{got} is not a number")
        require(number >= 0, "taken, though negative")
        near = max(abs(number) * Decimal("1e-15"), SMALLEST)
        require(abs(Decimal(got) - number) <= near, f"understood as {got}")
    elif action.dest in taken and is_text(action):
        require(got == value, f"understood as {got!r}")


@attack("arguments", cases=2 * len(VALUES), quick=10)
def models(case: Case) -> None:
    """Give a model or a VAE that does not exist: nothing is fetched, no device is read."""
    value = VALUES[case.seed % len(VALUES)]
    option = case.rng.choice(["--model={}", "--model=tiny --vae={}"])
    words = [word.format(value) for word in option.split(" ")]
    with patch.object(constants, "HF_HUB_OFFLINE", True):
        case.script(txt2image.main, *words, f"--output={case.folder}/o.png", "a star")
    require(False, "was taken")


def limits(message: str) -> tuple[str, str]:
    """Return the limits in a message `must be from … to …`."""
    low, _, rest = message.partition("must be from ")[2].partition(" to ")
    return low, rest.partition(",")[0]


NUMBERED = [
    (program, action.option_strings[-1])
    for program in PROGRAMS
    for action in options(program)
    if getattr(action.type, "__name__", "") == "parse_number"
]


@attack("arguments", cases=4 * len(NUMBERED), quick=4)
def bounds(case: Case) -> None:
    """Check that the limits that an option names are its limits."""
    program, name = NUMBERED[case.seed % len(NUMBERED)]
    try:
        reach(case, program, f"{name}=-1")
    except Refused as refused:
        low, high = limits(str(refused))
    step = 1 if "." not in low + high else Decimal("1e-9")
    inside, outside = case.rng.choice(
        [
            (low, Decimal(low) - step),
            (high, Decimal(high) + step),
            (low, "-1e-300"),
            (high, "1e300"),
        ]
    )
    both = {
        "--width": ["--height=64"],
        "--height": ["--width=64"],
        "--mask_blur": ["--outpaint=8"],
        "--mask_crop": ["--outpaint=8"],
    }.get(name, [])
    rows = ["--n_images=100000"] if name.endswith("rows") else []
    require(reach(case, program, *rows, *both, f"{name}={inside}"), "ended")
    taken = reach(case, program, *rows, *both, f"{name}={outside}")
    require(not taken, f"{outside} was taken, though {low} to {high} are the limits")


FEW = {  # valid values of options that are not switches or choices
    "number": ["1", "2", "0.5", "64", "128", "0"],
    "text": ["x", "a b", ""],
    "output": ["o.png", "d/", "{seed}.png", "o.txt", "{seed}"],
    "grid": ["g.png", "o.png", "d/0001.png"],
}


def any_options(case: Case, program: Program) -> Iterator[str]:
    """Yield options of a program with values that are mostly valid by themselves."""
    known = options(program)
    for action in case.rng.choices(known, k=case.rng.choice([2, 2, 3, 5, 9])):
        name = case.rng.choice(action.option_strings)
        if not takes_a_value(action):
            yield name
            continue
        if action.choices or "{" in (action.metavar or ""):
            among = action.choices or action.metavar.strip("{}").split(",")
        else:
            among = FEW.get(action.dest) or FEW["number" if is_number(action) else "text"]
        value = str(case.rng.choice(list(among)))
        if action.dest in ("output", "grid"):
            value = f"{case.folder}/{value}"
        yield f"{name}={value}" if name.startswith("--") else f"{name}{value}"


@attack("arguments", cases=1500, quick=20)
def together(case: Case) -> None:
    """Give several options, some of them twice: refused, or the last of each counts."""
    program = case.rng.choice(PROGRAMS)
    given = list(any_options(case, program))
    taken = reach(case, program, *given)
    if not taken:
        require({"-h", "--help", "--version", "--list-models", "--list_models"} & {*given}, "ended")
        return
    require(not (taken.get("preload_models") and taken.get("low_memory")), "opposites")
    require((taken.get("width") is None) == (taken.get("height") is None), "half a size")
    if "n_rows" in taken:
        require(taken["n_images"] % taken["n_rows"] == 0, "rows that do not come out even")
    last = {}
    for word in given:
        name, _, value = word.partition("=")
        (action,) = [a for a in options(program) if name in a.option_strings] or [None]
        if action is not None and is_text(action) and takes_a_value(action):
            last[action.dest] = value
    for dest, value in last.items():
        require(taken.get(dest, value) == value, f"{dest} is {taken[dest]!r}, not {value!r}")


VALUED = [
    (program, name)
    for program in PROGRAMS
    for action in options(program)
    if takes_a_value(action)
    for name in action.option_strings
]


@attack("arguments", cases=3 * len(VALUED), quick=10)
def missing(case: Case) -> None:
    """Omit the value of an option at the end, before another option, or misspell the option."""
    program, name = VALUED[case.seed % len(VALUED)]
    words = case.rng.choice([[name], [name, "--vae"], [f"{name[:-1]}~", "1"], [name, "-q"]])
    taken = reach(case, program, *words[:-1], "--vae=x", *words[-1:])
    require(False, f"{words} were understood as {taken}")


CONFLICTS = [
    *[("--preload-models", "--low-memory"), ("--n_images=3", "--n_rows=2"), ("--width=64",)],
    *[("--height=64",), ("--sampler=lcm", "--schedule=karras"), ("--prompts-file={folder}/p.txt",)],
    *[("--from-image={folder}/i.png",), ("--grid={folder}/g.png", "--output={folder}/o.png")],
    *[("--grid={folder}/d/0001.png", "--output={folder}/d/"), ("--output={folder}/i.png/",)],
    *[("--output={folder}/{{model}}.png", "--n_images=2"), ("--sampler=ddim", "--schedule=karras")],
    *[("--prompts-file={folder}/p.txt", "--from-image={folder}/i.png"), ("--embedding=x",)],
    *[("--mask-blur=2",), ("--mask-crop=8",), ("--invert-mask", "--outpaint=8"), ("--outpaint=0",)],
    *[
        ("--mask={folder}/no.png",),
        ("--mask=alpha",),
        ("--mask-crop=8", "--outpaint=8", "--fit=pad"),
    ],
    *[("--lora={folder}/no.safetensors",), ("--n_images=100001",), ("--output={folder}/no/o.png",)],
]


@attack("arguments", cases=10 * len(CONFLICTS), quick=len(CONFLICTS))
def conflicts(case: Case) -> None:
    """Combine options that exclude each other, in either order, among others."""
    case.keep(case.folder / "p.txt", b"a star\n")
    words = list(CONFLICTS[case.seed % len(CONFLICTS)])
    words += case.rng.sample(["-q", "-v", "--steps=2", "--seed=1", "--tiled", "--cfg=3"], 2)
    case.rng.shuffle(words)
    program = case.rng.choice(PROGRAMS[:2])
    reach(case, program, *(word.format(folder=case.folder) for word in words))
    require(False, "was taken")
