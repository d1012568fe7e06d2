"""Print the commands that there are: `python -m stable_diffusion`."""

import sys

from .cli.terminal.console import run_with_safe_streams

COMMANDS = """\
Stable Diffusion for MLX. Each of these commands has --help.

Installed by pip:
  mlx-txt2image "a prompt"                          make pictures of a text
  mlx-image2image PICTURE "a prompt"                make pictures that start from a picture

The same as scripts, in the folder of the repository:
  python txt2image.py "a prompt"
  python image2image.py PICTURE "a prompt"

Of the library:
  python -m stable_diffusion.convert MODEL FOLDER   write a model that loads fast, or quantized
"""
WRONG_USAGE = 2  # exit status


def main(arguments: list[str]) -> int:
    """Print the commands, and return the exit status: 2 unless help was asked for."""
    is_help = arguments in (["-h"], ["--help"])
    print(COMMANDS, end="", file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else WRONG_USAGE


if __name__ == "__main__":
    sys.exit(run_with_safe_streams(lambda: main(sys.argv[1:])))
