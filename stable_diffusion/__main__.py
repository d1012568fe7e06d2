"""`python -m stable_diffusion`: say which commands there are."""

import sys

from .cli.terminal.console import with_lasting_streams

COMMANDS = """\
Stable Diffusion for MLX has these commands; --help after each says more:
  python txt2image.py "a prompt"               make pictures of a text
  python image2image.py PICTURE "a prompt"     make pictures that start from a picture
  python -m stable_diffusion.convert MODEL FOLDER
                                               write a model as a folder that loads as it is
The two scripts are in the repository, beside the folder stable_diffusion.
"""
ASKED_FOR = {"-h", "--help"}
WRONG_USAGE = 2  # as of the scripts, which are what was meant


def main(arguments: list[str]) -> int:
    """Print the commands; return 2 unless help was asked for, for nothing has been done."""
    is_help = len(arguments) == 1 and arguments[0] in ASKED_FOR
    print(COMMANDS, end="", file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else WRONG_USAGE


if __name__ == "__main__":
    sys.exit(with_lasting_streams(lambda: main(sys.argv[1:])))
