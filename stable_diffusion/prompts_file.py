"""Prompts files: a prompt a line, or JSON lines with options for each."""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from io import StringIO
from itertools import islice
from typing import Any

from .messages import did_you_mean, shown
from .strict import parse_json

STANDARD_INPUT = "-"
SEED_BYTES = 4
MOST_BYTES = 100_000_000  # of a file: a device may never end
MOST_PICTURES = 100_000  # of a file, as many as --n_images may be

Types = dict[str, Callable[[str], Any]]


def read_requests(args: argparse.Namespace, types: Types) -> list[argparse.Namespace]:
    """The command line, once for each line of `args.prompts_file`, with what the line says.

    A line that counts is not blank and does not start with `#`. If the first of them starts with
    `{`, all are JSON objects: they have a `prompt` and options. `output` is a name in the folder
    of the command line's, and becomes `file`.

    A line without a seed gets one: where `args.seed` says one, the pictures of the file count up
    from it; else it is made of the prompt, and so stays when the file around it changes.

    Args:
        types: what turns text into the value of an option, as the command line has it, or raises
            `argparse.ArgumentTypeError`; by the names of the options that a line may have.

    Raises:
        ValueError: the file, or a line of it, is not as it should be.
        OSError: it cannot be read.
    """
    lines = _lines(args.prompts_file)
    if not lines:
        raise ValueError(f"{args.prompts_file}: there is no prompt in it")
    is_json = lines[0][1].startswith("{")
    requests = []
    n_pictures, n_same = 0, Counter()
    for number, line in lines:
        where = f"{args.prompts_file}, line {number}: "
        try:
            options = _options(line, types) if is_json else {"prompt": line}
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        if "output" in options:
            options["file"] = options.pop("output")
        request = argparse.Namespace(**vars(args) | options | {"where": where})
        if "seed" not in options:
            text = f"{n_same[request.prompt]} {request.prompt}"
            n_same[request.prompt] += 1
            request.seed = _seed_of(text) if args.seed is None else args.seed + n_pictures
        n_pictures += request.n_images
        if n_pictures > MOST_PICTURES:
            raise ValueError(f"{where}more than {MOST_PICTURES} pictures are asked for: split it")
        requests.append(request)
    return requests


def _lines(file: str) -> list[tuple[int, str]]:
    """The lines that count, with their numbers."""
    with ExitStack() as stack:
        opened = (
            sys.stdin.buffer if file == STANDARD_INPUT else stack.enter_context(open(file, "rb"))
        )
        raw = opened.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"{file}: is longer than {MOST_BYTES // 10**6} MB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text (byte {error.start})") from None
    # `StringIO` splits at \r\n, \r and \n, and nowhere else.
    lines = enumerate((line.strip() for line in StringIO(text, newline=None)), start=1)
    counting = ((number, line) for number, line in lines if line and not line.startswith("#"))
    return list(islice(counting, MOST_PICTURES + 1))  # one too many is told of, all are not held


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:SEED_BYTES])


def _options(line: str, types: Types) -> dict[str, Any]:
    """What a JSON line says."""
    try:
        found = parse_json(line)
    except ValueError as error:
        raise ValueError(f"is no usable JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object, {…}")
    spelt = {name.replace("-", "_"): value for name, value in found.items()}
    if len(spelt) < len(found):
        raise ValueError("an option comes twice, spelt in two ways")
    if "prompt" not in spelt:
        raise ValueError('there is no "prompt"')
    return {name: _value(name, value, types) for name, value in spelt.items()}


def _value(name: str, value: Any, types: Types) -> Any:
    """The value of an option, by the checks that it has on the command line."""
    if name not in types:
        raise ValueError(f"{name!r} is none of {', '.join(types)}{did_you_mean(name, types)}")
    if types[name] is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {shown(json.dumps(value))}")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be text or a number, got {shown(json.dumps(value))}")
    try:
        option = types[name](str(value))
        str(option).encode()
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a character in it") from None
    if isinstance(value, str) is not isinstance(option, str):
        wanted = "text" if isinstance(option, str) else "a number"
        raise ValueError(f"{name} must be {wanted}, got {shown(json.dumps(value))}")
    return option
