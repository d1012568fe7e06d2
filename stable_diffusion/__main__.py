"""List the commands of this package: `python -m stable_diffusion`."""

import sys

from .cli.terminal.console import SUCCEEDED, WRONG_USAGE, run_with_safe_streams

COMMANDS = """\
Stable Diffusion for MLX. Each of these commands has --help.

Installed by pip:
  mlx-txt2image "a prompt"                          make pictures from a prompt
  mlx-image2image PICTURE "a prompt"                make pictures from a picture and a prompt

The same as scripts, in the folder of the repository:
  python txt2image.py "a prompt"
  python image2image.py PICTURE "a prompt"

To convert models:
  python -m stable_diffusion.convert MODEL FOLDER   convert or quantize a model
"""


def main(arguments: list[str]) -> int:
    """Print the commands; return the exit status, 0 if help was asked for and 2 if not."""
    is_help = arguments in (["-h"], ["--help"])
    print(COMMANDS, end="", file=sys.stdout if is_help else sys.stderr)
    return SUCCEEDED if is_help else WRONG_USAGE


if __name__ == "__main__":
    sys.exit(run_with_safe_streams(lambda: main(sys.argv[1:])))
