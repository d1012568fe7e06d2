"""The programs: from a command line to an exit status."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ..adapters.find_lora_file import find_lora_file
from ..overflow import Fault, FaultyResultError, RecomputeWarning
from ..utils.wording import InputWarning, describe_error
from .arguments import parse
from .generate import generate
from .job import UsageError
from .mlx_errors import LESS_MEMORY, explain_error
from .ranks import RankError, find_ranks
from .settings import Settings
from .terminal.console import FAILED, SUCCEEDED, WRONG_USAGE, run_with_safe_streams, say, warn
from .terminal.signals import handle_signals, interrupted_status

# The scripts, by the names of the commands that do the same; see pyproject.toml.
COMMANDS = {"mlx-txt2image": "txt2image.py", "mlx-image2image": "image2image.py"}

# What to try if a result is faulty, though no weight is damaged.
FAULT_ADVICE = {
    Fault.NOT_FINITE: "try another --sampler, a smaller --cfg, or less of --lora or --control",
    Fault.CONSTANT: (
        "the memory may not be enough: try smaller pictures, --low-memory or -q; if that does not "
        "help, the model may be damaged"
    ),
}
FLOAT16_ADVICE = "--no-float16 avoids this"
VAE_FLOAT16_ADVICE = "--no-vae-float16 avoids this"


def txt2image(argv: list[str] | None = None) -> int:
    """Make pictures of a text, as `txt2image.py` does, and return the exit status.

    Args:
        argv: the arguments after the program's name; None for those of this process.
    """
    return run_program(lambda: parse.parse(_name_examples(parse.txt2image_parser()), argv))


def image2image(argv: list[str] | None = None) -> int:
    """Make pictures that start from a picture, as `image2image.py` does; see `txt2image`."""
    return run_program(lambda: parse.parse(_name_examples(parse.image2image_parser()), argv))


def run_program(read_settings: Callable[[], Settings]) -> int:
    """Make the pictures that the settings ask for, and return the exit status.

    Args:
        read_settings: reads the command line; it may end the program.
    """
    ranks = find_ranks()

    def work() -> int:
        return report_errors(lambda: generate(find_loras(read_settings()), ranks))

    return run_with_safe_streams(lambda: ranks.run_together(work))


def find_loras(settings: Settings) -> Settings:
    """Return the settings with the files of the LoRAs, which are downloaded if necessary.

    Raises:
        OSError, ValueError: see `find_lora_file`.
    """
    lora = tuple((find_lora_file(name, say), scale) for name, scale in settings.lora)
    return replace(settings, lora=lora)


def report_errors(work: Callable[[], None], less_memory: str = LESS_MEMORY) -> int:
    """Do the work of a program, and return its exit status.

    Warnings and known errors become lines on standard error.

    Args:
        less_memory: what to try if there is too little memory.
    """
    try:
        with _print_warnings(), handle_signals():
            work()
    except UsageError as error:
        return _fail(error, WRONG_USAGE)
    except FaultyResultError as error:
        return _fail(_add_notes(_add_advice(error), error), FAILED)
    except (ValueError, OSError) as error:
        return _fail(describe_error(error), FAILED)
    except RankError as error:
        return error.status  # that rank prints the error
    except (MemoryError, RuntimeError) as error:
        explanation = explain_error(error, less_memory)
        if explanation is None:
            raise
        return _fail(_add_notes(explanation, error), FAILED)
    except KeyboardInterrupt as interruption:
        status = interrupted_status(interruption)
        return _fail(": ".join(["interrupted", *interruption.args]), status)
    return SUCCEEDED


def _name_examples(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Make the examples of --help call the program by the name that it was started with."""
    command = Path(sys.argv[0]).name
    if command in COMMANDS and parser.epilog is not None:
        parser.epilog = parser.epilog.replace(f"python {COMMANDS[command]}", command)
    return parser


@contextmanager
def _print_warnings() -> Iterator[None]:
    """Print warnings inside the block as lines, without the place in the code.

    A warning about prompts is printed once for each topic, however many prompts there are.
    """
    topics = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, InputWarning):
            if message.topic in topics:
                return
            topics.add(message.topic)
        advice = ""
        if isinstance(message, RecomputeWarning) and message.gives_up_float16:
            advice = f" ({FLOAT16_ADVICE})"
        elif isinstance(message, RecomputeWarning) and message.gives_up_vae_float16:
            advice = f" ({VAE_FLOAT16_ADVICE})"
        warn(f"warning: {message}{advice}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _add_advice(error: FaultyResultError) -> str:
    """Return what the error says, and which options may help."""
    return str(error) if error.damaged else f"{error}: {FAULT_ADVICE[error.fault]}"


def _add_notes(message: str, error: Exception) -> str:
    """Return a message and the notes of an error, such as which pictures are finished."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _fail(error: object, status: int) -> int:
    """Print an error, and return the exit status."""
    warn(f"error: {error}")
    return status
