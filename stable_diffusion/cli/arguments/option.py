"""What a row of the table of options says; the table itself is in `options/`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .value_types import make_choice_parser

Script = Literal["txt2image.py", "image2image.py"]
TXT2IMAGE: tuple[Script, ...] = ("txt2image.py",)
IMAGE2IMAGE: tuple[Script, ...] = ("image2image.py",)
BOTH: tuple[Script, ...] = TXT2IMAGE + IMAGE2IMAGE


@dataclass(frozen=True)
class Option:
    """An option or a positional argument of the scripts.

    Attributes:
        name: with `--` as the help shows it, or a positional argument. `_` and `-` mean the same.
        help: what it does, in a few words.
        short: a name of one letter, such as `-q`.
        kind: how many values it takes. A "value" has one; a "list" has one for each time that the
            option is given; "numbers" are one text with commas, in JSON a list; a "switch" has
            none, and is True or False. "print" prints what `show` returns and ends the program;
            "help" prints the help.
        parse: returns the value for a text, or raises `argparse.ArgumentTypeError`.
        choices: the words that are allowed; () if `parse` decides.
        default: the value if the option is not given.
        default_text: says the default in words, if the value alone would not.
        metavar: stands for the value in the help; None for the choices themselves.
        opposite: the help of `--no-NAME`, which sets a switch to False; None if there is none.
        is_required: for a positional argument, whether it must be given.
        show: see `kind`.
        scripts: the scripts that have the option.
        line_scripts: the scripts in whose prompts files a line may set the option.
        in_recipe: whether the recipe in a picture has the option.
    """

    name: str
    help: str
    short: str | None = None
    kind: Literal["value", "list", "numbers", "switch", "print", "help"] = "value"
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    default: Any = None
    default_text: str | None = None
    metavar: str | None = None
    opposite: str | None = None
    is_required: bool = False
    show: Callable[[], str] | None = None
    scripts: tuple[Script, ...] = BOTH
    line_scripts: tuple[Script, ...] = ()
    in_recipe: bool = False

    @property
    def key(self) -> str:
        """Return the name of the value in `Settings`, `Request`, prompts files and recipes."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def is_positional(self) -> bool:
        """Return whether the argument has a place instead of a name."""
        return not self.name.startswith("-")

    @property
    def has_value(self) -> bool:
        """Return whether the option sets a value; False if it only prints something."""
        return self.kind not in ("print", "help")

    @property
    def spellings(self) -> tuple[str, ...]:
        """Return all spellings of the names; the help shows the first long one."""
        short = () if self.short is None else (self.short,)
        return (*short, *_spell_both_ways(self.name))

    @property
    def opposite_spellings(self) -> tuple[str, ...]:
        """Return all spellings of `--no-NAME`."""
        return _spell_both_ways(f"--no-{self.key.replace('_', '-')}")

    @property
    def shown_default(self) -> str | None:
        """Return the default as the help shows it; None if the option has no default."""
        if self.is_positional or not self.has_value:
            return None
        if self.default_text is not None:
            return self.default_text
        return "off" if self.kind == "switch" else str(self.default)

    @property
    def text_parser(self) -> Callable[[str], Any]:
        """Return the function that turns text into the value, or into one value of a list.

        The function raises `argparse.ArgumentTypeError` if the text is not a value of this option.
        """
        return make_choice_parser(self.choices) if self.choices else self.parse


def _spell_both_ways(name: str) -> tuple[str, ...]:
    """Return a long name as it is, with hyphens, and with underscores, each spelling once."""
    hyphens = "--" + name[2:].replace("_", "-")
    underscores = "--" + name[2:].replace("-", "_")
    return tuple(dict.fromkeys((name, hyphens, underscores)))
