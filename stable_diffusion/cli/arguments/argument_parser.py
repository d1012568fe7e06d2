"""A parser of command lines with short usage, one spelling for each option, and suggestions."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NoReturn

from ...utils.wording import describe_error, did_you_mean
from ..terminal.console import FAILED, one_line
from .option import Option

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})

# Returns what to say about an option of another program: our option, or None if there is none, and
# an explanation. Returns None if the word is not such an option.
Explain = Callable[[str], tuple[str | None, str] | None]


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` without abbreviations, and without a help option of its own.

    Args:
        positionals: the positional arguments, as the line of usage shows them.
        description: what the program does.
        epilog: text after the options, shown with its own line breaks.
        prog: the name of the program; None for the name of the script.
        other_options: options that only another script has, and the name of that script.
        explain: returns what an option of another program is called here.
    """

    def __init__(
        self,
        positionals: str,
        description: str,
        epilog: str = "",
        prog: str | None = None,
        other_options: Mapping[str, str] = NO_OPTIONS,
        explain: Explain = lambda word: None,
    ):
        super().__init__(
            prog=prog,
            usage=f"%(prog)s [options] {positionals}",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._other_options = other_options
        self._explain = explain
        # Whether the word after an option is its value, for options whose value may be left out.
        self._names_value: dict[str, Callable[[str], bool]] = {}

    def add_options(self, groups: Mapping[str, Iterable[Option]]) -> None:
        """Add options of the table, in groups by title.

        Options that a command line does not give are absent from the result of parsing.
        """
        for title, options in groups.items():
            group = self.add_argument_group(title)
            for option in options:
                _add_option(group, option)
                if option.names_value is not None:
                    self._names_value |= dict.fromkeys(option.spellings, option.names_value)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but report unknown options before a missing prompt."""
        words = sys.argv[1:] if args is None else list(args)
        for word in takewhile(lambda word: word != "--", words):
            self._check_option(word)
        return super().parse_known_args(self._join_values(words), namespace)

    def _join_values(self, words: list[str]) -> list[str]:
        """Return the words with `--name=value` for each option whose value may be left out.

        argparse itself would take any word that follows as the value, also a prompt.
        """
        joined: list[str] = []
        for i, word in enumerate(words):
            if word == "--":
                return joined + words[i:]
            before = words[i - 1] if i else ""
            if before in self._names_value and self._names_value[before](word):
                joined[-1] += word
            else:
                joined.append(f"{word}=" if word in self._names_value else word)
        return joined

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message on one line, and end the program with status 2."""
        super().error(one_line(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Return the value of an option; before Python 3.13 argparse loses `--` in `--name=--`."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _check_option(self, word: str) -> None:
        """End the program if a word is an unknown option."""
        name = word.partition("=")[0]
        # A word with a space in it is a value for argparse.
        if not word.startswith("-") or " " in word or name in self._option_string_actions:
            return
        if name in self._other_options:
            self.error(f"unrecognized arguments: {name}, which is for {self._other_options[name]}")
        if explained := self._explain(word):
            self.error(f"unrecognized arguments: {name}: {self._hint(*explained)}")
        if word.startswith("--"):
            self.error(f"unrecognized arguments: {name}{self._suggest(name)}")

    def _hint(self, ours: str | None, explanation: str) -> str:
        """Return what to say about an option of another program that is called `ours` here."""
        if ours is None:
            return f"there is no such option: {explanation}"
        if ours in self._other_options:
            return f"{explanation} {ours}, which is for {self._other_options[ours]}"
        return f"{explanation} {ours}"

    def _suggest(self, name: str) -> str:
        """Return ": did you mean …?" with the option most like `name`, or "" if there is none."""
        spellings = {
            spelling: _find_long_name(action)
            for action in self._actions
            for spelling in action.option_strings
            if spelling.startswith("--")
        }
        return did_you_mean(name, (), spellings)


class Show(argparse.Action):
    """An option that prints what a function returns, and ends the program."""

    def __init__(self, option_strings: list[str], dest: str, show: Callable[[], str], **more: Any):
        super().__init__(option_strings, dest, nargs=0, **more)
        self.show = show

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print("\n".join(map(one_line, self.show().split("\n"))))
        except (ValueError, OSError) as error:
            parser.exit(FAILED, f"error: {one_line(describe_error(error))}\n")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Return the names of an option, the long one in one spelling, and its value once."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        value = "" if action.nargs == 0 else f" {self._format_args(action, action.dest.upper())}"
        return ", ".join([*short, _find_long_name(action)]) + value

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Return the lines of a help, which do not break inside a name like `sd-1-5`."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _find_long_name(action: argparse.Action) -> str:
    """Return the long name of an option, in its first spelling."""
    return next(name for name in action.option_strings if name.startswith("--"))


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add an option of the table, and its opposite if it has one."""
    default = option.shown_default
    help_text = option.help if default is None else f"{option.help} (default: {default})"
    if option.choices and option.metavar is not None:
        help_text += f": {', '.join(option.choices)}"
    common: dict[str, Any] = {"help": help_text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if option.is_positional:
        group.add_argument(option.name, nargs=None if option.is_required else "?", **common)
        return
    common["dest"] = option.key
    names = option.spellings
    match option.kind:
        case "switch":
            group.add_argument(*names, action="store_true", **common)
        case "print":
            group.add_argument(*names, action=Show, show=option.show, **common)
        case "help":
            group.add_argument(*names, action="help", **common)
        case "value" | "list" | "numbers":
            metavar = option.metavar
            if option.choices and metavar is None:
                metavar = f"{{{','.join(option.choices)}}}"
            action = "append" if option.kind == "list" else "store"
            parse = option.text_parser
            group.add_argument(*names, action=action, type=parse, metavar=metavar, **common)
    if option.opposite is not None:
        common["help"] = option.opposite
        group.add_argument(*option.opposite_spellings, action="store_false", **common)
