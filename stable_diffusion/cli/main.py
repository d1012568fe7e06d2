"""The programs: from a command line to an exit status."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..utils.wording import PromptWarning, describe_error
from .arguments import parse
from .generate import Start, generate
from .job import UsageError
from .ranks import RankError, launched_ranks
from .settings import Settings
from .terminal.console import warn, with_lasting_streams
from .terminal.signals import interruptible, status_of

WRONG_USAGE, FAILED = 2, 1  # exit statuses

TOO_LITTLE_MEMORY = (
    "there is too little memory: try -q, --low-memory, fewer pictures or smaller ones"
)

# What errors of MLX mean, by a part of them.
MLX_ERRORS = {
    "[read]": "a weight file changed while it was read: get it again",
    "malloc": TOO_LITTLE_MEMORY,
    "Cannot allocate memory": TOO_LITTLE_MEMORY,
    "Resource temporarily unavailable": TOO_LITTLE_MEMORY,  # for one more thread
    "start new thread": TOO_LITTLE_MEMORY,
}


def txt2image(argv: list[str] | None = None) -> int:
    """Make pictures of a text, as `txt2image.py` does; return the exit status."""
    return main(
        lambda: parse.parse(parse.txt2image_parser(), argv),
        lambda sd, settings, batch: sd.generate_latents(
            latent_size=batch.latent_size(sd.config.autoencoder.factor), **batch.options
        ),
    )


def image2image(argv: list[str] | None = None) -> int:
    """Make pictures that start from a picture, as `image2image.py` does; return the exit status."""
    return main(
        lambda: parse.parse(parse.image2image_parser(), argv),
        lambda sd, settings, batch: sd.generate_latents_from_image(
            settings.start.pixels, strength=batch.strength, **batch.options
        ),
    )


def main(parse_arguments: Callable[[], Settings], start: Start) -> int:
    """Make the pictures that the arguments ask for; `start` begins a batch of them.

    Returns the exit status; see `exit_status`.
    """
    ranks = launched_ranks()

    def work() -> int:
        return exit_status(lambda: generate(parse_arguments(), start, ranks))

    return with_lasting_streams(lambda: ranks.together(work))


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a program; warnings and known errors become lines on standard error."""
    try:
        with _warnings_as_lines(), interruptible():
            work()
    except UsageError as error:
        return _fail(error, WRONG_USAGE)
    except (ValueError, OSError) as error:
        return _fail(describe_error(error), FAILED)
    except RankError as error:
        return error.status  # that rank says why
    except MemoryError:
        return _fail(TOO_LITTLE_MEMORY, FAILED)
    except RuntimeError as error:
        explained = [why for part, why in MLX_ERRORS.items() if part in str(error)]
        if not explained:
            raise
        return _fail(explained[0], FAILED)
    except KeyboardInterrupt as interruption:
        return _fail(": ".join(["interrupted", *interruption.args]), status_of(interruption))
    return 0


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show this package's warnings without the place in the code that they come from.

    Of those of prompts each topic once, however many prompts and batches there are.
    """
    topics = set()

    def show(message: Warning | str, *_: Any) -> None:
        if isinstance(message, PromptWarning):
            if message.topic in topics:
                return
            topics.add(message.topic)
        warn(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _fail(error: object, status: int) -> int:
    warn(f"error: {error}")
    return status
