"""An argument parser that helps: short usage, each option in one spelling, "did you mean"."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NoReturn

from ...utils.wording import describe_error, did_you_mean
from ..terminal.console import one_line

NOWHERE: Mapping[str, str] = MappingProxyType({})

# Our option for a word of another program, or None, and what to say; None for any other word.
Explain = Callable[[str], tuple[str | None, str] | None]


class Parser(argparse.ArgumentParser):
    """argparse's, with `-h` left to a group of options, and no abbreviations.

    Args:
        positionals: for the line of usage.
        description: what the program does.
        epilog: shown as it is, with its own line breaks.
        prog: the program's name, where it is not the script's.
        elsewhere: options that this program has not, and which one has them.
        explain: says what an option of another program is called here.
    """

    def __init__(
        self,
        positionals: str,
        description: str,
        epilog: str = "",
        prog: str | None = None,
        elsewhere: Mapping[str, str] = NOWHERE,
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
        self._elsewhere = elsewhere
        self._explain = explain

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        """As argparse does, but unknown options are told first: before a prompt is missed."""
        args = sys.argv[1:] if args is None else args
        for word in takewhile(lambda word: word != "--", args):
            name = word.partition("=")[0]
            # With a space in it, it is a value to argparse.
            if not word.startswith("-") or " " in word or name in self._option_string_actions:
                continue
            if explained := self._explain(word):
                self.error(f"unrecognized arguments: {name}: {self._hint(*explained)}")
            if name in self._elsewhere:
                self.error(f"unrecognized arguments: {name}, which is for {self._elsewhere[name]}")
            if word.startswith("--"):
                self.error(f"unrecognized arguments: {name}{self._suggest(name)}")
        return super().parse_known_args(args, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """As argparse does; but `--like-this=--` has a value, which it loses before Python 3.13."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Usage, one line that says what is wrong, and the end."""
        super().error(one_line(message))

    def _hint(self, ours: str | None, sense: str) -> str:
        """Say what an option of another program is called here."""
        if ours is None:
            return f"there is no such option: {sense}"
        if ours in self._elsewhere:
            return f"it is for {self._elsewhere[ours]}, and {sense} {ours}"
        return f"{sense} {ours}"

    def _suggest(self, name: str) -> str:
        """The known option that `name` may have been meant to be, in the spelling of the help."""
        spellings = {
            spelling: _shown(action)
            for action in self._actions
            for spelling in action.option_strings
            if spelling.startswith("--")
        }
        return did_you_mean(name, (), spellings)


class Show(argparse.Action):
    """An option that prints what a function returns, and ends the program."""

    def __init__(self, option_strings: list[str], dest: str, show: Callable[[], str], help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.show = show

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print("\n".join(map(one_line, self.show().split("\n"))))
        except (ValueError, OSError) as error:
            parser.exit(1, f"error: {one_line(describe_error(error))}\n")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The names of an option in one spelling, and its value once."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        return ", ".join([*short, _shown(action)]) + value


def _shown(action: argparse.Action) -> str:
    """The long name of an option, in its first spelling."""
    return next(name for name in action.option_strings if name.startswith("--"))
