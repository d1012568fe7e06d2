"""Prompts files: a prompt a line, or JSON with options for each, in lines or in an array."""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import PurePath
from typing import Any

from ...utils.strict_json import parse_json
from ...utils.wording import abbreviate, did_you_mean
from ..settings import Request

STANDARD_INPUT = "-"
SEED_BYTES = 4
MAX_BYTES = 100_000_000  # of a file: a device may never end
MAX_PICTURES = 100_000  # of a file, as many as --n_images may be

MAX_EXACT = 2**53  # beyond, a float is not the integer that was meant

JSON_LINES = (
    'write a prompt a line, or JSON lines, {"prompt": "…", "steps": 20} (of pandas: '
    "to_json(file, orient='records', lines=True))"
)
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLES = {".csv": "CSV", ".tsv": "a table with tabs", ".yaml": "YAML", ".yml": "YAML"}
DELIMITERS = {",": "CSV", ";": "CSV", "\t": "a table with tabs"}
COLUMN = re.compile(r"[\w-][\w -]{0,30}")  # the name of one
YAML_PROMPT = re.compile(r"""(?:- +)?["']?prompts?["']? *:(?: .*|)""")
YAML_KEY = re.compile(r"""(?:- +)?["']?[\w-]+["']? *:(?: .*|)|- .*""")
ARRAY = re.compile(r'\[\s*(?:\{|".*\]\s*\Z)', re.DOTALL)  # what can hardly be a prompt
COMMENTS = re.compile(r"\A(?:\s*#[^\r\n]*)*\s*")  # before the first line that counts
OPTION = re.compile(r"--[a-z][a-z_-]*[ =]", re.IGNORECASE)

Types = dict[str, Callable[[str], Any]]


def read_requests(file: str, common: Request, types: Types) -> list[Request]:
    """Return a request for each line of a prompts file: that of the command line, `common`, with
    the options of the line in place of its own.

    A line that counts is not blank and does not start with `#`. If the first of them starts with
    `{`, all are JSON objects: they have a `prompt` and options. The file may also be one JSON
    array, of such objects or of prompts. `output` is a name in the folder of the command line's,
    and becomes `file`. What is null is left out.

    A line without a seed gets one: where `common.seed` says one, the pictures of the file count up
    from it; else it is made of the prompt, and so stays when the file around it changes.

    Args:
        types: what turns text into the value of an option, as the command line has it, or raises
            `argparse.ArgumentTypeError`; by the names of the options that a line may have.

    Raises:
        ValueError: the file, or a line of it, is not as it should be.
        OSError: it cannot be read.
    """
    requests: list[Request] = []
    n_pictures = 0
    n_same: Counter[str] = Counter()
    for place, entry in _entries(file):
        where = f"{file}{place}: "
        try:
            options = {"prompt": entry} if isinstance(entry, str) else _options(entry(), types)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        if "output" in options:
            options["file"] = options.pop("output")
        request = replace(common, **options, where=where)
        if "seed" not in options:
            text = f"{n_same[request.prompt]} {request.prompt}"
            n_same[request.prompt] += 1
            seed = _seed_of(text) if common.seed is None else common.seed + n_pictures
            request = replace(request, seed=seed)
        n_pictures += request.n_images
        if n_pictures > MAX_PICTURES:
            raise ValueError(f"{where}more than {MAX_PICTURES} pictures are asked for: split it")
        requests.append(request)
    return requests


def _entries(file: str) -> list[tuple[str, str | Callable[[], Any]]]:
    """Return what each picture is asked for with, and the place of that in the file.

    That is a prompt, or a function which returns what JSON says.

    Raises:
        ValueError: the file has no prompt, or is of a kind that is not read.
        OSError: it cannot be read.
    """
    text = _text(file)
    lines = _lines(text)
    if not lines:
        raise ValueError(f"{file}: there is no prompt in it")
    first = lines[0][1]
    entries, text = None, COMMENTS.sub("", text)
    if first.startswith("["):
        entries = _array(file, text)
    elif first.startswith("{") and len(lines) > 1:
        entries = _one_object(file, first, text)
    if entries is not None:
        return entries
    is_json = first.startswith("{")
    if not is_json:
        _refuse_others(file, text, lines)
    return [
        (f", line {number}", partial(_json, line) if is_json else line) for number, line in lines
    ]


def _array(file: str, text: str) -> list[tuple[str, Any]] | None:
    """Return the entries of a file that is a JSON array; None for prompts that begin with `[`."""
    try:
        found = _json(text)
    except ValueError as error:
        if ARRAY.match(text):
            raise ValueError(f"{file}: {error}") from None
        return None
    if not found:
        raise ValueError(f"{file}: there is no prompt in it")
    if not any(isinstance(entry, str | dict) for entry in found):
        return None  # such as [1]
    return [
        (f", entry {i}", entry if isinstance(entry, str) else partial(_itself, entry))
        for i, entry in enumerate(found[: MAX_PICTURES + 1], 1)
    ]


def _one_object(file: str, first: str, text: str) -> list[tuple[str, Any]] | None:
    """Return the entry of a file that is one JSON object; None for JSON lines.

    Raises:
        ValueError: there are several objects, on several lines each.
    """
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        return None
    try:
        return [("", partial(_itself, _json(text)))]
    except ValueError:
        pass
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None  # the first line is wrong
    if end <= len(first):
        return None  # and this is what comes after the object in it
    raise ValueError(
        f"{file}: JSON objects on several lines are not read: put each on one line, or all of "
        "them, with commas between, into an array, […]"
    )


def _refuse_others(file: str, text: str, lines: list[tuple[int, str]]) -> None:
    """Raise ValueError for a file that is no list of prompts, but a table or the like."""
    suffix = PurePath(file).suffix.lower()
    kind = TABLES.get(suffix) or _table_kind(text, lines)
    if kind is not None:
        rename = f" (a file with a prompt a line must not be named {suffix})" * (suffix in TABLES)
        raise ValueError(f"{file} is {kind}, which is not read: {JSON_LINES}{rename}")
    first = lines[0][1]
    if suffix in JSON_SUFFIXES:
        raise ValueError(f"{file}: is no list of prompts in JSON, as its name says: {JSON_LINES}")
    if OPTION.match(first):
        raise ValueError(f"{file}, line {lines[0][0]}: options are not read here: {JSON_LINES}")


def _table_kind(text: str, lines: list[tuple[int, str]]) -> str | None:
    """Return whether the lines look like CSV or YAML with prompts in it; None for prompts."""
    first = lines[0][1]
    for delimiter, kind in DELIMITERS.items():
        columns = [name.strip().strip("\"'").lower() for name in first.split(delimiter)]
        is_header = "prompt" in columns and all(map(COLUMN.fullmatch, columns))
        if is_header and len(columns) > 1 and _has_columns(text, delimiter, len(columns)):
            return kind
    if first == "---" or YAML_PROMPT.fullmatch(first):
        return "YAML"
    is_yaml = any(YAML_PROMPT.fullmatch(line) for _, line in lines)
    return "YAML" if is_yaml and all(YAML_KEY.fullmatch(line) for _, line in lines) else None


def _has_columns(text: str, delimiter: str, n: int) -> bool:
    """Return whether each row of a table, of which there are several, has n columns."""
    try:
        rows = [row for row in csv.reader(StringIO(text.strip()), delimiter=delimiter) if row]
    except csv.Error:
        return False
    return len(rows) > 1 and all(len(row) == n for row in rows)


def _text(file: str) -> str:
    """What a file, or the standard input, says."""
    with ExitStack() as stack:
        opened = (
            sys.stdin.buffer if file == STANDARD_INPUT else stack.enter_context(open(file, "rb"))
        )
        raw = opened.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{file}: is longer than {MAX_BYTES // 10**6} MB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text (byte {error.start})") from None


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines that count, with their numbers."""
    # `StringIO` splits at \r\n, \r and \n, and nowhere else.
    lines = enumerate((line.strip() for line in StringIO(text, newline=None)), start=1)
    counting = ((number, line) for number, line in lines if line and not line.startswith("#"))
    return list(islice(counting, MAX_PICTURES + 1))  # one too many is told of, all are not held


def _json(text: str) -> Any:
    """What a JSON text says; what is no number counts as left out."""
    try:
        return parse_json(text, nan_is_null=True)
    except ValueError as error:
        raise ValueError(f"is no usable JSON ({error})") from None


def _itself(value: Any) -> Any:
    return value


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:SEED_BYTES])


def _options(found: Any, types: Types) -> dict[str, Any]:
    """What a JSON object says, without what is null."""
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object, {…}")
    spelt = {name.replace("-", "_"): value for name, value in found.items()}
    if len(spelt) < len(found):
        raise ValueError("an option comes twice, spelt in two ways")
    for name in spelt:
        if name not in types:
            raise ValueError(f"{name!r} is none of {', '.join(types)}{did_you_mean(name, types)}")
    spelt = {name: value for name, value in spelt.items() if value is not None}
    if "prompt" not in spelt:
        raise ValueError('there is no "prompt"')
    return {name: _value(name, value, types) for name, value in spelt.items()}


def _value(name: str, value: Any, types: Types) -> Any:
    """The value of an option, by the checks that it has on the command line."""
    if types[name] is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {abbreviate(json.dumps(value))}")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be text or a number, got {abbreviate(json.dumps(value))}")
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        value = int(value)  # tables write 3.0 where a column has gaps
    try:
        option = types[name](str(value))
        str(option).encode()
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a character in it") from None
    if isinstance(value, str) is not isinstance(option, str):
        wanted = "text" if isinstance(option, str) else "a number"
        raise ValueError(f"{name} must be {wanted}, got {abbreviate(json.dumps(value))}")
    return option
